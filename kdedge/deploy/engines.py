"""Engines from an artifact's ONNX files, on the machine that runs them: no torch, no onnx.

An engine that is there already and was built from the same ONNX file is kept. Where an engine can
run here it answers for the artifact's smoke set, which the gates look at.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from kdedge._files import sha256_file
from kdedge.deploy.parity import misses, parity_on_smoke_set
from kdedge.deploy.targets import tensorrt, tensorrt_rtx
from kdedge.deploy.targets._engine import BuiltEngine
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.backends import backend_module
from kdedge.runtime.backends._tensorrt import EXPORT_FLAGS

log = logging.getLogger(__name__)


class EngineTarget(Protocol):
    """What `deploy.targets.tensorrt` and `tensorrt_rtx` have in common."""

    NAME: str

    def check_environment(self) -> None:
        """Raises SetupError where the package or the device is missing."""
        ...

    def engine_name(self, precision: Precision) -> str:
        """The file name of an engine that is built here."""
        ...

    def export(
        self,
        onnx_path: Path,
        folder: Path,
        *,
        precision: Precision,
        max_batch: int,
        batch: Literal["dynamic"] | int,
    ) -> BuiltEngine:
        """Builds an engine."""
        ...


def build_engines(
    artifact: Artifact, target: str, precisions: Sequence[Precision]
) -> tuple[Artifact, tuple[str, ...]]:
    """Builds what is missing of a target's engines and measures what can run here.

    Args:
        artifact: with ONNX files; its folder gets the engines, and `artifact.json` is saved after
            each.
        target: `tensorrt` or `tensorrt-rtx`.
        precisions: one engine each.

    Returns:
        The artifact with the engines' entries, whose gate is `not measured` where they cannot run;
        and their names.

    Raises:
        SetupError: package or device is missing; nothing was built in its place.
        RecipeError: the artifact has no ONNX file of a precision.
        DataError: a file is not what was exported, or an engine of another export is in the way.
        ResourceError: memory or disk ran out.
    """
    module = _target(target)
    try:
        module.check_environment()
    except SetupError as error:
        raise _elsewhere(artifact, target, precisions, error) from error
    names = []
    sources = [(precision, _source(artifact, precision)) for precision in precisions]
    for precision, source in sources:
        engine = _kept(artifact, module.engine_name(precision), source)
        if engine is None:
            engine = _build(artifact, module, precision, source)
            artifact = artifact.with_files(engine)
            artifact.save()
        measured = _measured(artifact, engine) if engine.parity is None else engine
        if measured != engine:
            artifact = artifact.with_files(measured)
            artifact.save()
        names.append(measured.name)
    return artifact, tuple(names)


def _target(name: str) -> EngineTarget:
    targets: dict[str, EngineTarget] = {"tensorrt": tensorrt, "tensorrt-rtx": tensorrt_rtx}
    if name not in targets:
        raise RecipeError(f'There are no engines for "{name}".\n  There are: {", ".join(targets)}.')
    return targets[name]


def _source(artifact: Artifact, precision: Precision) -> ModelFile:
    """The ONNX file that an engine is built from; those made for CPUs are not."""
    found = [file for file in artifact.files if file.target == "onnx" and file.device != "cpu"]
    for file in found:
        if file.precision == precision:
            return file
    there = ", ".join(f"{file.name} ({file.precision})" for file in found) or "none"
    flag = "" if precision == "fp32" else f" --{precision}"
    raise RecipeError(
        f"{artifact.path} has no ONNX file in {precision} to build an engine from; it has {there}."
        f"\n  Export its run again: kdedge export RUN{flag}"
    )


def _weights(artifact: Artifact, source: ModelFile) -> dict[str, str]:
    """The hash of an ONNX file's external data, as an engine's record keeps it."""
    return {} if source.data is None else {"onnx_data": artifact.others[source.data]}


def _kept(artifact: Artifact, name: str, source: ModelFile) -> ModelFile | None:
    """The entry of an engine that was built from this ONNX file and is whole; None without one.

    Raises:
        DataError: the file is there and is another one.
    """
    path = artifact.path / name
    if not path.exists():
        return None
    entry = next((file for file in artifact.files if file.name == name), None)
    problem = None
    if entry is None:
        problem = "is not listed in artifact.json, so that nothing is known of it"
    elif entry.made_from != source.sha256 or _weights(artifact, source) != {
        key: value for key, value in entry.built_with.items() if key == "onnx_data"
    }:
        problem = f"was built from another {source.name}"
    elif sha256_file(path) != entry.sha256:
        problem = "is not the file that was built: its SHA-256 is another"
    if problem is not None:
        raise DataError(
            f"{path} {problem}.\n  Nothing is overwritten: delete it, and run the command again."
        )
    log.info("%s is kept: it was built from this %s.", name, source.name)
    return entry


def _build(
    artifact: Artifact, module: EngineTarget, precision: Precision, source: ModelFile
) -> ModelFile:
    onnx_path = artifact.checked(source.name)
    log.info("Building %s from %s.", module.engine_name(precision), source.name)
    built = module.export(
        onnx_path,
        artifact.path,
        precision=precision,
        max_batch=artifact.max_batch,
        batch=artifact.batch,
    )
    return ModelFile(
        name=built.path.name,
        target=module.NAME,
        precision=precision,
        device="gpu",
        sha256=sha256_file(built.path),
        n_bytes=built.path.stat().st_size,
        made_from=source.sha256,
        built_with=built.built_with | _weights(artifact, source),
    )


def _measured(artifact: Artifact, engine: ModelFile) -> ModelFile:
    """The entry with its parity and gate; as it is where the engine cannot run here."""
    backend_kind = backend_module(engine.target)
    try:
        backend_kind.check_environment()
    except SetupError as error:
        first = str(error).partition("\n")[0]
        log.info("%s is not measured, as it cannot run here: %s", engine.name, first)
        return engine
    path = artifact.checked(engine.name)
    try:
        backend = backend_kind.load(path, built_with=engine.built_with)
        try:
            parity = parity_on_smoke_set(artifact, backend)
        finally:
            backend.close()
    except SetupError as error:
        log.warning("%s is not measured: %s", engine.name, error)
        return engine
    missed = misses(parity, engine.precision, artifact.gates)
    return dataclasses.replace(engine, parity=parity, gate="missed" if missed else "passed")


def _elsewhere(
    artifact: Artifact, target: str, precisions: Sequence[Precision], error: SetupError
) -> SetupError:
    """The error of a machine that cannot build, with the step to run on one that can."""
    words: list[str] = ["kdedge", "export", str(artifact.path), EXPORT_FLAGS[target]]
    words += ["--int8"] if "int8" in precisions else []
    lines = [
        str(error),
        f"  The artifact {artifact.path} is complete without engines. Copy it to the device and"
        f" run there: {shlex.join(words)}",
    ]
    if target == "tensorrt" and find_spec("tensorrt_rtx") is not None:
        lines.append(
            "  tensorrt-rtx is installed here: --trt-rtx builds engines for RTX GPUs, which are no"
            " Jetson's. Nothing was built in TensorRT's place."
        )
    return SetupError("\n".join(lines))
