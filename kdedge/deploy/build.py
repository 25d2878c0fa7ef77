"""A target's files into an artifact: built from its ONNX files or the folded model, then compared.

Engines are built on the machine that runs them, which needs neither torch nor onnx. A file that is
there already and was built from the same ONNX file is kept. Where a file can run, its logits on the
artifact's smoke set decide whether it passes the gates.
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
    """Builds what is missing of a target's files and compares what can run here.

    Args:
        artifact: its folder gets the files, and `artifact.json` is saved after each.
        name: the target's, other than `onnx`, whose files `deploy.export` writes.
        precisions: of the files.
        model: the folded model, for targets that are built from it.

    Returns:
        The artifact with the files' entries, and their names. The gate of a file that cannot run
        here is `not measured`.

    Raises:
        RecipeError: there is no such target, it makes no files of a precision, or what they are
            built from is not there.
        SetupError: package or device is missing; nothing was built in its place.
        DataError: a file is not what was exported, or another export's file is in the way.
        ResourceError: memory or disk ran out.
    """
    target = find_target(name)
    check_precisions(target, precisions)
    if target.source == "folded model" and model is None:
        raise RecipeError(
            f"{artifact.path} holds no folded model, which {target.label} is built from.\n"
            "  Name the run that it was exported from."
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
    """Says that a target's files cannot be built here, before the slow export of the ONNX files."""
    try:
        module = load_build(target)
        module.check_environment()
        for precision in precisions:
            module.plan(precision)
    except SetupError as error:
        log.warning(
            "%s cannot be built here: %s\n  The ONNX files are written all the same.",
            *(target.label, str(error).partition("\n")[0]),
        )


def check_precisions(target: Target, precisions: Sequence[Precision]) -> None:
    """Makes sure that a target makes files of these precisions.

    Raises:
        RecipeError: it does not.
    """
    for precision in precisions:
        if precision not in target.precisions:
            remark = f" {target.remark}" if target.remark else ""
            raise RecipeError(
                f"There is no {precision.upper()} in {target.label}'s files; there are:"
                f" {', '.join(target.precisions)}.\n  Leave --{precision} out.{remark}"
            )


def _with_entry(artifact: Artifact, entry: ModelFile) -> Artifact:
    artifact = artifact.with_files(entry)
    artifact.save()
    return artifact


def _source(artifact: Artifact, precision: Precision) -> ModelFile:
    """The ONNX file that a file is built from; those made for CPUs are not."""
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


def _weights(artifact: Artifact, source: ModelFile | None) -> dict[str, str]:
    """The hash of an ONNX file's external data, as an engine's record keeps it."""
    if source is None or source.data is None:
        return {}
    return {"onnx_data": artifact.others[source.data]}


def _kept(artifact: Artifact, name: str, source: ModelFile | None) -> ModelFile | None:
    """The entry of a file that was built from this ONNX file and is undamaged; None without one.

    Raises:
        DataError: the file is there and is another one.
    """
    path = artifact.path / name
    if not path.exists():
        return None
    if source is None:  # nobody knows from which folded model
        refuse_existing(path)
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
    """The entry with its parity and gate; as it is where the file cannot run here."""
    try:
        if target.backend is not None:
            load_run(target).check_environment()
    except SetupError as error:
        first = str(error).partition("\n")[0]
        log.info("%s is not measured, as it cannot run here: %s", entry.name, first)
        return entry
    path = artifact.checked(entry.name)
    try:
        backend = _load(artifact, target, entry, path)
        try:
            parity = parity_on_smoke_set(artifact, backend)
        finally:
            backend.close()
    except SetupError as error:
        log.warning("%s is not measured: %s", entry.name, error)
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
    """The error of a machine that cannot build, with the step to run on one that can."""
    if target.source != "ONNX file":
        return error
    words = ["kdedge", "export", str(artifact.path), target.flag]
    words += ["--int8"] if "int8" in precisions else []
    return SetupError(
        f"{error}\n  The artifact {artifact.path} is complete without engines. Copy it to the"
        f" device and run there: {shlex.join(words)}"
    )
