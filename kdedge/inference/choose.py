"""Which file of an artifact this machine runs, and with which backend."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from typing import Any, get_args

from kdedge.errors import BackendUnavailable, GateError, MissingPackage, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.backend import Backend
from kdedge.runtime.cuda import find_gpu
from kdedge.targets.protocol import Target
from kdedge.targets.registry import list_targets, load_run, target_of_backend

_LOG = logging.getLogger(__name__)

_Failure = tuple[Target, ModelFile, SetupError]
_ABSENT = (MissingPackage, BackendUnavailable)

_DEVICE_ORDER = ("cpu", "any", "gpu")


def choose_and_load(
    artifact: Artifact,
    *,
    precision: Precision | None,
    backend: str | None,
    n_threads: int | None,
) -> tuple[ModelFile, Backend]:
    """Loads the first file, in the order of `candidates`, that this machine can run.

    Engines that were built for a GPU of another size come after this one's own: TensorRT loads
    them where the generation is the same, and answers for neither their speed nor their results.

    Args:
        artifact: what there is.
        precision: asked for; None for no wish.
        backend: asked for; None for no wish.
        n_threads: of the CPU; None for the engine's own choice.

    Raises:
        DataError: the file is not what was exported.
        RecipeError: no such backend or precision, or no file of these wishes.
        GateError: none without asking for a precision.
        SetupError: nothing here can run any of the candidates.
    """
    failures: list[_Failure] = []
    targets = {target.name: target for target in list_targets()}
    files = candidates(artifact, precision=precision, backend=backend)
    size = _gpu_size() if any(map(_built_for, files)) else None
    files.sort(key=lambda file: (-targets[file.target].preference, not _fits(file, size)))
    for file in files:
        target = targets[file.target]
        try:
            loaded = _load(artifact, target, file, n_threads)
        except SetupError as error:
            failures.append((target, file, _bare(error)))
            continue
        _warn(artifact, target, file, failures, was_asked_for=backend is not None)
        if not _fits(file, size):
            _LOG.warning(
                "%s was built for a GPU of %s multiprocessors, and this one has %s. Build one here"
                " with: %s",
                *(file.name, _built_for(file), size, _export_command(artifact, target)),
            )
        return file, loaded
    raise _nothing_runs(artifact, failures)


def _gpu_size() -> int | None:
    """Multiprocessors of the first GPU; None where there is none that can be asked."""
    try:
        return find_gpu().n_multiprocessors
    except SetupError:
        return None


def _built_for(file: ModelFile) -> Any:
    """Multiprocessors of the GPU that an engine was built on; None where that is not recorded."""
    return file.built_with.get("multiprocessors")


def _fits(file: ModelFile, size: int | None) -> bool:
    """Whether nothing speaks against a file on a GPU of so many multiprocessors."""
    return size is None or _built_for(file) in (None, size)


def _export_command(artifact: Artifact, target: Target) -> str:
    """What builds and measures a target's files: from the artifact where it can be."""
    source = str(artifact.path) if target.source == "ONNX file" else "RUN"
    return shlex.join(["kdedge", "export", source, target.flag])


def _load(artifact: Artifact, target: Target, file: ModelFile, n_threads: int | None) -> Backend:
    module = load_run(target)
    module.check_environment()
    path = artifact.checked(file.name)
    return module.load(path, n_threads=n_threads, built_with=file.built_with or None)


def _bare(error: SetupError) -> SetupError:
    """The error without the frames that it came through: they keep an engine in the GPU's memory.

    Where the next file is loaded, that memory is needed.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def candidates(
    artifact: Artifact, *, precision: Precision | None, backend: str | None
) -> list[ModelFile]:
    """Gives the files that would do, best first.

    Targets come in the order of their preference, and a target's files in that of its precisions.
    Files in int8 and files that missed their gates are there only where their precision is asked
    for.

    Raises:
        RecipeError: no such backend or precision, or no file of these wishes.
        GateError: all of them need asking for.
    """
    if precision is not None and precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise RecipeError(f'There is no precision "{precision}".\n  There are: {known}.')
    runnable = list_targets() if backend is None else (target_of_backend(backend),)
    targets = {target.name: target for target in runnable if target.backend is not None}
    found = [
        file
        for file in artifact.files
        if file.target in targets and precision in (None, file.precision)
    ]
    if not found:
        kind = f"{precision} file" if precision else "file"
        place = f"{backend} can run" if backend else "can be run"
        there = "; ".join(f"{f.name} ({f.precision}, {f.target})" for f in artifact.files)
        raise RecipeError(
            f"{artifact.path} has no {kind} that {place}.\n  It has: {there or 'none'}."
        )
    if precision is None:
        asked = found
        found = [file for file in found if file.precision != "int8" and file.gate != "missed"]
        if not found:
            raise _only_when_asked(artifact, asked)
    return sorted(found, key=lambda file: _rank(targets[file.target], file))


def _rank(target: Target, file: ModelFile) -> tuple[int, int, int]:
    """The place of a file, the best first; a precision that its target no longer makes is last."""
    order = target.precisions
    place = order.index(file.precision) if file.precision in order else len(order)
    return -target.preference, place, _DEVICE_ORDER.index(file.device)


def _only_when_asked(artifact: Artifact, files: Sequence[ModelFile]) -> GateError:
    reasons = "\n".join(
        f"  {file.name}: {'it missed its gate' if file.gate == 'missed' else 'it is int8'};"
        f" use it all the same with --precision {file.precision}"
        for file in files
    )
    return GateError(
        f"{artifact.path} has no file that is used without being asked for.\n{reasons}"
    )


def _warn(
    artifact: Artifact,
    target: Target,
    file: ModelFile,
    failures: Sequence[_Failure],
    *,
    was_asked_for: bool,
) -> None:
    """Says what the user would not expect of the file that was loaded."""
    if file.gate == "missed":
        found = file.parity and f" ({file.parity.agreement_percent:.2f} % agreement)"
        _LOG.warning(
            "%s missed its gate%s and is used because %s was asked for. artifact.json has how it"
            " compares with the model.",
            *(file.name, found or "", file.precision),
        )
    if target.name != "onnx" and file.gate == "not measured" and not was_asked_for:
        _LOG.warning(
            "%s was never compared with the model. Measure it here with: %s",
            file.name,
            _export_command(artifact, target),
        )
    # No TensorRT or no GPU is no surprise; one that is broken, or does not fit the engine, is
    for _, tried, error in failures:
        if tried.target != file.target and not isinstance(error, _ABSENT):
            _LOG.warning("%s is used instead of %s: %s", file.name, tried.name, error)
            break


def _nothing_runs(artifact: Artifact, failures: Sequence[_Failure]) -> SetupError:
    told = sorted(failures, key=lambda failure: isinstance(failure[2], _ABSENT))
    if len({str(error) for *_, error in told}) == 1:
        return told[0][2]
    lines = "\n".join(f"  {file.name}: {str(error).splitlines()[0]}" for _, file, error in told)
    remedy = "--backend NAME tries one of them and says what to do about it."
    for target, _, error in told:
        if isinstance(error, MissingPackage) and not target.is_engine:
            remedy = f"The simplest remedy on any machine: {str(error).rpartition(': ')[2]}"
    return SetupError(
        f"Nothing on this machine can run a file of {artifact.path}.\n{lines}\n  {remedy}"
    )
