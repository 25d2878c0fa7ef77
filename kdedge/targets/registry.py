"""The targets by name: folders next to this file, and entry points of the group `kdedge.targets`.

A target that is built with torch has its build module in `kdedge/builders/`: no code in this folder
loads torch.

Listing imports each target's `__init__.py`, which only has data. An installed package's target that
cannot be imported is left out with a warning; using it raises an error with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.messages import suggestion
from kdedge.plugins import Plugins
from kdedge.targets.base import BuildModule, PlannedFile, RunModule, Target

if TYPE_CHECKING:
    from kdedge.runtime.artifact import Artifact, ModelFile, Precision
    from kdedge.runtime.backend import Backend

log = logging.getLogger(__name__)

_TARGETS = Plugins(
    noun="target",
    package="kdedge.targets",
    group="kdedge.targets",
    parts={
        "build": {"build": "see kdedge.targets.base.BuildModule."},
        "run": {"load": "see kdedge.targets.base.RunModule."},
        "": {"TARGET": "a kdedge.targets.base.Target."},
    },
    shared=("engines",),
)
_BUILDERS = Plugins(
    noun="target",
    package="kdedge.builders",
    group="kdedge.builders",
    parts={"": _TARGETS.parts["build"]},
    shared=("program",),
)


def list_targets() -> tuple[Target, ...]:
    """Lists the targets, kdedge's own first; warns about targets that cannot be loaded."""
    targets = [_TARGETS.load(name).TARGET for name in _TARGETS.own()]
    for name in _TARGETS.outside():
        try:
            targets.append(_TARGETS.load(name).TARGET)
        except SetupError as error:
            log.warning("%s", error)
    return tuple(targets)


def find_target(name: str) -> Target:
    """Returns a target by name.

    Raises:
        RecipeError: there is no target of this name.
        SetupError: the target belongs to an installed package and cannot be loaded.
    """
    target: Target = _TARGETS.load(name).TARGET
    return target


def check_precisions(target: Target, precisions: Sequence[Precision]) -> None:
    """Checks that a target has files of these precisions.

    Raises:
        RecipeError: the target does not have them.
    """
    for precision in precisions:
        if precision not in target.precisions:
            remark = f" {target.remark}" if target.remark else ""
            raise RecipeError(
                f"{target.label} has no {precision.upper()} files; it has:"
                f" {', '.join(target.precisions)}.\n"
                f"  Leave {precision.upper()} out.{remark}"
            )


def list_backends() -> tuple[str, ...]:
    """Names of all backends, in the order of their targets."""
    return tuple(target.backend for target in list_targets() if target.backend is not None)


def target_of_backend(name: str) -> Target:
    """Finds the target whose files a backend runs.

    Raises:
        RecipeError: there is no such backend.
    """
    for target in list_targets():
        if target.backend == name:
            return target
    raise RecipeError(f'There is no backend "{name}".\n  {suggestion(name, list_backends())}')


def build_module(target: Target) -> BuildModule:
    """Imports what builds a target's files: its build.py, or a file of `kdedge/builders/`.

    Raises:
        MissingPackage: torch is needed and not installed.
        SetupError: the module of an installed package cannot be imported or lacks a function.
    """
    name = target.name.replace("-", "_")
    if name in _BUILDERS.own():
        return cast("BuildModule", _BUILDERS.load(name))
    return cast("BuildModule", _TARGETS.load(target.name, "build"))


def run_module(target: Target) -> RunModule:
    """Imports the run.py of a target that has a backend.

    Raises:
        SetupError: the module of an installed package cannot be imported or lacks a function.
    """
    return cast("RunModule", _TARGETS.load(target.name, "run"))


def check_can_build(target: Target) -> None:
    """Checks for the packages and devices of a build, before any slow work.

    Raises:
        SetupError: a package or device is missing or broken.
    """
    check = getattr(build_module(target), "check_environment", None)
    if check is not None:
        check()
        return
    for package in target.build_packages:
        package.load()


def planned_file(target: Target, precision: Precision) -> PlannedFile:
    """The file of a precision that can be built on this machine.

    Raises:
        SetupError: a package or device on which the name depends is missing.
    """
    return getattr(build_module(target), "plan", target.plan)(precision)


def check_can_run(target: Target) -> None:
    """Checks for the package of the target's backend, and for a GPU if it runs engines.

    Raises:
        MissingPackage, BackendUnavailable: the package, the driver or the device is missing.
        SetupError: the package, the driver or the device is broken.
    """
    if target.run_package is not None:
        target.run_package.load()
    if target.is_engine:
        from kdedge.runtime.cuda import open_cuda  # loads ctypes, which listing does not need

        open_cuda()


def target_records() -> dict[str, dict[str, Any]]:
    """All targets as plain values, by name."""
    return {
        target.name: {
            "flag": target.flag,
            "help": target.help,
            "files": target.files,
            "built_from": target.source,
            "precisions": list(target.precisions),
            "backend": target.backend,
            "extras": list(dict.fromkeys(p.extra for p in target.build_packages if p.extra)),
            "remark": target.remark,
        }
        for target in list_targets()
    }


def check_utf_8(path: Path) -> None:
    """Checks that runtimes can open files at a path.

    Raises:
        DataError: the path is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{str(path)!a} is not UTF-8, and runtimes cannot open it.\n"
            "  Rename its folder; or, if its name is UTF-8, set LC_ALL=C.UTF-8."
        ) from error


def load_file(artifact: Artifact, file: ModelFile, *, n_threads: int | None = None) -> Backend:
    """Loads a file's backend, whose outputs are logits; the caller closes it.

    Args:
        artifact: the artifact.
        file: one of its files, of a target that has a backend.
        n_threads: CPU threads; None for the runtime's default.

    Raises:
        DataError: the file or the class matrix has changed since it was written, the file states
            another description than the artifact, or the file's path is not UTF-8.
        SetupError: this machine cannot run the file; it is a `MissingPackage` or a
            `BackendUnavailable` if a package, driver or device is missing.
    """
    # They load NumPy, which listing does not need
    from kdedge.runtime.backend import HasMetadata
    from kdedge.runtime.open_classes import with_classes

    target = find_target(file.target)
    module = run_module(target)
    check_can_run(target)
    path = artifact.checked(file.name)
    check_utf_8(path)
    loaded = module.load(path, n_threads=n_threads, built_with=file.built_with or None)
    if isinstance(loaded, HasMetadata):
        try:
            artifact.check_metadata(file.name, loaded.metadata)
        except DataError:
            loaded.close()
            raise
    return with_classes(artifact, loaded)
