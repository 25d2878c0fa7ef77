"""Which file of an artifact this machine runs, and with which backend."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import get_args

from kdedge.errors import GateError, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.backends import backend_module, list_backends
from kdedge.runtime.backends._protocol import Backend, BackendModule

_LOG = logging.getLogger(__name__)

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
) -> tuple[ModelFile, Backend]:
    """Loads the first file, in the order of `candidates`, that this machine can run.

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
    absent: list[tuple[ModelFile, SetupError]] = []
    refused: list[tuple[ModelFile, SetupError]] = []
    for file in candidates(artifact, precision=precision, backend=backend):
        module = _modules()[file.target]
        try:
            module.check_environment()
        except SetupError as error:
            absent.append((file, error))
            continue
        path = artifact.checked(file.name)
        try:
            loaded = module.load(path, n_threads=n_threads, built_with=file.built_with or None)
        except SetupError as error:
            refused.append((file, error))
            continue
        _warn(file, refused)
        return file, loaded
    raise _nothing_runs(artifact, refused + absent)


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


def _warn(file: ModelFile, refused: Sequence[tuple[ModelFile, SetupError]]) -> None:
    """Says what the user would not expect of the file that was loaded."""
    if file.gate == "missed":
        found = file.parity and f" ({file.parity.agreement_percent:.2f} % agreement)"
        _LOG.warning(
            "%s missed its gate%s and is used because %s was asked for. artifact.json has how it"
            " compares with the model.",
            *(file.name, found or "", file.precision),
        )
    # No TensorRT or no GPU is no surprise; an engine that does not fit what is there is one
    for tried, error in refused[:1]:
        if tried.target != file.target:
            _LOG.warning("%s is used instead of %s: %s", file.name, tried.name, error)


def _nothing_runs(
    artifact: Artifact, failures: Sequence[tuple[ModelFile, SetupError]]
) -> SetupError:
    texts = list(dict.fromkeys(str(error) for _, error in failures))
    if len(texts) == 1:
        return failures[0][1]
    lines = "\n".join(f"  {file.name}: {str(error).splitlines()[0]}" for file, error in failures)
    return SetupError(
        f"Nothing on this machine can run a file of {artifact.path}.\n{lines}\n"
        "  The simplest remedy on any machine: pip install 'kdedge[runtime]'"
    )
