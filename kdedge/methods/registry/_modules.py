"""Modules that are found by name: the files of a folder, and entry points of installed packages."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from kdedge.config.explain import nearest
from kdedge.errors import KdedgeError, MissingPackage, RecipeError, SetupError

# Module name -> distribution that holds it, all in the extra "train".
_PACKAGES = {"torch": "torch", "torchvision": "torchvision", "open_clip": "open_clip_torch"}


@dataclass(frozen=True)
class ModuleRegistry:
    """The modules of one kind, by name. Listing imports nothing; loading imports one module.

    A name belongs to a file of the folder (no leading underscore; folders inside it hold shared
    code), or else to an entry point of the group.

    Attributes:
        noun: what one module is called in messages.
        package: the package of the folder's modules.
        folder: folder of kdedge's own modules.
        group: the entry-point group through which installed packages join.
        parts: names that every module has to hold, with what each is.
    """

    noun: str
    package: str
    folder: Path
    group: str
    parts: dict[str, str]

    def files(self) -> dict[str, Path]:
        """Names and source files of kdedge's own modules."""
        files = sorted(self.folder.glob("*.py"))
        return {file.stem: file for file in files if not file.stem.startswith("_")}

    def names(self) -> tuple[str, ...]:
        """Names of all modules, sorted."""
        return tuple(sorted({*self.files(), *self._outside()}))

    def load(self, name: str) -> ModuleType:
        """Imports the module of a name; kdedge's own win over those of installed packages.

        Raises:
            RecipeError: there is no module of this name.
            MissingPackage: the module needs a package, such as torch, that is not installed.
            SetupError: an installed package's module cannot be imported or lacks a part.
        """
        if name in self.files():
            return self._load_own(name)
        outside = self._outside().get(name)
        if outside is None:
            raise RecipeError(f'There is no {self.noun} "{name}".\n  {self.hint(name)}')
        return self._load_outside(outside)

    def hint(self, name: str) -> str:
        """Names the module that is most like an unknown name, or all modules."""
        known = self.names()
        guess = nearest(name, known)
        return f"Did you mean {guess}?" if guess else f"There are: {', '.join(known)}."

    def _load_own(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _PACKAGES:
                raise
            raise MissingPackage(
                _PACKAGES[package], extra="train", purpose=f"The {self.noun} {name}"
            ) from error

    def _load_outside(self, point: EntryPoint) -> ModuleType:
        try:
            module: ModuleType = point.load()
        except KdedgeError:
            raise
        except Exception as error:  # another package may raise anything at import
            raise SetupError(
                f'The {self.noun} "{point.name}" from {point.value} cannot be imported:'
                f" {type(error).__name__}: {error}.\n"
                "  Update or remove the package that it comes from."
            ) from error
        lacking = [part for part in self.parts if not hasattr(module, part)]
        if lacking:
            wanted = "\n".join(f"  {part}: {self.parts[part]}" for part in lacking)
            raise SetupError(
                f'The {self.noun} "{point.name}" from {point.value} lacks'
                f" {' and '.join(lacking)}.\n{wanted}"
            )
        return module

    def _outside(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
