"""What runs a model file: one module a backend, named as the backend with `-` written as `_`.

Listing reads the folder. A backend's module imports its engine only when it is asked to check or
to load something.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from kdedge.errors import RecipeError
from kdedge.runtime.backends._protocol import BackendModule

_FOLDER = Path(__file__).parent


def list_backends() -> tuple[str, ...]:
    """Names of all backends, sorted."""
    files = (path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return tuple(sorted(stem.replace("_", "-") for stem in files))


def backend_module(name: str) -> BackendModule:
    """Imports a backend's module.

    Raises:
        RecipeError: there is no such backend.
    """
    known = list_backends()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        remedy = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
        raise RecipeError(f'There is no backend "{name}".\n  {remedy}')
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast("BackendModule", module)
