"""Lists an artifact's files as subjects of a measurement; needs no torch."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.benchmarking.timing import LoadedSubject, Subject, TimedCall, host_timed
from kdedge.errors import DataError
from kdedge.records.evaluation import ParityResult
from kdedge.records.speed import Accuracy, TimedFrom
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import Backend, DeviceTimed, TakesImages, batch_limits, to_input
from kdedge.runtime.preprocess import decode_image, resize_and_crop
from kdedge.targets.registry import list_targets, load_file

# Size in pixels of the JPEG that calls from an image file decode
PHOTO_PX = (640, 480)


def artifact_subjects(
    artifact: Artifact, *, n_threads: int | None, original: Accuracy | None = None
) -> list[Subject]:
    """Returns a subject for each file whose target has a backend, on this machine or another.

    Args:
        artifact: the artifact.
        n_threads: CPU threads; None for the runtime's default.
        original: accuracy of the exported model on all its test images; None if unknown.
    """
    targets = {target.name for target in list_targets() if target.backend is not None}
    is_changed = artifact.open_classes is not None and artifact.open_classes.changes
    # All files compute one model; the export counted its operations
    operations = next((f.built_with for f in artifact.files if "gmacs" in f.built_with), {})
    return [
        Subject(
            source=artifact.name,
            model=file.name,
            protocol="cached",
            precision=file.precision,
            n_parameters=operations.get("parameters"),
            n_bytes=file.n_bytes,
            gmacs_image=operations.get("gmacs"),
            gmacs_call=0.0,
            accuracy=None
            if file.parity is None or is_changed
            else _accuracy(file.parity, original),
            gate=file.gate,
            load=functools.partial(_load, artifact, file, n_threads),
        )
        for file in artifact.files
        if file.target in targets
    ]


@contextlib.contextmanager
def _load(artifact: Artifact, file: ModelFile, n_threads: int | None) -> Iterator[LoadedModelFile]:
    with contextlib.closing(load_file(artifact, file, n_threads=n_threads)) as backend:
        yield LoadedModelFile(artifact, backend)


def _accuracy(parity: ParityResult, original: Accuracy | None) -> Accuracy:
    """A file's accuracy: the model's minus the drop, or else measured on the compared images."""
    percent = parity.accuracy_percent
    drop = parity.accuracy_drop
    test_set = parity.test_set
    images = parity.images, parity.n_labeled or parity.n_images, parity.images_hash
    same_test_set = original and test_set and original.images_hash == test_set.images_hash
    if original is not None and original.all is not None and drop is not None and same_test_set:
        percent = min(100.0, max(0.0, original.all - drop))
        source = f"{original.source}, less the drop on {parity.images}"
        images = source, original.n_images, original.images_hash
    return Accuracy(None, None, None, percent, parity.agreement_percent, *images)


class LoadedModelFile(LoadedSubject):
    """A model file on its backend.

    A backend's call takes and returns host memory. On a GPU, it is timed with the copies and, by
    the GPU's own events, without them.
    """

    def __init__(self, artifact: Artifact, backend: Backend) -> None:
        self.runtime, _, gpu = backend.describe().removesuffix(" CPU").partition(" GPU ")
        self.gpu = 0 if gpu else None
        self.batches = batch_limits(backend, artifact.batches[1])
        self.inputs = ("on device", "image file")
        if isinstance(backend, DeviceTimed):
            self.inputs = ("on device", "copied", "image file")
        self._artifact = artifact
        self._backend = backend

    def call(self, batch: int, inputs: TimedFrom) -> TimedCall:
        """Returns a call that runs random pixels, or decodes, preprocesses and runs a JPEG.

        Raises:
            DataError: the artifact's batch is larger than the one image of an image file.
        """
        backend = self._backend
        preprocess = self._artifact.preprocess
        kind = self._artifact.pixels
        if inputs == "image file":
            if batch != 1:
                raise DataError(
                    f"An image file has one image, but the artifact takes batches of {batch}."
                )
            photo = photo_bytes()

            def classify() -> npt.NDArray[np.float32]:
                image = decode_image(photo)
                if isinstance(backend, TakesImages):
                    return backend.run_image(np.asarray(image))
                pixels = np.asarray(resize_and_crop(image, preprocess))
                return backend.run(to_input(pixels[None], kind))

            return host_timed(classify)
        shape = (batch, preprocess.size_px, preprocess.size_px, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        images = to_input(pixels, kind)
        if inputs == "on device" and isinstance(backend, DeviceTimed):
            return functools.partial(backend.device_ms, images)
        return host_timed(lambda: backend.run(images))


def photo_bytes() -> bytes:
    """A JPEG of `PHOTO_PX` with the detail of a photo; the same on every machine."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(PHOTO_PX, Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 6, smooth.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()
