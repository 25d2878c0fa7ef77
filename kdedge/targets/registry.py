"""The targets by name: folders next to this file, and entry points of the group `kdedge.targets`.

Listing imports each target's describe.py, which is data. An installed package's target whose
describe.py cannot be imported stays in the list, and raises the reason when it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from kdedge.errors import RecipeError, SetupError
from kdedge.targets.protocol import BuildModule, RunModule, Target

GROUP = "kdedge.targets"

_FOLDER = Path(__file__).parent
_FUNCTIONS = {"build": ("check_environment", "plan", "build"), "run": ("check_environment", "load")}


@dataclass(frozen=True)
class BrokenTarget(Target):
    """An installed package's target that cannot be used.

    Attributes:
        problem: the error message.
    """

    problem: str = ""


def list_targets() -> tuple[Target, ...]:
    """All targets: first kdedge's own, then those of installed packages, each sorted by name.

    A package's target cannot take the name, flag or backend of one of kdedge's own.
    """
    own = [_described(_own_package(name)) for name in _own_names()]
    found = {target.name: target for target in own}
    for name, point in sorted(_outside().items()):
        if name not in found:
            found[name] = _outside_target(point, found.values())
    return tuple(found.values())


def find_target(name: str) -> Target:
    """Finds a target by its name.

    Raises:
        RecipeError: there is no target of that name.
        SetupError: its package cannot be loaded.
    """
    targets = {target.name: target for target in list_targets()}
    if name not in targets:
        raise RecipeError(f'There is no target "{name}".\n  {_near(name, targets)}')
    return _usable(targets[name])


def list_backends() -> tuple[str, ...]:
    """Names of all backends, in the order of their targets."""
    return tuple(target.backend for target in list_targets() if target.backend is not None)


def target_of_backend(name: str) -> Target:
    """Finds the target whose files a backend runs.

    Raises:
        RecipeError: there is no such backend.
        SetupError: its package cannot be loaded.
    """
    for target in list_targets():
        if target.backend == name:
            return _usable(target)
    raise RecipeError(f'There is no backend "{name}".\n  {_near(name, list_backends())}')


def load_build(target: Target) -> BuildModule:
    """Imports a target's build.py.

    Raises:
        SetupError: it is an outside package's and does not load, or lacks a function.
    """
    return cast("BuildModule", _load(target, "build"))


def load_run(target: Target) -> RunModule:
    """Imports the run.py of a target that has a backend.

    Raises:
        SetupError: it is an outside package's and does not load, or lacks a function.
    """
    return cast("RunModule", _load(target, "run"))


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."


def _own_names() -> list[str]:
    folders = (path.parent.name for path in _FOLDER.glob("*/describe.py"))
    return sorted(name.replace("_", "-") for name in folders if not name.startswith("_"))


def _own_package(name: str) -> str:
    return f"{__package__}.{name.replace('-', '_')}"


def _described(package: str) -> Target:
    target = importlib.import_module(f"{package}.describe").TARGET
    assert isinstance(target, Target)
    return target


def _outside() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _outside_target(point: EntryPoint, others: Iterable[Target]) -> Target:
    try:
        target: Any = _import(point, "describe").TARGET
    except (SetupError, AttributeError) as error:
        return _broken(point, str(error))
    if not isinstance(target, Target) or target.name != point.name:
        return _broken(point, f"TARGET in its describe.py is not a Target named {point.name!r}")
    for other in others:
        if target.flag == other.flag or target.backend in (other.backend or "", other.name):
            return _broken(point, f"its flag or its backend's name is already that of {other.name}")
    return target


def _broken(point: EntryPoint, reason: str) -> BrokenTarget:
    return BrokenTarget(
        name=point.name,
        label=point.name,
        flag=f"--{point.name}",
        help=f"Not usable: {point.value} cannot be imported.",
        files="",
        source="folded model",
        precisions=("fp32",),
        backend=point.name,
        problem=f'The target "{point.name}" from {point.value} cannot be used: {reason}.\n'
        f"  Update or remove that package. An entry point of the group {GROUP} must name a package"
        " with the modules describe, build and run.",
    )


def _usable(target: Target) -> Target:
    if isinstance(target, BrokenTarget):
        raise SetupError(target.problem)
    return target


def _load(target: Target, part: str) -> ModuleType:
    _usable(target)
    if target.name in _own_names():
        return importlib.import_module(f"{_own_package(target.name)}.{part}")
    point = _outside()[target.name]
    try:
        module = _import(point, part)
    except SetupError as error:
        raise SetupError(_broken(point, str(error)).problem) from error
    lacking = [name for name in _FUNCTIONS[part] if not hasattr(module, name)]
    if lacking:
        reason = f"its {part}.py has no {' and no '.join(lacking)}"
        raise SetupError(_broken(point, reason).problem)
    return module


def _import(point: EntryPoint, part: str) -> ModuleType:
    """Imports a module of an outside package.

    Raises:
        SetupError: it cannot be imported; another package's module may raise anything.
    """
    try:
        return importlib.import_module(f"{point.module}.{part}")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise SetupError(f"{part}.py cannot be imported ({reason})") from error
