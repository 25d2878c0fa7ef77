"""Which file of an artifact this machine runs, and with which backend."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from typing import Any, get_args

from kdedge.errors import GateError, MissingPackage, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.backends import backend_module, list_backends
from kdedge.runtime.backends._cudart import count_multiprocessors
from kdedge.runtime.backends._protocol import BackendModule, LoadedFile, NotHere
from kdedge.runtime.backends._tensorrt import EXPORT_FLAGS

_LOG = logging.getLogger(__name__)

_Failure = tuple[ModelFile, SetupError]
_ABSENT = (MissingPackage, NotHere)

_CPU_TARGET = "onnx"
_ENGINE_ORDER: tuple[Precision, ...] = ("fp16", "fp32", "int8")
_ONNX_ORDER: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_DEVICE_ORDER = ("cpu", "any", "gpu")


def choose_and_load(
    artifact: Artifact,
    *,
    precision: Precision | None,
    backend: str | None,
    n_threads: int | None,
) -> tuple[ModelFile, LoadedFile]:
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
    files = candidates(artifact, precision=precision, backend=backend)
    size = count_multiprocessors() if any(map(_gpu_size, files)) else None
    files.sort(key=lambda file: (file.target == _CPU_TARGET, not _is_of_this(file, size)))
    for file in files:
        try:
            loaded = _load(artifact, file, n_threads)
        except SetupError as error:
            failures.append((file, _bare(error)))
            continue
        _warn(artifact, file, failures, was_asked_for=backend is not None)
        if not _is_of_this(file, size):
            _LOG.warning(
                "%s was built for a GPU of %s multiprocessors, and this one has %s. Build one here"
                " with: %s",
                *(file.name, _gpu_size(file), size, _export_command(artifact, file)),
            )
        return file, loaded
    raise _nothing_runs(artifact, failures)


def _gpu_size(file: ModelFile) -> Any:
    """Multiprocessors of the GPU that an engine was built on; None where that is not recorded."""
    return file.built_with.get("multiprocessors")


def _is_of_this(file: ModelFile, size: int | None) -> bool:
    """Whether nothing speaks against a file on a GPU of so many multiprocessors."""
    return size is None or _gpu_size(file) in (None, size)


def _export_command(artifact: Artifact, file: ModelFile) -> str:
    return shlex.join(["kdedge", "export", str(artifact.path), EXPORT_FLAGS[file.target]])


def _load(artifact: Artifact, file: ModelFile, n_threads: int | None) -> LoadedFile:
    module = _modules()[file.target]
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

    Engines come before ONNX files and, among them, fp16 before fp32; the CPU's order is fp32, fp16.
    Files in int8 and files that missed their gates are there only where their precision is asked
    for.

    Raises:
        RecipeError: no such backend or precision, or no file of these wishes.
        GateError: all of them need asking for.
    """
    if precision is not None and precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise RecipeError(f'There is no precision "{precision}".\n  There are: {known}.')
    targets = set(_modules()) if backend is None else {backend_module(backend).TARGET}
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
    return sorted(found, key=_rank)


def _modules() -> dict[str, BackendModule]:
    """The backends' modules by the target that they run."""
    modules = map(backend_module, list_backends())
    return {module.TARGET: module for module in modules}


def _rank(file: ModelFile) -> tuple[bool, int, int]:
    is_onnx = file.target == _CPU_TARGET
    order = _ONNX_ORDER if is_onnx else _ENGINE_ORDER
    return is_onnx, order.index(file.precision), _DEVICE_ORDER.index(file.device)


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
    artifact: Artifact, file: ModelFile, failures: Sequence[_Failure], *, was_asked_for: bool
) -> None:
    """Says what the user would not expect of the file that was loaded."""
    if file.gate == "missed":
        found = file.parity and f" ({file.parity.agreement_percent:.2f} % agreement)"
        _LOG.warning(
            "%s missed its gate%s and is used because %s was asked for. artifact.json has how it"
            " compares with the model.",
            *(file.name, found or "", file.precision),
        )
    if file.target != _CPU_TARGET and file.gate == "not measured" and not was_asked_for:
        _LOG.warning(
            "%s was never compared with the model. Measure it here with: %s",
            file.name,
            _export_command(artifact, file),
        )
    # No TensorRT or no GPU is no surprise; one that is broken, or does not fit the engine, is
    for tried, error in failures:
        if tried.target != file.target and not isinstance(error, _ABSENT):
            _LOG.warning("%s is used instead of %s: %s", file.name, tried.name, error)
            break


def _nothing_runs(artifact: Artifact, failures: Sequence[_Failure]) -> SetupError:
    told = sorted(failures, key=lambda failure: isinstance(failure[1], _ABSENT))
    if len({str(error) for _, error in told}) == 1:
        return told[0][1]
    lines = "\n".join(f"  {file.name}: {str(error).splitlines()[0]}" for file, error in told)
    remedy = "--backend NAME tries one of them and says what to do about it."
    if any(f.target == _CPU_TARGET and isinstance(error, MissingPackage) for f, error in told):
        remedy = "The simplest remedy on any machine: pip install 'kdedge[runtime]'"
    return SetupError(
        f"Nothing on this machine can run a file of {artifact.path}.\n{lines}\n  {remedy}"
    )
