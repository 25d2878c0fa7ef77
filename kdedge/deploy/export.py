"""A trained model to an artifact: fold, ONNX in each precision, proof of what each file costs.

Every file is compared with the unfused float32 model on real images. A file that misses a gate
stays in the artifact and is marked: whoever reads `artifact.json` sees it, and the runtime refuses
it unless it is asked for by name.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdedge import __version__
from kdedge._files import sha256_file, write_json
from kdedge._folders import new_folder
from kdedge._progress import progress
from kdedge.config.recipe import ExportSpec, GatesSpec
from kdedge.deploy import _modelopt
from kdedge.deploy.calibrate import CalibrationSet, choose_calibration_images
from kdedge.deploy.fold import FoldedModel, fold
from kdedge.deploy.half import to_fp16
from kdedge.deploy.onnx_counts import count
from kdedge.deploy.parity import (
    MAX_SMOKE_IMAGES,
    SMOKE_SET,
    misses,
    predict_pixels,
    write_smoke_set,
)
from kdedge.deploy.pixels import read_pixels, spread
from kdedge.deploy.quantize import to_int8, to_int8_cpu
from kdedge.deploy.targets import onnx as onnx_target
from kdedge.errors import DataError, RecipeError
from kdedge.evaluation.agreement import compare
from kdedge.evaluation.flops import count_gmacs
from kdedge.runs.model import RunModel
from kdedge.runtime.artifact import Artifact, Device, ModelFile, Precision
from kdedge.runtime.backends import onnxruntime as onnxruntime_backend
from kdedge.runtime.classify import to_input
from kdedge.runtime.preprocess import normalize
from kdedge.setup.images import Images

log = logging.getLogger(__name__)

CALIBRATION_RECORD = "calibration.json"
N_RANGE_IMAGES = 32
"""Images that show which layers leave the range of FP16, where no calibration set is chosen."""

_BATCH = 32
"""Images a time where the unfused model runs."""


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        artifact: written and complete.
        model: the folded model, for targets that need it and not its files.
        gflops: operations an image (2 a multiply-add) of CLIP's bare image encoder, of the model
            as it was trained, and of the folded one.
    """

    artifact: Artifact
    model: FoldedModel
    gflops: dict[str, float]


def export_artifact(
    trained: RunModel,
    *,
    spec: ExportSpec,
    gates: GatesSpec,
    precisions: Collection[Precision],
    output: Path | None = None,
) -> Exported:
    """Folds a trained model and writes its artifact, whole or not at all.

    Args:
        trained: from `load_run`.
        spec: the recipe's `export`.
        gates: the recipe's `gates`.
        precisions: beside fp32, which is always written; int8 brings fp16 with it.
        output: the artifact's folder, which must not exist; the next number under the run's
            `artifacts` where none is given.

    Raises:
        RecipeError: the folder exists, or the recipe has no images to compare with.
        DataError: images are unreadable, or INT8 is wanted and there are none to calibrate with.
        ResourceError: the disk is full.
    """
    onnx_target.check_environment()
    onnxruntime_backend.check_environment()
    if "int8" in precisions:
        _modelopt.check_environment()
    if output is not None and output.exists():
        raise RecipeError(f"{output} exists, and nothing is overwritten.\n  Name another folder.")
    pool = trained.images("unlabeled")
    if "int8" in precisions and (pool is None or not pool.indices):
        raise DataError(
            f"{trained.run.path}: its recipe has no unlabeled images, and INT8 needs real ones to"
            " choose its ranges.\n  Add data.unlabeled, as in --set data.unlabeled.folder=DIR, or"
            " leave INT8 out."
        )
    model = fold(
        trained.image_path(),
        trained.vectors.vectors,
        scale=trained.scale,
        preprocess=trained.preprocess,
        head=spec.head,
        pixels=spec.pixels,
    )
    reference = _answer(trained, pool, spec.parity_images)
    parent = trained.run.path / "artifacts" if output is None else output
    with new_folder(parent, is_numbered=output is None) as (part, place):
        writer = _Writer(trained, part, spec=spec, gates=gates, reference=reference)
        writer.write(model, pool, precisions)
    artifact = dataclasses.replace(writer.artifact, path=place())
    return Exported(artifact, model, _gflops(trained, model))


@dataclass(frozen=True)
class _Reference:
    """The unfused float32 model's answers on real images.

    Attributes:
        pixels: [N, S, S, 3], uint8.
        logits: [N, C].
        keys: names of the images.
        labels: their classes in the exported list, where they are known and in it.
        images: what they are, in words.
        digests: SHA-256 of the files that calibration must not see.
    """

    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]
    images: str
    digests: frozenset[str]


def _answer(trained: RunModel, pool: Images | None, n_images: int) -> _Reference:
    """Runs the unfused model on test images, or on unlabeled ones where there are no others."""
    test = trained.images("test")
    images = pool if test is None else test
    if images is None or not images.indices:
        raise RecipeError(
            f"{trained.run.path}: its recipe has no images, and exported files are compared with"
            " the model on real ones.\n"
            "  Add some, as in --set data.test.folder=DIR or --set data.unlabeled.folder=DIR."
        )
    if test is None:  # half of them are left to choose ranges from
        n_images = min(n_images, max(1, len(images.indices) // 2))
    chosen = images.only([images.indices[i] for i in spread(len(images.indices), n_images)])
    pixels = read_pixels(chosen.source, chosen.indices, trained.preprocess)
    kept_out = chosen if test is None else images
    return _Reference(
        pixels=pixels,
        logits=_unfused_logits(trained, pixels),
        keys=tuple(chosen.source.items[index].key for index in chosen.indices),
        labels=tuple(trained.labels_of(chosen)),
        images=f"{len(chosen.indices)} of {len(images.indices)} images of"
        f" data.{'unlabeled' if test is None else 'test'}",
        digests=frozenset(kept_out.digests[index] for index in kept_out.indices),
    )


@torch.no_grad()
def _unfused_logits(trained: RunModel, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """[N, S, S, 3] -> [N, C]: the model as it was trained and evaluated."""
    preprocess, device = trained.preprocess, trained.device
    vectors = trained.vectors.vectors.to(device)
    logits = []
    with progress("running the unfused model", len(pixels)) as advance:
        for start in range(0, len(pixels), _BATCH):
            batch = np.stack([normalize(image, preprocess) for image in pixels[start:][:_BATCH]])
            features = trained.forward_features(torch.from_numpy(batch).to(device))
            logits.append((trained.scale * features @ vectors.T).cpu().numpy())
            advance(start + len(batch))
    return np.concatenate(logits)


class _Writer:
    """An artifact while its files are written and compared.

    Attributes:
        artifact: what is in the folder so far.
    """

    def __init__(
        self,
        trained: RunModel,
        folder: Path,
        *,
        spec: ExportSpec,
        gates: GatesSpec,
        reference: _Reference,
    ) -> None:
        self._trained = trained
        self._folder = folder
        self._spec = spec
        self._gates = gates
        self._reference = reference
        self.artifact = Artifact(
            path=folder,
            name=trained.setup.loaded.recipe.name,
            class_names=trained.class_names,
            preprocess=trained.preprocess,
            pixels=spec.pixels,
            head=spec.head,
            max_batch=spec.max_batch if spec.batch == "dynamic" else spec.batch,
            batch=spec.batch,
            gates=gates.as_record(),
            provenance={"kdedge": __version__, **trained.provenance()},
        )

    def write(
        self, model: FoldedModel, pool: Images | None, precisions: Collection[Precision]
    ) -> None:
        """Writes every file, the record of them last."""
        first = self._folder / "model.onnx"
        export = partial(
            onnx_target.export,
            model,
            size_px=self.artifact.preprocess.size_px,
            batch=self._spec.batch,
            max_batch=self._spec.max_batch,
            external_data=self._spec.external_data,
            metadata=self._metadata(),
        )
        self._add(first.name, "fp32", "any", export, tool="torch")
        if "int8" in precisions:
            assert pool is not None  # checked before anything was written
            chosen = self._calibration_set(first, pool)
            record = self._folder / CALIBRATION_RECORD
            write_json(record, chosen.record())
            self._keep(record)
            images = to_input(chosen.pixels, self._spec.pixels)
            self._add_fp16(first, images[:N_RANGE_IMAGES])
            make_int8 = partial(to_int8, first, calibration=images)
            self._add("model.int8.onnx", "int8", "gpu", make_int8, tool="nvidia-modelopt")
            make_cpu = partial(to_int8_cpu, first, calibration=images)
            self._add("model.int8-cpu.onnx", "int8", "cpu", make_cpu, tool="kdedge")
        elif "fp16" in precisions:
            self._add_fp16(first, self._range_images(pool))
        smoke = self._folder / SMOKE_SET
        some = spread(len(self._reference.pixels), MAX_SMOKE_IMAGES)
        write_smoke_set(smoke, self._reference.pixels[some], self._reference.logits[some])
        self._keep(smoke)
        self.artifact.save()

    def _metadata(self) -> dict[str, Any]:
        """What an ONNX file says of itself, for those who find it without its artifact."""
        artifact = self.artifact
        return {
            "class_names": list(artifact.class_names),
            "preprocess": artifact.preprocess.as_dict(),
            "pixels": artifact.pixels,
            "head": artifact.head,
            "kdedge": __version__,
            "provenance": artifact.provenance,
        }

    def _add_fp16(self, model: Path, images: npt.NDArray[Any]) -> None:
        make = partial(to_fp16, model, images=images)
        self._add("model.fp16.onnx", "fp16", "gpu", make, tool="kdedge")

    def _range_images(self, pool: Images | None) -> npt.NDArray[Any]:
        """A few images, as the graph takes them: unlabeled ones where there are any."""
        free = [] if pool is None else self._free(pool)
        if pool is not None and free:
            some = [free[i] for i in spread(len(free), N_RANGE_IMAGES)]
            pixels = read_pixels(pool.source, some, self.artifact.preprocess)
        else:  # they tell what would overflow, and choose nothing by its answer
            compared = self._reference.pixels
            pixels = compared[spread(len(compared), N_RANGE_IMAGES)]
        return to_input(pixels, self._spec.pixels)

    def _free(self, pool: Images) -> list[int]:
        """Unlabeled images that no file is compared on."""
        return [i for i in pool.indices if pool.digests[i] not in self._reference.digests]

    def _calibration_set(self, model: Path, pool: Images) -> CalibrationSet:
        """Unlabeled images, spread over the classes that the float32 file predicts."""
        backend = onnxruntime_backend.load(model)
        try:
            return choose_calibration_images(
                pool.source,
                {index: pool.digests[index] for index in self._free(pool)},
                n_images=self._spec.calibration_images,
                seed=self._trained.setup.loaded.recipe.seed,
                predict=lambda pixels: predict_pixels(backend, pixels, self.artifact),
                preprocess=self.artifact.preprocess,
            )
        finally:
            backend.close()

    def _add(
        self,
        name: str,
        precision: Precision,
        device: Device,
        make: Callable[[Path], None],
        *,
        tool: str,
    ) -> None:
        """Makes a file, compares it with the unfused model and lists it."""
        path = self._folder / name
        log.info("Writing %s.", name)
        began = time.monotonic()
        make(path)
        seconds = time.monotonic() - began
        data = path.with_name(f"{name}.data")
        n_bytes = path.stat().st_size
        if data.exists():
            self._keep(data)
            n_bytes += data.stat().st_size
        reference = self._reference
        backend = onnxruntime_backend.load(path)
        try:
            logits = predict_pixels(backend, reference.pixels, self.artifact, what=name)
            parity = compare(
                reference.logits,
                logits,
                keys=reference.keys,
                labels=reference.labels,
                class_names=self.artifact.class_names,
                images=reference.images,
                runtime=backend.describe(),
                head=self.artifact.head,
            )
        finally:
            backend.close()
        missed = misses(parity, precision, self.artifact.gates)
        entry = ModelFile(
            name=name,
            target="onnx",
            precision=precision,
            device=device,
            sha256=sha256_file(path),
            n_bytes=n_bytes,
            data=data.name if data.exists() else None,
            built_with={
                "tool": tool,
                "version": version(tool),
                "seconds": round(seconds, 2),
                **count(path),
            },
            parity=parity,
            gate="missed" if missed else "passed",
        )
        self.artifact = self.artifact.with_files(entry)

    def _keep(self, path: Path) -> None:
        """Lists a file that no backend runs by itself."""
        others = {**self.artifact.others, path.name: sha256_file(path)}
        self.artifact = dataclasses.replace(self.artifact, others=others)


def _gflops(trained: RunModel, model: FoldedModel) -> dict[str, float]:
    """Operations an image before and after, in GFLOPs."""
    size = trained.preprocess.size_px
    images = torch.zeros(1, 3, size, size, device=trained.device)
    vectors = trained.class_vectors()
    return {
        "clip_image_encoder": 2 * count_gmacs(trained.backbone.visual, images),
        "unfused": 2
        * count_gmacs(lambda batch: trained.forward_features(batch) @ vectors.T, images),
        "folded": 2 * count_gmacs(model, images.cpu()),
    }
