"""Builds a target's files into an artifact, from its ONNX files or the folded model.

Engines are built on the machine that runs them, which needs neither torch nor onnx. An existing
file that was built from the same ONNX file is kept. If a file can run on this machine, its logits
on the artifact's smoke set decide whether it passes the gates.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdedge.deploy.parity import misses, parity_on_smoke_set
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.files import refuse_existing, sha256_file
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.backend import Backend
from kdedge.targets.protocol import BuildModule, BuildRequest, PlannedFile, Target
from kdedge.targets.registry import find_target, load_build, load_run

log = logging.getLogger(__name__)


def build_files(
    artifact: Artifact, name: str, precisions: Sequence[Precision], *, model: Any = None
) -> tuple[Artifact, tuple[str, ...]]:
    """Builds a target's missing files, and compares those that can run on this machine.

    Args:
        artifact: gets the files; `artifact.json` is saved after each.
        name: name of the target. Files of `onnx` are written by `deploy.export`.
        precisions: precisions of the files.
        model: the folded model, for targets that are built from it.

    Returns:
        The artifact with the files' entries, and the names of the files. The gate of a file that
        cannot run on this machine is `not measured`.

    Raises:
        RecipeError: there is no such target, it has no files of a precision, or their source is
            missing.
        SetupError: a package or device is missing; nothing else is built instead.
        DataError: a file has changed since the export, or a file of another export is in the way.
        ResourceError: memory or disk ran out.
    """
    target = find_target(name)
    check_precisions(target, precisions)
    if target.source == "folded model" and model is None:
        raise RecipeError(
            f"{artifact.path} has no folded model, from which {target.label} is built.\n"
            "  Give the run that it was exported from instead of the artifact."
        )
    module = load_build(target)
    try:
        module.check_environment()
    except SetupError as error:
        raise _elsewhere(artifact, target, precisions, error) from error
    sources = {
        precision: _source(artifact, precision) if target.source == "ONNX file" else None
        for precision in precisions
    }
    names = []
    for precision, source in sources.items():
        for file in module.plan(precision):
            entry = _kept(artifact, file.name, source)
            if entry is None:
                entry = _build(artifact, target, module, file, source, model)
                artifact = _with_entry(artifact, entry)
            measured = _measured(artifact, target, entry) if entry.parity is None else entry
            if measured != entry:
                artifact = _with_entry(artifact, measured)
            names.append(measured.name)
    return artifact, tuple(names)


def warn_where_unbuildable(target: Target, precisions: Sequence[Precision]) -> None:
    """Warns if a target's files cannot be built on this machine, before the slow ONNX export."""
    try:
        module = load_build(target)
        module.check_environment()
        for precision in precisions:
            module.plan(precision)
    except SetupError as error:
        log.warning(
            "%s cannot be built on this machine: %s\n  The ONNX files are still written.",
            *(target.label, str(error).partition("\n")[0]),
        )


def check_precisions(target: Target, precisions: Sequence[Precision]) -> None:
    """Checks that a target has files of these precisions.

    Raises:
        RecipeError: it does not.
    """
    for precision in precisions:
        if precision not in target.precisions:
            remark = f" {target.remark}" if target.remark else ""
            raise RecipeError(
                f"{target.label} has no {precision.upper()} files; it has:"
                f" {', '.join(target.precisions)}.\n"
                f"  Leave --{precision} out.{remark}"
            )


def _with_entry(artifact: Artifact, entry: ModelFile) -> Artifact:
    artifact = artifact.with_files(entry)
    artifact.save()
    return artifact


def _source(artifact: Artifact, precision: Precision) -> ModelFile:
    """The ONNX file that a file is built from; ONNX files for CPUs are not used."""
    found = [file for file in artifact.files if file.target == "onnx" and file.device != "cpu"]
    for file in found:
        if file.precision == precision:
            return file
    there = ", ".join(f"{file.name} ({file.precision})" for file in found) or "none"
    flag = "" if precision == "fp32" else f" --{precision}"
    raise RecipeError(
        f"{artifact.path} has no ONNX file in {precision} to build an engine from; it has"
        f" {there}.\n"
        f"  Export the run again: kdedge export RUN{flag}"
    )


def _weights(artifact: Artifact, source: ModelFile | None) -> dict[str, str]:
    """The hash of an ONNX file's external data, as in an engine's record."""
    if source is None or source.data is None:
        return {}
    return {"onnx_data": artifact.others[source.data]}


def _kept(artifact: Artifact, name: str, source: ModelFile | None) -> ModelFile | None:
    """The entry of an existing, undamaged file that was built from this ONNX file, or None.

    Raises:
        DataError: another file of that name exists.
    """
    path = artifact.path / name
    if not path.exists():
        return None
    if source is None:  # it is unknown from which folded model
        refuse_existing(path)
        return None
    entry = next((file for file in artifact.files if file.name == name), None)
    problem = None
    if entry is None:
        problem = "exists, but is not listed in artifact.json"
    elif entry.made_from != source.sha256 or _weights(artifact, source) != {
        key: value for key, value in entry.built_with.items() if key == "onnx_data"
    }:
        problem = f"was built from another {source.name}"
    elif sha256_file(path) != entry.sha256:
        problem = "has changed since it was built: its SHA-256 differs"
    if problem is not None:
        raise DataError(
            f"{path} {problem}.\n  It is not overwritten: delete it and run the command again."
        )
    log.info("Keeping %s, which was built from this %s.", name, source.name)
    return entry


def _build(
    artifact: Artifact,
    target: Target,
    module: BuildModule,
    file: PlannedFile,
    source: ModelFile | None,
    model: Any,
) -> ModelFile:
    onnx_path = None if source is None else artifact.checked(source.name)
    request = BuildRequest(artifact, artifact.path, model=model, onnx_path=onnx_path)
    what = "the folded model" if source is None else source.name
    log.info("Building %s from %s.", file.name, what)
    began = time.monotonic()
    built_with = module.build(file, request)
    path = artifact.path / file.name
    return ModelFile(
        name=file.name,
        target=target.name,
        precision=file.precision,
        device=file.device,
        sha256=sha256_file(path),
        n_bytes=path.stat().st_size,
        made_from=None if source is None else source.sha256,
        built_with={
            **built_with,
            "seconds": round(time.monotonic() - began, 1),
            **_weights(artifact, source),
        },
    )


def _measured(artifact: Artifact, target: Target, entry: ModelFile) -> ModelFile:
    """The entry with its parity and gate; unchanged if the file cannot run on this machine."""
    try:
        if target.backend is not None:
            load_run(target).check_environment()
    except SetupError as error:
        first = str(error).partition("\n")[0]
        log.info(
            "%s is not compared with the model, as it cannot run on this machine: %s",
            entry.name,
            first,
        )
        return entry
    path = artifact.checked(entry.name)
    try:
        backend = _load(artifact, target, entry, path)
        try:
            parity = parity_on_smoke_set(artifact, backend)
        finally:
            backend.close()
    except SetupError as error:
        log.warning("%s is not compared with the model: %s", entry.name, error)
        return entry
    missed = misses(parity, entry.precision, artifact.gates)
    return dataclasses.replace(entry, parity=parity, gate="missed" if missed else "passed")


def _load(artifact: Artifact, target: Target, entry: ModelFile, path: Path) -> Backend:
    if target.backend is not None:
        return load_run(target).load(path, built_with=entry.built_with)
    module: Any = load_build(target)
    backend: Backend = module.load(path, artifact)
    return backend


def _elsewhere(
    artifact: Artifact, target: Target, precisions: Sequence[Precision], error: SetupError
) -> SetupError:
    """The error of a machine that cannot build, with the command for one that can."""
    if target.source != "ONNX file":
        return error
    words = ["kdedge", "export", str(artifact.path), target.flag]
    words += ["--int8"] if "int8" in precisions else []
    return SetupError(
        f"{error}\n"
        f"  The artifact {artifact.path} is complete without engines. To build them, copy it to"
        f" the device and run there: {shlex.join(words)}"
    )
