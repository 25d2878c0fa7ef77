"""Commands, functions, methods, losses, targets and benchmark sets by name.

Some are the core's, others join it. Each plugin of the core is a file in one folder, or a folder
with certain files. Other files there have a leading underscore or are listed as shared. Packages
join through a group of entry points: packages of others, and kdedge's own wings, such as
`kdedge.serving`, which the core does not import. Listing imports nothing; loading imports one
module.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from kdedge.errors import KdedgeError, RecipeError, SetupError
from kdedge.messages import one_line, suggestion
from kdedge.packages import PACKAGES


@dataclass(frozen=True)
class Plugins:
    """The plugins of one kind.

    Attributes:
        noun: the kind's name in messages, such as `method`.
        package: the package that holds the core's own plugins; None if the core has none.
        group: the group of entry points.
        parts: for each module of a plugin, the names that it must define, each with a description.
            The module "" is the plugin itself. Plugins with other modules are folders.
        shared: files or folders in the package that are not plugins.
    """

    noun: str
    package: str | None
    group: str
    parts: Mapping[str, Mapping[str, str]]
    shared: tuple[str, ...] = ()

    def own(self) -> list[str]:
        """Names of the core's own plugins, sorted."""
        if self.package is None:
            return []
        folder = _folder(self.package)
        if set(self.parts) == {""}:
            paths = [file.stem for file in folder.glob("*.py")]
        else:
            paths = [file.parent.name.replace("_", "-") for file in folder.glob("*/__init__.py")]
        return sorted(name for name in paths if name[0] != "_" and name not in self.shared)

    def outside(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages, by name; kdedge's own names are left out."""
        own = self.own()
        return {name: point for name, point in joined(self.group).items() if name not in own}

    def names(self) -> tuple[str, ...]:
        """Names of all plugins, sorted."""
        return tuple(sorted([*self.own(), *self.outside()]))

    def file(self, name: str) -> Path | None:
        """The file of a plugin's module "", which is not imported; None if there is none."""
        if self.package is not None and name in self.own():
            return _folder(self.package) / f"{name}.py"
        point = self.outside().get(name)
        return None if point is None else file_of(point)

    def load(self, name: str, module: str = "") -> ModuleType:
        """Imports a plugin's module.

        Raises:
            RecipeError: there is no plugin of this name.
            MissingPackage: the module needs a package, such as torch, that is not installed.
            SetupError: an installed package's module cannot be imported or lacks a part.
        """
        if name in self.own():
            return self._import(name, f"{self.package}.{name.replace('-', '_')}", module)
        point = self.outside().get(name)
        if point is None:
            raise RecipeError(
                f'There is no {self.noun} "{name}".\n  {suggestion(name, self.names())}'
            )
        what = f'The {self.noun} "{name}" from {point.value}'
        try:
            loaded = self._import(name, point.module, module)
        except KdedgeError:
            raise
        except Exception as error:  # another package may raise anything at import
            raise SetupError(
                f"{what} cannot be imported: {one_line(error)}.\n"
                "  Update or remove the package that it comes from."
            ) from error
        lacking = [part for part in self.parts[module] if not hasattr(loaded, part)]
        if lacking:
            texts = "".join(f"\n  {part}: {self.parts[module][part]}" for part in lacking)
            raise SetupError(f"{what} lacks {' and '.join(lacking)}.{texts}")
        return loaded

    def _import(self, name: str, package: str, module: str) -> ModuleType:
        try:
            return importlib.import_module(f"{package}.{module}".rstrip("."))
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in PACKAGES:
                raise
            raise PACKAGES[missing].missing(f"the {self.noun} {name}") from error


def _folder(package: str) -> Path:
    return Path(__file__).parents[1].joinpath(*package.split("."))


def joined(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, sorted: those of wings and of installed packages.

    No package can take a name of a wing's.
    """
    # Wings come last, as the last entry point of a name is taken
    points = sorted(_installed(group, tuple(sys.path)), key=_is_of_wing)
    return dict(sorted({point.name: point for point in points}.items()))


def _is_of_wing(point: EntryPoint) -> bool:
    return point.module.startswith("kdedge.")


def file_of(point: EntryPoint) -> Path | None:
    """The file of an entry point's module, which is not imported; None if there is none."""
    try:
        spec = find_spec(point.module)
    except Exception:  # its package may raise anything at import
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


@functools.lru_cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """A group's entry points, cached: each installed package has a file of them to read."""
    return entry_points(group=group)
