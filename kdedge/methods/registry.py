"""The methods by name: this folder's files, and entry points of the group `kdedge.methods`.

Listing imports nothing; loading imports the one module.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from kdedge.config.explain import nearest
from kdedge.errors import MissingPackage, RecipeError, SetupError
from kdedge.methods.sees import Sees, read_sees

GROUP = "kdedge.methods"

# Module name -> distribution that brings it, all in the extra "train".
_PACKAGES = {"torch": "torch", "torchvision": "torchvision", "open_clip": "open_clip_torch"}

_FOLDER = Path(__file__).parent
_NO_METHODS = {"protocol", "registry", "sees", "supervised"}


def list_methods() -> tuple[str, ...]:
    """Names of all methods, sorted: kdedge's own and those of installed packages."""
    return tuple(sorted({*method_files(), *_outside()}))


def method_files() -> dict[str, Path]:
    """Names and source files of kdedge's own methods."""
    return {
        path.stem: path
        for path in sorted(_FOLDER.glob("*.py"))
        if not path.stem.startswith("_") and path.stem not in _NO_METHODS
    }


def declared_sees() -> dict[str, Sees]:
    """What each of kdedge's own methods declares to learn from; nothing is imported."""
    return {name: read_sees(file) for name, file in method_files().items()}


def load_method(name: str) -> ModuleType:
    """Imports a method's module, which holds `Settings`, `SEES` and `Method`.

    A package's method cannot take the name of one of kdedge's own.

    Raises:
        RecipeError: there is no such method.
        MissingPackage: the method needs a package, such as torch, that is not installed.
        SetupError: a package's method lacks one of them.
    """
    if name in method_files():
        try:
            return importlib.import_module(f"kdedge.methods.{name}")
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _PACKAGES:
                raise
            raise MissingPackage(
                _PACKAGES[package], extra="train", purpose=f"The method {name}"
            ) from error
    outside = _outside()
    if name not in outside:
        known = list_methods()
        guess = nearest(name, known)
        remedy = f"Did you mean {guess}?" if guess else f"There are: {', '.join(known)}."
        raise RecipeError(f'There is no method "{name}".\n  {remedy}')
    module: ModuleType = outside[name].load()
    lacking = [part for part in ("Settings", "SEES", "Method") if not hasattr(module, part)]
    if lacking:
        raise SetupError(
            f'The method "{name}" from {outside[name].value} has no {" and no ".join(lacking)}.\n'
            f"  An entry point of the group {GROUP} names a module that holds all three."
        )
    return module


def _outside() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
