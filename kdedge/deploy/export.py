"""Exports a trained model to an artifact: folds it, writes ONNX files, compares each of them.

Every file is compared with the unfused float32 model on real images. A file that misses a gate
stays in the artifact and is marked in `artifact.json`. It is used only if its precision is given
explicitly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from kdedge import __version__
from kdedge.data.images import Images, spread
from kdedge.deploy.build import FoldedRun, build_file, with_parity
from kdedge.deploy.classes import write_classes
from kdedge.deploy.int8_images import CalibrationSet, choose_calibration_images, read_pixels
from kdedge.deploy.known_images import KnownImages, choose_known_images
from kdedge.deploy.model_card import with_model_card
from kdedge.deploy.parity import SMOKE_SET, predict_pixels, write_smoke_set
from kdedge.deploy.reference import Float32Reference, run_reference
from kdedge.errors import DataError
from kdedge.evaluation.flops import count_gmacs
from kdedge.files import new_folder, write_json
from kdedge.fold import FoldRequest, fold
from kdedge.fold.head import FoldedModel
from kdedge.quantization.search import search
from kdedge.runs.model import RunModel, warn_of_other_test_images
from kdedge.runtime.artifact import Artifact, Precision
from kdedge.runtime.backend import to_input
from kdedge.runtime.none_of_these import GAUSSIANS_FILE
from kdedge.runtime.open_classes import load_matrix
from kdedge.targets.base import PlannedFile
from kdedge.targets.onnx import TARGET as ONNX
from kdedge.targets.onnx import build as onnx_build
from kdedge.targets.onnx.graph import load_graph
from kdedge.targets.onnx.half import to_fp16
from kdedge.targets.onnx.insert import find_sites
from kdedge.targets.onnx.quantize import to_int8, to_int8_cpu
from kdedge.targets.onnx.trace import Tracer, write_onnx
from kdedge.targets.registry import check_can_build, load_file

log = logging.getLogger(__name__)

CALIBRATION_RECORD = "calibration.json"
# Images that choose among INT8 models and give no ranges; one image is 0.4 points
N_HELD_OUT = 256

# Images that check which layers exceed the range of FP16, if there is no calibration set
N_RANGE_IMAGES = 32


def export_artifact(
    trained: RunModel, *, precisions: Collection[Precision], output: Path | None
) -> tuple[Artifact, FoldedRun]:
    """Folds a trained model and writes its artifact, complete or not at all.

    Args:
        trained: a run that `load_run` opened.
        precisions: precisions besides fp32, which is always written.
        output: the artifact's folder, which must not exist; None: the next number in the
            run's `artifacts`.

    Returns:
        The artifact, whose provenance has the folded model's GFLOPs per image, and the inputs for
        building and comparing other targets' files.

    Raises:
        RecipeError: the folder exists, or the recipe has no images to compare with.
        InUseError: another process exports to this folder.
        DataError: images are unreadable, or there are no images for INT8 calibration.
        SetupError: a package is missing.
        ResourceError: the disk is full.
    """
    check_can_build(ONNX)
    parent = trained.run.path / "artifacts" if output is None else output
    with new_folder(parent, is_numbered=output is None) as new:
        pool = trained.images("unlabeled")
        if "int8" in precisions and (pool is None or not pool.indices):
            raise DataError(
                f"{trained.run.path}: its recipe has no unlabeled images, but INT8 needs real"
                " images for calibration.\n"
                "  Set data.unlabeled.folder=DIR, or leave INT8 out."
            )
        warn_of_other_test_images(trained, trained.images("test"))
        spec = trained.loaded.recipe.export
        reference = run_reference(trained, pool, spec.parity_images, calibrate=spec.calibrate)
        if (only := reference.only_class) is not None:
            log.warning(
                f"The model predicts {trained.class_names[only]!r} for each of {reference.images},"
                f" such as {reference.keys[0]}: files that agree with it are of no use.\n"
                "  Look whether these images are black or all the same, then at the training"
                " images."
            )
        writer = _Writer(trained, new.part, pool, reference)
        writer.write(precisions)
    return dataclasses.replace(writer.artifact, path=new.final), writer.run


class _Writer:
    """Writes and compares the files of an artifact.

    Attributes:
        artifact: the artifact with the files written so far.
        run: inputs that all targets' files are built from and compared with.
    """

    def __init__(
        self, trained: RunModel, folder: Path, pool: Images | None, reference: Float32Reference
    ) -> None:
        self._trained, self._spec = trained, trained.loaded.recipe.export
        self._pool, self._reference = pool, reference
        self._known, self._free = self._draw_images()
        model = self._fold()
        self.artifact = self._describe(folder)
        limit = None if self._known is None else self._known.file_limit
        self.run = FoldedRun(model, reference.compare, file_limit=limit)
        size = trained.preprocess.size_px
        self._gmacs = count_gmacs(model, torch.zeros(1, 3, size, size))
        self._trace = functools.partial(
            write_onnx,
            size_px=size,
            batch=self._spec.batch,
            max_batch=self._spec.max_batch,
            external_data=self._spec.external_data,
            metadata=self._metadata(),
            tracer=Tracer(),
        )

    def _draw_images(self) -> tuple[KnownImages | None, list[int]]:
        """The images for "none of these", and the unlabeled ones that are not used for anything."""
        pool, compared, share = self._pool, self._reference.digests, self._spec.none_of_these
        known = choose_known_images(self._trained, pool, share, exclude_digests=compared)
        used = compared if known is None else compared | known.digests
        free = [] if pool is None else [i for i in pool.indices if pool.digests[i] not in used]
        return known, free

    def _fold(self) -> FoldedModel:
        """The trained model as one plain graph."""
        trained, spec, reference = self._trained, self._spec, self._reference
        request = FoldRequest(
            trained.class_vectors().cpu(),
            scale=reference.scale,
            preprocess=trained.preprocess,
            head=spec.head,
            pixels=spec.pixels,
            open_classes=spec.open_classes,
            offsets=reference.offsets,
        )
        return fold(trained.method.image_modules(), request)

    def _describe(self, folder: Path) -> Artifact:
        """The artifact without files, except for the class matrix if its classes are open."""
        trained, spec, reference = self._trained, self._spec, self._reference
        only = reference.only_class
        artifact = Artifact(
            path=folder,
            name=trained.loaded.recipe.name,
            class_names=trained.class_names,
            preprocess=trained.preprocess,
            pixels=spec.pixels,
            head=spec.head,
            max_batch=spec.max_batch if spec.batch == "dynamic" else spec.batch,
            batch=spec.batch,
            gates=trained.loaded.recipe.gates.as_record(),
            provenance={
                "kdedge": __version__,
                **trained.provenance(),
                **({} if only is None else {"predicts_only": trained.class_names[only]}),
            },
            temperature=reference.temperature,
        )
        if not spec.open_classes:
            return artifact
        vectors = reference.vectors(trained.class_vectors().cpu().numpy())
        return write_classes(artifact, vectors, scale=reference.scale)

    def write(self, precisions: Collection[Precision]) -> None:
        """Writes all files, and `artifact.json` last."""
        pixels = self._spec.pixels
        reference = self._reference
        folder = self.artifact.path
        source = folder / onnx_build.FLOAT32.name
        self._add(onnx_build.FLOAT32, lambda path: self._trace(self.run.model, path), tool="torch")
        if self._known is not None:
            listed = self.artifact.with_others(GAUSSIANS_FILE)
            self.artifact = dataclasses.replace(listed, none_of_these=self._known.about)
        if "int8" in precisions:
            ranges, held_out = self._calibration_set().hold_out(N_HELD_OUT)
            record = {**ranges.record(), "held_out": held_out.record()}
            write_json(folder / CALIBRATION_RECORD, record)
            self.artifact = self.artifact.with_others(CALIBRATION_RECORD)
            images = to_input(ranges.pixels, pixels)
            self.run = dataclasses.replace(self.run, calibration=images)
        if "fp16" in precisions:
            images = self._range_images()
            self._add(onnx_build.FP16, lambda path: to_fp16(source, path, images=images))
        if "int8" in precisions:
            self._add_int8(source, to_input(held_out.pixels, pixels))
        shown = reference.smoke_set
        name = self.artifact.output_name
        write_smoke_set(
            folder / SMOKE_SET, shown.pixels, shown.logits, shown.images, output_name=name
        )
        gflops = {"folded": 2 * self._gmacs}
        provenance = {**self.artifact.provenance, "gflops": gflops}  # not in file metadata
        listed = self.artifact.with_others(SMOKE_SET)
        self.artifact = with_model_card(dataclasses.replace(listed, provenance=provenance))
        self.artifact.save()

    def _metadata(self) -> dict[str, Any]:
        """Metadata of an ONNX file, for readers who do not have its artifact."""
        artifact = self.artifact
        classes: dict[str, Any] = {"class_names": list(artifact.class_names)}
        if artifact.open_classes is not None:  # the file next to the graph changes
            classes = {"classes": "artifact.json has their names, classes.N.npy their vectors"}
        return {
            **classes,
            "normalization": "in graph",
            "normalized": self.run.model.normalization,
            **artifact.input_record(),
            "head": artifact.head,
            "kdedge": __version__,
            "provenance": artifact.provenance,
        }

    def _add_int8(self, float32: Path, held_out: npt.NDArray[Any]) -> None:
        """Searches for the best INT8 model, and writes its files from float graphs of it."""
        images = self.run.calibration
        gate = self.artifact.gates["agreement"]["int8"]
        assert images is not None
        is_open = self._spec.open_classes
        # The best of several candidates is better on the images that chose it than on other images:
        # the search goes on until half-way from the gate to 100 %. Layers in float cost speed, so
        # leaving them ends at a quarter of the way.
        best, record = search(
            self.run.model,
            find_sites(load_graph(float32), self.run.model),
            torch.from_numpy(images),
            torch.from_numpy(held_out),
            target_percent=(gate + 100) / 2,
            enough_percent=gate + (100 - gate) / 4,
            minutes=self._spec.int8_minutes,
            class_matrix=torch.tensor(load_matrix(self.artifact)) if is_open else None,
        )
        with tempfile.TemporaryDirectory(dir=self.artifact.path, prefix=".int8.") as scratch:
            graph, exact = Path(scratch) / "model.onnx", Path(scratch) / "exact.onnx"
            self._trace(best.model, graph)
            self._add(
                onnx_build.INT8,
                lambda path: to_int8(graph, path, calibration=images, layers=best.layers),
                search=record,
            )
            # Centers and corrected biases are for fixed ranges; CPU files compute a range per call
            self._trace(best.exact, exact)
            self._add(
                onnx_build.INT8_CPU, lambda path: to_int8_cpu(exact, path, calibration=images)
            )

    def _range_images(self) -> npt.NDArray[Any]:
        """A few images as graph inputs, from the calibration set if there is one."""
        if self.run.calibration is not None:
            return self.run.calibration[:N_RANGE_IMAGES]
        if self._pool is not None and self._free:
            some = [self._free[i] for i in spread(len(self._free), N_RANGE_IMAGES)]
            pixels = read_pixels(self._pool.source, some, self.artifact.preprocess)
        else:  # used for ranges of FP16 only: no choice is made by agreement on them
            compared = self._reference.outputs.pixels
            pixels = compared[spread(len(compared), N_RANGE_IMAGES)]
        return to_input(pixels, self._spec.pixels)

    def _calibration_set(self) -> CalibrationSet:
        """Unlabeled images, spread over the classes that the float32 file predicts."""
        pool = self._pool
        assert pool is not None  # checked before anything was written
        with contextlib.closing(load_file(self.artifact, self.artifact.files[0])) as backend:
            return choose_calibration_images(
                pool.source,
                {index: pool.digests[index] for index in self._free},
                n_images=self._spec.calibration_images + N_HELD_OUT,
                seed=self._trained.loaded.recipe.seed,
                predict=lambda pixels: predict_pixels(backend, pixels, self.artifact),
                preprocess=self.artifact.preprocess,
            )

    def _add(
        self,
        file: PlannedFile,
        write: Callable[[Path], object],
        *,
        tool: str = "kdedge",
        **facts: Any,
    ) -> None:
        """Writes one file, compares it with the unfused model, and lists it with its facts."""
        model, path = self.run.model, self.artifact.path / file.name

        def build() -> dict[str, Any]:
            write(path)
            return {
                "tool": tool,
                "version": __version__ if tool == "kdedge" else version(tool),
                "normalized": model.normalization,
                "gmacs": self._gmacs,
                "parameters": sum(values.numel() for values in model.state_dict().values()),
                **facts,
            }

        artifact, entry = build_file(self.artifact, ONNX, file, build)
        self.artifact = artifact.with_files(with_parity(artifact, ONNX, entry, self.run))
