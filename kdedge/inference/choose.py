"""Chooses the file of an artifact that this machine runs, and its backend."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Sequence
from typing import Any, get_args

from kdedge.errors import (
    BackendUnavailable,
    GateError,
    MissingPackage,
    RecipeError,
    SetupError,
    first_line,
)
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.backend import Backend
from kdedge.runtime.cpu_choice import preferred_file
from kdedge.runtime.cuda import find_gpu
from kdedge.targets.protocol import Target
from kdedge.targets.registry import list_targets, load_file, target_of_backend

log = logging.getLogger(__name__)

_Failure = tuple[Target, ModelFile, SetupError]
_ABSENT = (MissingPackage, BackendUnavailable)

_DEVICE_ORDER = ("cpu", "any", "gpu")


def choose_and_load(
    artifact: Artifact, *, precision: Precision | None, backend: str | None, n_threads: int | None
) -> tuple[ModelFile, Backend]:
    """Loads the first file, in the order of `candidates`, that this machine can run.

    Before other files for CPUs comes the one that `kdedge export --cpu` chose on a machine like
    this; but not if a precision or a backend is asked for.

    Engines that were built for a GPU of another size come after those for this GPU. TensorRT loads
    them if the GPU generation is the same, but guarantees neither their speed nor their results.

    Args:
        artifact: the artifact.
        precision: the wanted precision; None for any.
        backend: the wanted backend; None for any.
        n_threads: CPU threads; None for the engine's own choice.

    Raises:
        DataError: the file has changed since the export.
        RecipeError: no such backend or precision, or no file for them.
        GateError: there are only files whose precision must be asked for.
        SetupError: this machine can run none of the candidates.
    """
    failures: list[_Failure] = []
    targets = {target.name: target for target in list_targets()}
    chosen: str | None = None
    problem: str | None = None
    if precision is None and backend is None:
        chosen, problem = preferred_file(artifact)
    size: int | None = None
    if any(map(_built_for, artifact.files)):
        with contextlib.suppress(SetupError):  # there is no usable GPU
            size = find_gpu().n_multiprocessors
    for file in candidates(
        artifact, precision=precision, backend=backend, chosen=chosen, gpu_size=size
    ):
        target = targets[file.target]
        try:
            loaded = load_file(artifact, file, n_threads=n_threads)
        except SetupError as error:
            # Without its traceback, whose frames keep an engine in the GPU's memory
            error.__cause__ = error.__context__ = None
            failures.append((target, file, error.with_traceback(None)))
            continue
        _warn(artifact, target, file, failures, was_asked_for=backend is not None)
        if chosen not in (None, file.name):
            problem = f"{chosen} was measured as the fastest, but cannot be used here"
        if problem is not None and not target.is_engine:
            log.warning(
                "%s: using %s. Measure here with: kdedge export %s --cpu",
                *(problem, file.name, shlex.quote(str(artifact.path))),
            )
        if not _fits(file, size):
            log.warning(
                "%s was built for a GPU with %s multiprocessors, but this one has %s. Build an"
                " engine for this GPU with: %s",
                *(file.name, _built_for(file), size, _export_command(artifact, target)),
            )
        return file, loaded
    raise _nothing_runs(artifact, failures)


def _built_for(file: ModelFile) -> Any:
    """Multiprocessors of the GPU that an engine was built on; None if not recorded."""
    return file.built_with.get("multiprocessors")


def _fits(file: ModelFile, size: int | None) -> bool:
    """Whether a file was built for a GPU with this number of multiprocessors, as far as known."""
    return size is None or _built_for(file) in (None, size)


def _export_command(artifact: Artifact, target: Target) -> str:
    """The command that builds and measures a target's files, from the artifact if possible."""
    source = str(artifact.path) if target.source == "ONNX file" else "RUN"
    return shlex.join(["kdedge", "export", source, target.flag])


def candidates(
    artifact: Artifact,
    *,
    precision: Precision | None,
    backend: str | None,
    chosen: str | None = None,
    gpu_size: int | None = None,
) -> list[ModelFile]:
    """The files that may be used, best first.

    The file `chosen`, if there is one, comes after engines and before all others. Targets come in
    the order of their preference, and a target's files in the order of its precisions, after those
    that fit a GPU with `gpu_size` multiprocessors. Files in int8 and files that missed their gates
    are used only if their precision is asked for, or if they are chosen.

    Raises:
        RecipeError: no such backend or precision, or no file for them.
        GateError: there are only files whose precision must be asked for.
    """
    if precision is not None and precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise RecipeError(f'There is no precision "{precision}".\n  There are: {known}.')
    runnable = list_targets() if backend is None else (target_of_backend(backend),)
    targets = {target.name: target for target in runnable if target.backend is not None}
    files = [
        file
        for file in artifact.files
        if file.target in targets and precision in (None, file.precision)
    ]
    if not files:
        kind = f"{precision} file" if precision else "file"
        place = f"{backend} can run" if backend else "can be run"
        present = "; ".join(f"{f.name} ({f.precision}, {f.target})" for f in artifact.files)
        raise RecipeError(
            f"{artifact.path} has no {kind} that {place}.\n  It has: {present or 'none'}."
        )
    if precision is None:
        asked = files
        free = [file for file in files if file.precision != "int8" and file.gate != "missed"]
        files = [file for file in files if file in free or file.name == chosen]
        if not files:
            lines = [f"{artifact.path} has only files that need --precision."]
            for file in asked:
                why = "missed its gate" if file.gate == "missed" else f"is {file.precision}"
                remedy = f"to use it anyway, add --precision {file.precision}"
                lines.append(f"  {file.name}: it {why}; {remedy}")
            raise GateError("\n".join(lines))

    def rank(file: ModelFile) -> tuple[Any, ...]:
        target, order = targets[file.target], targets[file.target].precisions
        # A precision that its target no longer makes comes last
        place = order.index(file.precision) if file.precision in order else len(order)
        return (
            chosen is not None and not target.is_engine,
            file.name != chosen,
            -target.preference,
            not _fits(file, gpu_size),
            place,
            _DEVICE_ORDER.index(file.device),
        )

    return sorted(files, key=rank)


def _warn(
    artifact: Artifact,
    target: Target,
    file: ModelFile,
    failures: Sequence[_Failure],
    *,
    was_asked_for: bool,
) -> None:
    """Warns if the loaded file missed its gate, was not measured, or is not the preferred one."""
    if file.gate == "missed":
        agreement = file.parity and f" ({file.parity.agreement_percent:.2f} % agreement)"
        log.warning(
            "%s missed its gate%s. It is used because %s was asked for; artifact.json compares it"
            " with the model.",
            *(file.name, agreement or "", file.precision),
        )
    if target.name != "onnx" and file.gate == "not measured" and not was_asked_for:
        log.warning(
            "%s was never compared with the model. Compare it on this machine with: %s",
            file.name,
            _export_command(artifact, target),
        )
    # A missing TensorRT or GPU needs no warning; one that is broken or does not fit the engine does
    for _, tried, error in failures:
        if tried.target != file.target and not isinstance(error, _ABSENT):
            log.warning("Using %s instead of %s: %s", file.name, tried.name, error)
            break


def _nothing_runs(artifact: Artifact, failures: Sequence[_Failure]) -> SetupError:
    ordered = sorted(failures, key=lambda failure: isinstance(failure[2], _ABSENT))
    if len({str(error) for *_, error in ordered}) == 1:
        return ordered[0][2]
    lines = "\n".join(f"  {file.name}: {first_line(error)}" for _, file, error in ordered)
    remedy = "Run again with --backend NAME to see how to fix one of them."
    for target, _, error in ordered:
        if isinstance(error, MissingPackage) and not target.is_engine:
            remedy = f"The simplest fix on any machine: {str(error).rpartition(': ')[2]}"
    return SetupError(f"This machine cannot run any file of {artifact.path}.\n{lines}\n  {remedy}")
