"""Chooses the file of an artifact that this machine runs, and its backend."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from kdedge.errors import BackendUnavailable, GateError, MissingPackage, RecipeError, SetupError
from kdedge.messages import first_line, option
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.backend import Backend
from kdedge.runtime.cpu_choice import measured_choice
from kdedge.runtime.cuda import find_gpu
from kdedge.targets.base import Target
from kdedge.targets.registry import find_target, list_targets, load_file, target_of_backend

log = logging.getLogger(__name__)

_ABSENT = (MissingPackage, BackendUnavailable)


@dataclass(frozen=True)
class _Failure:
    """A file that this machine cannot run, and the reason."""

    target: Target
    file: ModelFile
    error: SetupError

    @property
    def is_absence(self) -> bool:
        """Whether a package or a device is missing, so that nothing is broken."""
        return isinstance(self.error, _ABSENT)


_DEVICE_ORDER = ("cpu", "any", "gpu")


def rank_files(
    artifact: Artifact,
    *,
    precision: Precision | None = None,
    backend: str | None = None,
    chosen: str | None = None,
) -> list[ModelFile]:
    """The files of an artifact that may be used on this machine, best first.

    Callers use the first file, or the first that loads.

    1. Engines, if there is a GPU. Those that were built for a GPU of its size come first. TensorRT
       also loads engines for another size of the same GPU generation, but guarantees neither their
       speed nor their results.
    2. The file that was measured as the fastest.
    3. Other files by the preference of their targets, a target's files by its precisions.
    4. Files in INT8 that were not measured as the fastest, in the same order.

    Files that missed their gates are left out, unless their precision is asked for.

    Args:
        artifact: the artifact.
        precision: its precision; None for any.
        backend: what runs it; None for any.
        chosen: name of the file that was measured as the fastest; None if there is none.

    Raises:
        RecipeError: there is no such backend.
    """
    runnable = list_targets() if backend is None else (target_of_backend(backend),)
    targets = {target.name: target for target in runnable if target.backend is not None}
    if precision is None:
        files = [file for file in artifact.files if file.gate != "missed"]
    else:
        files = [file for file in artifact.files if file.precision == precision]
    files = [file for file in files if file.target in targets]
    gpu_size = _gpu_size() if any(targets[file.target].is_engine for file in files) else 0

    def rank(file: ModelFile) -> tuple[Any, ...]:
        target = targets[file.target]
        order = target.precisions
        return (
            file.precision == "int8" and file.name != chosen,
            target.is_engine if gpu_size == 0 else not target.is_engine,
            file.name != chosen,
            -target.preference,
            not _fits(file, gpu_size),
            # A precision that its target no longer makes comes last
            order.index(file.precision) if file.precision in order else len(order),
            _DEVICE_ORDER.index(file.device),
        )

    return sorted(files, key=rank)


def choose_and_load(
    artifact: Artifact, *, precision: Precision | None, backend: str | None, n_threads: int | None
) -> tuple[ModelFile, Backend]:
    """Loads the first file, in the order of `rank_files`, that this machine can run.

    The file that `kdedge export --cpu` chose counts as the fastest on machines like the one that
    measured it; but not if a precision or a backend is asked for.

    Args:
        artifact: the artifact.
        precision: its precision; None for any.
        backend: what runs it; None for any.
        n_threads: CPU threads; None for the engine's own choice.

    Raises:
        DataError: the file has changed since the export.
        RecipeError: no such backend or precision, or no file for them.
        GateError: there are only files whose precision must be asked for.
        SetupError: this machine can run none of the files.
    """
    failures: list[_Failure] = []
    chosen: str | None = None
    problem: str | None = None
    if precision is None and backend is None:
        choice, problem = measured_choice(artifact)
        chosen = choice.file if choice is not None and problem is None else None
    files = rank_files(artifact, precision=precision, backend=backend, chosen=chosen)
    for file in files:
        target = find_target(file.target)
        try:
            loaded = load_file(artifact, file, n_threads=n_threads)
        except SetupError as error:
            # Without its traceback, whose frames keep an engine in the GPU's memory
            error.__cause__ = error.__context__ = None
            failures.append(_Failure(target, file, error.with_traceback(None)))
            continue
        _warn(artifact, target, file, failures, was_asked_for=backend is not None)
        if chosen not in (None, file.name):
            problem = f"{chosen} was measured as the fastest, but cannot be used here"
        if problem is not None and not target.is_engine:
            log.warning(
                f"{problem}: using {file.name}. Measure here with: kdedge export"
                f" {shlex.quote(str(artifact.path))} --cpu"
            )
        size = _gpu_size() if target.is_engine else None
        if target.is_engine and not _fits(file, size):
            log.warning(
                f"{file.name} was built for a GPU with {_built_for(file)} multiprocessors, but this"
                f" one has {size}. Build an engine for this GPU with:"
                f" {_export_command(artifact, target, file)}"
            )
        return file, loaded
    if files:
        raise _nothing_runs(artifact, failures)
    raise _nothing_fits(artifact, precision, backend)


def _gpu_size() -> int | None:
    """Multiprocessors of this machine's GPU; 0 without a GPU, None if CUDA cannot use it."""
    try:
        return find_gpu().n_multiprocessors
    except BackendUnavailable:
        return 0
    except SetupError:
        return None


def _built_for(file: ModelFile) -> Any:
    """Multiprocessors of the GPU that an engine was built on; None if not recorded."""
    return file.built_with.get("multiprocessors")


def _fits(file: ModelFile, gpu_size: int | None) -> bool:
    """Whether a file was built for a GPU with this number of multiprocessors, as far as known."""
    return not gpu_size or _built_for(file) in (None, gpu_size)


def _export_command(artifact: Artifact, target: Target, file: ModelFile) -> str:
    """The command that builds and measures such a file, from the artifact if possible."""
    source = str(artifact.path) if target.source == "ONNX file" else "RUN"
    return target.export_command(source, int8=file.precision == "int8")


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
        agreement = ""
        if file.parity is not None:
            agreement = f" ({file.parity.agreement_percent:.2f} % agreement)"
        log.warning(
            f"{file.name} missed its gate{agreement}. It is used because {file.precision} was"
            " asked for; artifact.json compares it with the model."
        )
    if target.name != "onnx" and file.gate == "not measured" and not was_asked_for:
        log.warning(
            f"{file.name} was never compared with the model. Compare it on this machine with:"
            f" {_export_command(artifact, target, file)}"
        )
    # A missing TensorRT or GPU needs no warning; one that is broken or does not fit the engine does
    for failure in failures:
        if failure.file.target != file.target and not failure.is_absence:
            log.warning(f"Using {file.name} instead of {failure.file.name}: {failure.error}")
            break


def _nothing_runs(artifact: Artifact, failures: Sequence[_Failure]) -> SetupError:
    ordered = sorted(failures, key=lambda failure: failure.is_absence)
    if len({str(failure.error) for failure in ordered}) == 1:
        return ordered[0].error
    lines = "\n".join(f"  {f.file.name}: {first_line(f.error)}" for f in ordered)
    remedy = f"Run again with {option('--backend NAME')} to see how to fix one of them."
    for failure in ordered:
        if isinstance(failure.error, MissingPackage) and not failure.target.is_engine:
            install = str(failure.error).rpartition(": ")[2]
            remedy = f"The simplest fix on any machine: {install}"
    return SetupError(f"This machine cannot run any file of {artifact.path}.\n{lines}\n  {remedy}")


def _nothing_fits(
    artifact: Artifact, precision: Precision | None, backend: str | None
) -> RecipeError | GateError:
    """The error for an artifact that has no such file, or none that passed its gate."""
    precisions = get_args(Precision)
    if precision not in (None, *precisions):
        known = ", ".join(precisions)
        return RecipeError(f'There is no precision "{precision}".\n  There are: {known}.')
    lines = []
    for known in precisions:
        flag = option(f"--precision {known}")
        for file in rank_files(artifact, precision=known, backend=backend):
            lines.append(f"  {file.name}: it missed its gate; to use it add {flag}")
    if precision is None and lines:
        return GateError("\n".join([f"{artifact.path} has only files with missed gates.", *lines]))
    kind = f"{precision} file" if precision else "file"
    place = f"{backend} can run" if backend else "can be run"
    present = "; ".join(f"{f.name} ({f.precision}, {f.target})" for f in artifact.files) or "none"
    return RecipeError(f"{artifact.path} has no {kind} that {place}.\n  It has: {present}.")
