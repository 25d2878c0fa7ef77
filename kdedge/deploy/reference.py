"""The reference for exported files: logits of the unfolded model on real images."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from kdedge.artifacts.parity import MAX_SMOKE_IMAGES, SmokeSet, predict_each_way
from kdedge.data.images import Images, spread
from kdedge.deploy.pixels import read_images, read_pixels
from kdedge.errors import RecipeError
from kdedge.evaluation.accuracy import calibration_error_percent
from kdedge.inference.agreement import measure_parity
from kdedge.loading.decoding import normalizer
from kdedge.loading.loader import images_per_pass
from kdedge.progress import progress
from kdedge.records.evaluation import ParityResult, TestSet
from kdedge.runs.model import RunModel
from kdedge.runs.temperature import fit_temperature
from kdedge.runtime.artifact import Artifact, Temperature
from kdedge.runtime.backend import Backend
from kdedge.runtime.preprocess import MAX_ASPECT, resize_and_crop

_BATCH = 32  # batch size of the unfolded model

_N_UNCROPPED = 16
# Number of images that the smoke set has before resize and crop, and their longest side: 10 MB of
# photos, enough to see whether another program resizes and crops as kdedge does
_UNCROPPED_PX = 640


class _CalibrationErrors(NamedTuple):
    """Expected calibration errors in percent; both None without a temperature or labels."""

    before: float | None
    after: float | None


class ReferenceOutputs(NamedTuple):
    """Images after resize and crop, [N, S, S, 3], and the unfolded model's outputs for them.

    Logits are [N, C]. Features are [N, D], of unit length; with offsets [N, D + 1], the last is 1.
    """

    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Float32Reference:
    """The unfolded float32 model's logits on real images.

    Attributes:
        chosen: the images.
        outputs: their outputs.
        smoke_set: images for the artifact: some images before resize and crop, then other images,
            evenly spaced. With open classes it has features instead of logits.
        keys: keys of the images.
        labels: positions of their classes in the exported list; None if unknown or not in it.
        images: description of the images, for messages.
        digests: SHA-256 of the files that calibration must not use.
        images_hash: hash of these images and the exported class list.
        test_set: the test images they were chosen from; None for unlabeled images.
        scale: `logit_scale.exp()`, divided by the temperature.
        offsets: [C], divided by the temperature; subtracted from the logits. None for no offsets.
        temperature: the temperature; None if none was fitted.
    """

    chosen: Images
    outputs: ReferenceOutputs
    smoke_set: SmokeSet
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]
    images: str
    digests: frozenset[str]
    images_hash: str
    test_set: TestSet | None
    scale: float
    offsets: torch.Tensor | None
    temperature: Temperature | None

    def vectors(self, class_vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Class vectors that match the features of a graph with open classes: [C, D or D + 1].

        With offsets, the last feature is 1, and `scale` times the last column is minus the offset.
        """
        if self.offsets is None:
            return class_vectors
        column = -self.offsets.double().cpu().numpy() / self.scale
        return np.concatenate([class_vectors, column[:, None].astype(np.float32)], axis=1)

    def compare(self, artifact: Artifact, backend: Backend) -> ParityResult:
        """Runs one of the artifact's files on the images, in batches and alone, and compares it.

        A file with preprocessing runs on the images as they are.
        """
        images = read_images(self.chosen.source, self.chosen.indices)
        logits = predict_each_way(backend, self.outputs.pixels, artifact, images)
        parity = measure_parity(
            self.outputs.logits,
            logits,
            keys=self.keys,
            labels=self.labels,
            class_names=artifact.class_names,
            images=self.images,
            runtime=backend.describe(),
            head=artifact.head,
        )
        errors = self._calibration_errors(logits)
        return replace(
            parity,
            images_hash=self.images_hash,
            test_set=self.test_set,
            ece_percent=errors.after,
            ece_percent_before=errors.before,
        )

    @property
    def only_class(self) -> int | None:
        """The class predicted for every image, if the images are not all labeled with one class."""
        predicted = set(self.outputs.logits.argmax(axis=1).tolist())
        is_suspect = len(self.labels) > 1 and len(set(self.labels) - {None}) != 1
        return predicted.pop() if is_suspect and len(predicted) == 1 else None

    def _calibration_errors(self, logits: npt.NDArray[np.float32]) -> _CalibrationErrors:
        """The calibration errors of a file's logits [N, C], before and after the temperature."""
        known = [i for i, label in enumerate(self.labels) if label is not None]
        rows = [i for i in known if np.isfinite(logits[i]).all()]
        if self.temperature is None or not rows:
            return _CalibrationErrors(None, None)
        labels = torch.tensor([self.labels[i] for i in rows])
        calibrated = torch.from_numpy(logits[rows])
        original = self.temperature.value * calibrated
        return _CalibrationErrors(
            before=calibration_error_percent(original, labels),
            after=calibration_error_percent(calibrated, labels),
        )


def run_reference(
    trained: RunModel, pool: Images | None, n_images: int, *, calibrate: bool
) -> Float32Reference:
    """Runs the unfolded model on test images, or on unlabeled images if there are no test images.

    Args:
        trained: the model and its recipe.
        pool: the recipe's unlabeled images; None if it has none.
        n_images: number of images, spread evenly; at most half of the unlabeled images.
        calibrate: fit a temperature to other images, and divide the scale by it.

    Raises:
        RecipeError: there are no images.
        DataError: there are no images to fit the temperature to, or no teacher.
    """
    test = trained.images.load("test")
    images = pool if test is None else test
    if images is None or not images.indices:
        raise RecipeError(
            f"{trained.run.path}: its recipe has no images, but exported files are compared with"
            " the model on real images.\n"
            "  Set data.test.folder=DIR or data.unlabeled.folder=DIR."
        )
    test_set = None
    if test is not None:
        test_set = TestSet(len(test.indices), test.hash_with(trained.class_names))
    else:  # half of the images are left for calibration
        n_images = min(n_images, max(1, len(images.indices) // 2))
    chosen = images.spread(n_images)
    excluded = chosen if test is None else images
    digests = frozenset(excluded.digests[index] for index in excluded.indices)
    temperature = fit_temperature(trained, exclude_digests=digests) if calibrate else None
    divisor = 1.0 if temperature is None else temperature.value
    scale = trained.scale / divisor
    offsets = None if trained.offsets is None else trained.offsets / divisor
    pixels = read_pixels(chosen.source, chosen.indices, trained.preprocess)
    outputs = _run_unfolded(trained, pixels, scale, offsets)
    uncropped = _uncropped_images(trained, chosen)
    cropped = _run_unfolded(trained, uncropped.pixels, scale, offsets)
    sample = spread(len(pixels), MAX_SMOKE_IMAGES - len(uncropped.files))
    if trained.recipe.export.open_classes:
        values = np.concatenate([cropped.features, outputs.features[sample]])
    else:
        values = np.concatenate([cropped.logits, outputs.logits[sample]])
    source = "unlabeled" if test is None else "test"
    return Float32Reference(
        chosen=chosen,
        outputs=outputs,
        smoke_set=SmokeSet(
            np.concatenate([uncropped.pixels, pixels[sample]]), values, uncropped.files
        ),
        keys=tuple(chosen.source.items[index].key for index in chosen.indices),
        labels=tuple(trained.labels_of(chosen)),
        images=f"{len(chosen.indices)} of {len(images.indices)} images of data.{source}",
        digests=digests,
        images_hash=chosen.hash_with(trained.class_names),
        test_set=test_set,
        scale=scale,
        offsets=offsets,
        temperature=temperature,
    )


@dataclass(frozen=True)
class _Uncropped:
    """Images before and after resize and crop.

    Attributes:
        files: PNG files without metadata, before.
        pixels: [N, S, S, 3], after.
    """

    files: tuple[bytes, ...]
    pixels: npt.NDArray[np.uint8]


def _uncropped_images(trained: RunModel, chosen: Images) -> _Uncropped:
    """Some of the images before resize and crop.

    All images of a camera often have one shape. So of each three images, the second is cut to be
    taller and the third to be wider.
    """
    sample = [chosen.indices[i] for i in spread(len(chosen.indices), _N_UNCROPPED)]
    files = []
    pixels = []
    for number, original in enumerate(read_images(chosen.source, sample)):
        height, width = original.shape[:2]
        if number % 3 == 1:
            width -= width // 3
        elif number % 3 == 2:
            height -= height // 3
        image = Image.fromarray(original[:height, :width])
        image.thumbnail((_UNCROPPED_PX, _UNCROPPED_PX))
        longest = MAX_ASPECT * min(image.size)  # the cut, or its rounding, may exceed the limit
        image = image.crop((0, 0, min(image.width, longest), min(image.height, longest)))
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
        pixels.append(np.asarray(resize_and_crop(image, trained.preprocess)))
    return _Uncropped(tuple(files), np.stack(pixels))


@torch.no_grad()
def _run_unfolded(
    trained: RunModel, pixels: npt.NDArray[np.uint8], scale: float, offsets: torch.Tensor | None
) -> ReferenceOutputs:
    """Runs the model as trained, with this scale and these offsets."""
    device = trained.device
    normalize = normalizer(trained.preprocess, device)
    vectors = trained.class_vectors()
    logits = []
    all_features = []
    with progress("running the unfolded model", len(pixels), unit="images") as advance:
        size = images_per_pass(_BATCH, device)
        for start in range(0, len(pixels), size):
            batch = torch.from_numpy(pixels[start:][:size])
            features = trained.forward_features(normalize(batch))
            batch_logits = scale * features @ vectors.T
            if offsets is not None:
                batch_logits = batch_logits - offsets
                features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
            logits.append(batch_logits.cpu().numpy())
            all_features.append(features.cpu().numpy())
            advance(start + len(batch))
    return ReferenceOutputs(pixels, np.concatenate(logits), np.concatenate(all_features))
