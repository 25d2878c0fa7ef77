"""Exports a trained model to an artifact: folds it, writes ONNX files, compares each of them.

Every file is compared with the unfolded float32 model on real images. A file that misses a gate
stays in the artifact and is marked in `artifact.json`. It is used only if its precision is given
explicitly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Mapping, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdedge import __version__
from kdedge.artifacts.build import ExportInputs, build_file, with_parity
from kdedge.artifacts.classes import write_classes
from kdedge.artifacts.model_card import write_model_card
from kdedge.artifacts.parity import SMOKE_SET, predict_pixels, write_smoke_set
from kdedge.builders.onnx.insert import find_sites
from kdedge.builders.onnx.quantize import to_int8, to_int8_cpu
from kdedge.builders.onnx.trace import Tracer, write_onnx
from kdedge.data.images import Images, spread
from kdedge.deploy.int8_images import CalibrationSet, choose_calibration_images
from kdedge.deploy.known_images import choose_known_images
from kdedge.deploy.pixels import read_pixels
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
from kdedge.targets.registry import check_can_build, load_file

log = logging.getLogger(__name__)

CALIBRATION_RECORD = "calibration.json"
# Images that choose among INT8 models and give no ranges; one image is 0.4 points
N_HELD_OUT = 256

# Images that check which layers exceed the range of FP16, if there is no calibration set
N_RANGE_IMAGES = 32


def export_artifact(
    trained: RunModel, *, required: Set[Precision], optional: Set[Precision], output: Path | None
) -> tuple[Artifact, ExportInputs]:
    """Folds a trained model and writes its artifact, complete or not at all.

    Args:
        trained: a run that `load_run` opened.
        required: precisions besides fp32, which is always written.
        optional: more precisions, left out if no unlabeled image is left for INT8 calibration.
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
        pool = trained.images.load("unlabeled")
        if "int8" in required and (pool is None or not pool.indices):
            raise DataError(
                f"{trained.run.path}: its recipe has no unlabeled images, but INT8 needs real"
                " images for calibration.\n"
                "  Set data.unlabeled.folder=DIR, or leave INT8 out."
            )
        warn_of_other_test_images(trained, trained.images.load("test"))
        spec = trained.recipe.export
        reference = run_reference(trained, pool, spec.parity_images, calibrate=spec.calibrate)
        if (only := reference.only_class) is not None:
            log.warning(
                f"The model predicts {trained.class_names[only]!r} for each of {reference.images},"
                f" such as {reference.keys[0]}: files that agree with it are of no use.\n"
                "  Look whether these images are black or all the same, then at the training"
                " images."
            )
        artifact, inputs = _write_files(trained, new.part, pool, reference, required, optional)
    return dataclasses.replace(artifact, path=new.final), inputs


def _write_files(
    trained: RunModel,
    folder: Path,
    pool: Images | None,
    reference: Float32Reference,
    required: Set[Precision],
    optional: Set[Precision],
) -> tuple[Artifact, ExportInputs]:
    """Writes and compares all files, and writes `artifact.json` last."""
    spec = trained.recipe.export
    size = trained.preprocess.size_px
    compared = reference.digests
    known = choose_known_images(trained, pool, spec.none_of_these, exclude_digests=compared)
    used = compared if known is None else compared | known.digests
    unused = pool and pool.only([i for i in pool.indices if pool.digests[i] not in used])
    has_unused = unused is not None and bool(unused.indices)
    precisions = required | optional if has_unused else required
    model = _fold(trained, reference)
    artifact = _without_files(trained, reference, folder)
    limit_of = None if known is None else known.limit_of
    inputs = ExportInputs(model, reference.compare, limit_of=limit_of)
    gmacs = count_gmacs(model, torch.zeros(1, 3, size, size))
    trace = functools.partial(
        write_onnx,
        size_px=size,
        batches=artifact.batches,
        external_data=spec.external_data,
        metadata=_metadata(artifact, model),
        tracer=Tracer(),
    )
    facts = {
        "normalized": model.normalization,
        "gmacs": gmacs,
        "parameters": sum(values.numel() for values in model.state_dict().values()),
    }
    by_torch = {"tool": "torch", "version": version("torch"), **facts}
    by_kdedge = {"tool": "kdedge", "version": __version__, **facts}
    float32 = folder / onnx_build.FLOAT32.name
    write = functools.partial(trace, model)
    artifact = _write_file(artifact, onnx_build.FLOAT32, write, inputs, by_torch)
    if known is not None:
        listed = artifact.with_others(GAUSSIANS_FILE)
        artifact = dataclasses.replace(listed, none_of_these=known.about)
    if "int8" in precisions:
        assert unused is not None  # checked before anything was written
        chosen = _calibration_set(trained, artifact, unused)
        ranges, held_out = chosen.hold_out(N_HELD_OUT, spec.calibration_images)
        write_json(folder / CALIBRATION_RECORD, {**ranges.record(), "held_out": held_out.record()})
        artifact = artifact.with_others(CALIBRATION_RECORD)
        inputs = dataclasses.replace(inputs, calibration=to_input(ranges.pixels, spec.pixels))
    if "fp16" in precisions:
        images = inputs.calibration
        if images is None:
            images = to_input(_range_pixels(trained, unused, reference), spec.pixels)
        write = functools.partial(to_fp16, float32, images=images[:N_RANGE_IMAGES])
        artifact = _write_file(artifact, onnx_build.FP16, write, inputs, by_kdedge)
    if "int8" in precisions:
        choosing = to_input(held_out.pixels, spec.pixels)
        artifact = _with_int8(artifact, inputs, choosing, trace, by_kdedge, spec.int8_minutes)
    write_smoke_set(folder / SMOKE_SET, reference.smoke_set, artifact.output_name)
    provenance = {**artifact.provenance, "gflops": {"folded": 2 * gmacs}}  # not in file metadata
    listed = artifact.with_others(SMOKE_SET)
    artifact = write_model_card(dataclasses.replace(listed, provenance=provenance))
    artifact.save()
    return artifact, inputs


def _fold(trained: RunModel, reference: Float32Reference) -> FoldedModel:
    """The trained model as one plain graph."""
    spec = trained.recipe.export
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


def _without_files(trained: RunModel, reference: Float32Reference, folder: Path) -> Artifact:
    """The artifact without files, except for the class matrix if its classes are open."""
    spec = trained.recipe.export
    only = reference.only_class
    artifact = Artifact(
        path=folder,
        name=trained.recipe.name,
        class_names=trained.class_names,
        preprocess=trained.preprocess,
        pixels=spec.pixels,
        head=spec.head,
        max_batch=spec.max_batch if spec.batch == "dynamic" else spec.batch,
        batch=spec.batch,
        gates=trained.recipe.gates.to_gates(),
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


def _metadata(artifact: Artifact, model: FoldedModel) -> dict[str, Any]:
    """Metadata of an ONNX file, for readers who do not have its artifact."""
    classes: dict[str, Any] = {"class_names": list(artifact.class_names)}
    if artifact.open_classes is not None:  # the file next to the graph changes
        classes = {"classes": "artifact.json has their names, classes.N.npy their vectors"}
    return {
        **classes,
        "normalization": "in graph",
        "normalized": model.normalization,
        **artifact.input_record(),
        "head": artifact.head,
        "kdedge": __version__,
        "provenance": artifact.provenance,
    }


def _write_file(
    artifact: Artifact,
    file: PlannedFile,
    write: Callable[[Path], object],
    inputs: ExportInputs,
    facts: Mapping[str, Any],
) -> Artifact:
    """Writes one file, compares it with the unfolded model, and lists it with the facts."""
    path = artifact.path / file.name

    def build() -> Mapping[str, Any]:
        write(path)
        return facts

    artifact, entry = build_file(artifact, ONNX, file, build)
    return artifact.with_files(with_parity(artifact, ONNX, entry, inputs))


def _calibration_set(trained: RunModel, artifact: Artifact, unused: Images) -> CalibrationSet:
    """Unlabeled images, spread over the classes that the artifact's float32 file predicts."""
    recipe = trained.recipe
    with contextlib.closing(load_file(artifact, artifact.files[0])) as backend:
        return choose_calibration_images(
            unused.source,
            {index: unused.digests[index] for index in unused.indices},
            n_images=recipe.export.calibration_images + N_HELD_OUT,
            seed=recipe.seed,
            predict=lambda pixels: predict_pixels(backend, pixels, artifact),
            preprocess=artifact.preprocess,
        )


def _range_pixels(
    trained: RunModel, unused: Images | None, reference: Float32Reference
) -> npt.NDArray[np.uint8]:
    """A few images, [N, S, S, 3], for the ranges of FP16 where there is no calibration set."""
    if unused is not None and unused.indices:
        some = unused.spread(N_RANGE_IMAGES)
        return read_pixels(some.source, some.indices, trained.preprocess)
    compared = reference.outputs.pixels  # no choice is made by the agreement on them
    return compared[spread(len(compared), N_RANGE_IMAGES)]


def _with_int8(
    artifact: Artifact,
    inputs: ExportInputs,
    held_out: npt.NDArray[Any],
    trace: Callable[[nn.Module, Path], object],
    facts: Mapping[str, Any],
    minutes: float,
) -> Artifact:
    """Searches for the best INT8 model, and writes its files from float graphs of it."""
    images = inputs.calibration
    gate = artifact.gates.agreement["int8"]
    assert images is not None
    is_open = artifact.open_classes is not None
    # The best of several candidates is better on the images that chose it than on other images:
    # the search goes on until half-way from the gate to 100 %. Layers in float cost speed, so
    # leaving them ends at a quarter of the way.
    best, record = search(
        inputs.model,
        find_sites(load_graph(artifact.path / onnx_build.FLOAT32.name), inputs.model),
        torch.from_numpy(images),
        torch.from_numpy(held_out),
        target_percent=(gate + 100) / 2,
        enough_percent=gate + (100 - gate) / 4,
        minutes=minutes,
        class_matrix=torch.tensor(load_matrix(artifact)) if is_open else None,
    )
    with tempfile.TemporaryDirectory(dir=artifact.path, prefix=".int8.") as scratch:
        graph = Path(scratch) / "model.onnx"
        exact = Path(scratch) / "exact.onnx"
        trace(best.model, graph)
        write = functools.partial(to_int8, graph, calibration=images, layers=best.layers)
        searched = {**facts, "search": record}
        artifact = _write_file(artifact, onnx_build.INT8, write, inputs, searched)
        # Centers and corrected biases are for fixed ranges; CPU files compute a range per call
        trace(best.exact, exact)
        write = functools.partial(to_int8_cpu, exact, calibration=images)
        return _write_file(artifact, onnx_build.INT8_CPU, write, inputs, facts)
