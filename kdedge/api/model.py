"""A loaded artifact that classifies images; runs on the device without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.artifacts.parity import warn_of_failed_gates
from kdedge.data.sources import read_file
from kdedge.errors import DataError, check_at_least
from kdedge.files import home_path
from kdedge.inference.classify import Classifier, ImageInput, decode_input
from kdedge.inference.results import Prediction, Result
from kdedge.progress import working
from kdedge.runs.find import RunOrArtifact, find_artifact
from kdedge.runs.folder import runs_folder
from kdedge.runtime.artifact import Precision, model_file_at
from kdedge.runtime.preprocess import ImageError, convert_image

AnyImage = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, an image file's bytes, a Pillow image, or pixels [H, W, 3] or [H, W], 0 to 255."""


class LoadedModel(Classifier):
    """An artifact with one of its model files loaded, ready to classify.

    It is safe to call from several threads. `close`, or the end of a `with` block, frees the model.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.artifact.class_names

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is one path, not many
        self, image: AnyImage, *, top: int = 1, bgr: bool = False
    ) -> Prediction: ...

    @overload
    def __call__(
        self, image: Iterable[AnyImage], *, top: int = 1, bgr: bool = False
    ) -> list[Prediction]: ...

    def __call__(
        self, image: AnyImage | Iterable[AnyImage], *, top: int = 1, bgr: bool = False
    ) -> Prediction | list[Prediction]:
        """Classifies one image, or several in batches.

        Args:
            image: a path, bytes, a Pillow image, pixels, or several of these.
            top: classes per image.
            bgr: pixel arrays are BGR, as from OpenCV, not RGB.

        Returns:
            The `Prediction` of the image: `class_name`, which may be `none`, `score_percent`, and
            the `top` classes; a list of these for several images.

        Raises:
            DataError: an image cannot be read, or the model gives no finite logits for it.
                `classify` goes on with the other images.
        """
        if isinstance(image, str | Path | bytes | Image.Image | np.ndarray):
            check_at_least(1, top=top)
            key, given = _keyed_input(0, image, bgr)  # without the threads of `classify`
            (result,) = self.classify_batch([(key, self.prepare(decode_input(given)))], top=top)
            return _prediction(result)
        if not isinstance(image, Iterable) or hasattr(image, "read"):  # an open file has lines
            raise _no_image_error(image)
        return [_prediction(result) for result in self.classify(image, top=top, bgr=bgr)]

    def classify(
        self, images: Iterable[AnyImage], *, top: int = 1, bgr: bool = False
    ) -> Iterator[Result]:
        """Classifies images in order, in batches; a failed image does not stop the others.

        Args:
            images: any number; they are read batch by batch.
            top: classes per image.
            bgr: pixel arrays are BGR, as from OpenCV, not RGB.

        Yields:
            A `Prediction`, an `UnreadableImage` or a `NonFiniteLogits`. Its `key` is the path, or
            the image's number from 0.

        Raises:
            RecipeError: top is below 1.
            SetupError: the model is closed.
            DataError: an item is not an image, or an array has a wrong shape or type.
        """
        check_at_least(1, top=top)
        keyed = (_keyed_input(number, image, bgr) for number, image in enumerate(images))
        return self.classify_many(keyed, top=top)

    def __repr__(self) -> str:
        return f"<LoadedModel {self.artifact.path / self.file.name}, {self.backend.describe()}>"


def load(
    artifact: RunOrArtifact,
    *,
    precision: Precision | None = None,
    backend: str | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
) -> LoadedModel:
    """Loads an exported model, to classify images without torch.

    Warns if the file misses its gates on this machine.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name;
            or a model file of an artifact.
        precision: `fp32`, `fp16` or `int8`. None: an engine that this machine's GPU runs,
            or else the file that `export(cpu=True)` chose on a machine like this, or else float32.
        backend: the runtime, such as `onnxruntime`; None to choose one.
        threads: CPU threads; None for the runtime's default.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Raises:
        DataError: there is no artifact, or it was changed or damaged.
        RecipeError: no file of that precision for that backend, or threads is below 1.
        SetupError: this machine can run no file of the artifact.

    Examples:
        >>> with kdedge.load("artifacts/01") as model:
        ...     print(model("image.jpg").class_name)
    """
    check_at_least(1, threads=threads)
    path = model_file_at(artifact) or find_artifact(artifact, runs_folder(root))
    with working(f"loading {path}"):
        loaded = LoadedModel.load(path, precision=precision, backend=backend, n_threads=threads)
    with contextlib.ExitStack() as on_error:
        on_error.callback(loaded.close)
        warn_of_failed_gates(loaded.artifact, loaded.file, loaded.backend)
        on_error.pop_all()
    return loaded


def _keyed_input(number: int, image: AnyImage, bgr: bool) -> tuple[str, ImageInput]:
    """Returns an image's key, and the image in the form that the classifier takes."""
    key = str(image) if isinstance(image, str | Path) else str(number)
    try:
        if isinstance(image, str | Path):
            return key, read_file(home_path(image))
        if isinstance(image, np.ndarray):
            return key, convert_image(Image.fromarray(_pixels(image, bgr)))
        if isinstance(image, Image.Image):
            return key, convert_image(image)
        if isinstance(image, bytes):
            return key, image
        raise _no_image_error(image)
    except ImageError as error:
        return key, error


def _no_image_error(given: object) -> DataError:
    return DataError(
        f"Expected an image (a path, bytes, a Pillow image or a pixel array), got {given!r:.40}"
        f" ({type(given).__name__}).\n"
        "  OpenCV's imread returns None for a file that it cannot read; give the path instead."
    )


def _pixels(array: npt.NDArray[np.uint8], bgr: bool) -> npt.NDArray[np.uint8]:
    """Checks pixels and returns them as RGB; gray ones stay as they are."""
    if array.dtype != np.uint8:
        raise DataError(f"The pixels are {array.dtype}; convert them to uint8, 0 to 255.")
    if array.ndim == 2:
        return array
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"The pixels have the shape {list(array.shape)}. Give one image of the shape"
            " [height, width, 3] or [height, width]."
        )
    return np.ascontiguousarray(array[:, :, ::-1]) if bgr else array


def _prediction(result: Result) -> Prediction:
    if isinstance(result, Prediction):
        return result
    raise DataError(f"{result.key}: {result.reason}.")
