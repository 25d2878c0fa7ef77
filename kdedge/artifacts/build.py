"""Builds a target's files into an artifact, from its ONNX files or the folded model.

Engines are built on the machine that runs them, which needs neither torch nor onnx. An existing
file that was built from the same ONNX file is kept. If a file can run on this machine, its logits
on the images of the run's export, or else on the artifact's smoke set, decide whether it passes the
gates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from kdedge.artifacts.model_card import renew_model_card
from kdedge.artifacts.parity import failed_gates, parity_on_smoke_set
from kdedge.errors import BackendUnavailable, DataError, MissingPackage, RecipeError, SetupError
from kdedge.files import sha256_file
from kdedge.messages import first_line
from kdedge.progress import working
from kdedge.records.evaluation import ParityResult
from kdedge.runtime.artifact import Artifact, Gate, ModelFile, Precision
from kdedge.runtime.backend import Backend
from kdedge.runtime.none_of_these import NoneBelow
from kdedge.runtime.open_classes import with_classes
from kdedge.targets.base import BuildRequest, PlannedFile, Target
from kdedge.targets.registry import (
    build_module,
    check_can_build,
    check_can_run,
    check_precisions,
    list_targets,
    load_file,
    planned_file,
)

log = logging.getLogger(__name__)

_NEEDS_RUN = "it is made when a run is exported: kdedge export RUN --cpu"
_NO_IMAGES = "the recipe has no unlabeled images to spare for calibration: data.unlabeled"


@dataclass(frozen=True)
class ExportInputs:
    """Inputs of an export that only a run provides, not its artifact.

    Attributes:
        model: the run's folded model.
        compare: compares an artifact's loaded file with the unfolded model, on all images of the
            comparison.
        calibration: [N, 3, S, S], calibration images in the form of the graph's input; None if no
            INT8 file is made.
        limit_of: fits the "none of these" limit of a file on its backend; None if the artifact
            has no limits.
    """

    model: Any
    compare: Callable[[Artifact, Backend], ParityResult]
    calibration: npt.NDArray[Any] | None = None
    limit_of: Callable[[Artifact, ModelFile, Backend], NoneBelow | None] | None = None


def build_files(
    artifact: Artifact,
    target: Target,
    precisions: Sequence[Precision],
    *,
    inputs: ExportInputs | None,
) -> tuple[Artifact, tuple[str, ...]]:
    """Builds a target's missing files, and compares those that can run on this machine.

    Args:
        artifact: the artifact that gets the files; `artifact.json` is saved after each.
        target: the target. Files of `onnx` are written by `deploy.export`.
        precisions: precisions of the files.
        inputs: what only a run provides; None for an artifact that was exported before.

    Returns:
        The artifact with the files' entries, and the names of the files of these precisions. The
        gate of a file that cannot run on this machine is `not measured`.

    Raises:
        RecipeError: the target has no files of a precision, or their source is missing.
        SetupError: a package or device is missing; nothing else is built instead.
        DataError: a file has changed since the export, or a file of another export is in the way.
        ResourceError: memory or disk ran out.
    """
    check_precisions(target, precisions)
    if target.source == "folded model" and inputs is None:
        raise RecipeError(
            f"{artifact.path} has no folded model, from which {target.label} is built.\n"
            "  Give the run that it was exported from instead of the artifact."
        )
    _check_can_build_here(artifact, target, precisions)
    sources = {
        precision: _source(artifact, target, precision) if target.source == "ONNX file" else None
        for precision in precisions
    }
    before = artifact
    names = []
    for precision, source in sources.items():
        file = planned_file(target, precision)
        names.append(file.name)
        entry = _existing_entry(artifact, file.name, source)
        if entry is None:
            request = BuildRequest(
                artifact,
                artifact.path / file.name,
                model=None if inputs is None else inputs.model,
                onnx_path=None if source is None else artifact.checked(source.name),
                images=inputs.calibration if inputs and file.precision == "int8" else None,
            )
            build = functools.partial(build_module(target).build, file, request)
            artifact, entry = build_file(artifact, target, file, build, source=source)
            artifact.save()
        if entry.parity is None:
            measured = _with_parity_if_runnable(artifact, target, entry, inputs)
            if measured != entry:
                artifact = artifact.with_files(measured)
                artifact.save()
    if artifact != before:
        artifact = renew_model_card(artifact)
    return artifact, tuple(names)


def _check_can_build_here(
    artifact: Artifact, target: Target, precisions: Sequence[Precision]
) -> None:
    """`check_can_build`; the error for an engine says how to build it on the device."""
    try:
        check_can_build(target)
    except SetupError as error:
        if not target.is_engine or target.source != "ONNX file":
            raise
        command = target.export_command(artifact.path, int8="int8" in precisions)
        raise SetupError(
            f"{error}\n"
            f"  The artifact {artifact.path} is complete without engines. To build them, copy it to"
            f" the device and run there: {command}"
        ) from error


def add_cpu_files(
    artifact: Artifact, *, inputs: ExportInputs | None
) -> tuple[Artifact, dict[str, str]]:
    """Builds the missing files of every target that has files for CPUs.

    Args:
        artifact: the artifact that gets the files; they are built from its ONNX files.
        inputs: what only a run provides; None for an artifact that was exported before.

    Returns:
        The artifact; and the missing files, as target and precision -> the reason.

    Raises:
        ResourceError: memory or disk ran out.
    """
    missing: dict[str, str] = {}
    present = {(f.target, f.precision) for f in artifact.files if f.device != "gpu"}
    has_no_images = inputs is not None and inputs.calibration is None
    for target in list_targets():
        needs_run = target.source == "folded model"
        for precision in target.cpu_precisions:
            # A file from the folded model exists already if its target was also requested
            if needs_run and (target.name, precision) in present:
                continue
            what = f"{target.label} {precision}"
            if needs_run and has_no_images and precision == "int8":
                missing[what] = _NO_IMAGES
                continue
            if needs_run and inputs is None:
                missing[what] = _NEEDS_RUN
                continue
            try:
                check_can_build(target)
                artifact, _ = build_files(artifact, target, [precision], inputs=inputs)
            except (MissingPackage, BackendUnavailable):
                missing[what] = "not installed; kdedge doctor says how to"
            except (DataError, RecipeError, SetupError) as error:
                missing[what] = " ".join(str(error).split())  # one line, with the remedy
    return artifact, missing


def warn_where_unbuildable(target: Target, precisions: Sequence[Precision]) -> None:
    """Warns if a target's files cannot be built on this machine, before the slow ONNX export."""
    try:
        check_can_build(target)
        for precision in precisions:
            planned_file(target, precision)
    except SetupError as error:
        log.warning(
            f"{target.label} cannot be built on this machine: {first_line(error)}.\n"
            "  The ONNX files are still written."
        )


def _source(artifact: Artifact, target: Target, precision: Precision) -> ModelFile:
    """The ONNX file that a target's file is built from; CPU files are only for CPU targets."""
    if target.base_precision is not None and precision != "int8":
        precision = target.base_precision
    other = "gpu" if target.uses_cpu_int8 else "cpu"
    files = [file for file in artifact.files if file.target == "onnx" and file.device != other]
    for file in files:
        if file.precision == precision:
            return file
    present = ", ".join(f"{file.name} ({file.precision})" for file in files) or "none"
    flag = "" if precision == "fp32" else f" --{precision}"
    raise RecipeError(
        f"{artifact.path} has no ONNX file in {precision} to build from; it has"
        f" {present}.\n"
        f"  Export the run again: kdedge export RUN{flag}"
    )


def _existing_entry(artifact: Artifact, name: str, source: ModelFile | None) -> ModelFile | None:
    """The entry of an undamaged file that was built from this ONNX file; None if there is none.

    Raises:
        DataError: another file of that name exists.
    """
    path = artifact.path / name
    if not path.exists():
        return None
    entry = next((file for file in artifact.files if file.name == name), None)
    if (
        entry is None
        or source is None
        or entry.made_from != source.sha256
        or entry.built_with.get("onnx_data") != artifact.others.get(source.data or "")
    ):
        raise DataError(
            f"{path} exists, but is not listed as built from this"
            f" {'model' if source is None else source.name}.\n"
            "  It is not overwritten: delete it and try again."
        )
    artifact.checked(name)
    log.info(f"Keeping {name}, which was built from this {source.name}.")
    return entry


def build_file(
    artifact: Artifact,
    target: Target,
    file: PlannedFile,
    build: Callable[[], Mapping[str, Any]],
    *,
    source: ModelFile | None = None,
) -> tuple[Artifact, ModelFile]:
    """Builds a file; returns the artifact that lists it, and its entry, not yet compared.

    Args:
        artifact: the artifact that gets the file, and the separate file of its weights, if any.
        target: the file's target.
        file: the file.
        build: writes the file, and returns the tools and settings of the build.
        source: the artifact's ONNX file that it is built from; None for the folded model.
    """
    log.info(f"Building {file.name} from {source.name if source else 'the folded model'}.")
    began = time.monotonic()
    built_with = {**build(), "seconds": round(time.monotonic() - began, 2)}
    if source is not None and source.data is not None:
        built_with["onnx_data"] = artifact.others[source.data]
    path = artifact.path / file.name
    n_bytes = path.stat().st_size
    data = path.with_name(file.data or f"{file.name}.data")
    if data.exists():
        n_bytes += data.stat().st_size
        artifact = artifact.with_others(data.name)
    entry = ModelFile(
        name=file.name,
        target=target.name,
        precision=file.precision,
        device=file.device,
        sha256=sha256_file(path),
        n_bytes=n_bytes,
        data=data.name if data.exists() else None,
        made_from=None if source is None else source.sha256,
        built_with=built_with,
        none_below=None if source is None else source.none_below,
    )
    return artifact.with_files(entry), entry


def with_parity(
    artifact: Artifact, target: Target, entry: ModelFile, inputs: ExportInputs | None
) -> ModelFile:
    """Returns a file's entry with its parity, its gate and its "none of these" limit.

    Raises:
        SetupError: this machine cannot run the file.
    """
    if target.backend is not None:
        backend = load_file(artifact, entry)
    else:
        module: Any = build_module(target)
        backend = with_classes(artifact, module.load(artifact.checked(entry.name), artifact))
    compare = parity_on_smoke_set if inputs is None else inputs.compare
    with contextlib.closing(backend), working(f"comparing {entry.name}"):
        parity = compare(artifact, backend)
        fit = None if inputs is None else inputs.limit_of
        limit = entry.none_below if fit is None else fit(artifact, entry, backend)
    gate: Gate = "missed" if failed_gates(parity, entry.precision, artifact.gates) else "passed"
    return dataclasses.replace(entry, parity=parity, gate=gate, none_below=limit)


def _with_parity_if_runnable(
    artifact: Artifact, target: Target, entry: ModelFile, inputs: ExportInputs | None
) -> ModelFile:
    """Returns the entry with its parity and gate; unchanged if this machine cannot run the file."""
    level = logging.INFO  # if only the package or the device is missing
    if target.backend is None and not hasattr(build_module(target), "load"):
        return entry
    try:
        check_can_run(target)
        level = logging.WARNING
        return with_parity(artifact, target, entry, inputs)
    except SetupError as error:
        log.log(level, f"{entry.name} is not compared with the model: {error}")
        return entry
