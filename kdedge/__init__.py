"""kdedge: make a big CLIP small enough for the edge, and prove what that cost.

The names below are the Python API. Importing this module loads none of them: each is loaded when it
is first used.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # not typing's, which would be loaded: `kdedge --help` starts at once

if TYPE_CHECKING:
    from kdedge.api.bench import bench
    from kdedge.api.check import check
    from kdedge.api.evaluate import evaluate
    from kdedge.api.export import export
    from kdedge.api.init import init
    from kdedge.api.model import LoadedModel, load
    from kdedge.api.pseudo_label import pseudo_label
    from kdedge.api.report import report
    from kdedge.api.run import Run, list_runs, open_run
    from kdedge.api.suite import run_suite
    from kdedge.api.train import distill, teach, train
    from kdedge.config.load import load_recipe
    from kdedge.config.recipe import Recipe
    from kdedge.errors import (
        DataError,
        DivergedError,
        GateError,
        KdedgeError,
        RecipeError,
        ResourceError,
        SetupError,
    )
    from kdedge.progress import progress_to

_HOMES = {
    "kdedge.api.train": ("teach", "distill", "train"),
    "kdedge.api.init": ("init",),
    "kdedge.api.check": ("check",),
    "kdedge.api.pseudo_label": ("pseudo_label",),
    "kdedge.api.suite": ("run_suite",),
    "kdedge.api.evaluate": ("evaluate",),
    "kdedge.api.export": ("export",),
    "kdedge.api.bench": ("bench",),
    "kdedge.api.report": ("report",),
    "kdedge.api.run": ("Run", "open_run", "list_runs"),
    "kdedge.api.model": ("load", "LoadedModel"),
    "kdedge.config.recipe": ("Recipe",),
    "kdedge.config.load": ("load_recipe",),
    "kdedge.progress": ("progress_to",),
    "kdedge.errors": (
        *("KdedgeError", "RecipeError", "DataError", "SetupError"),
        *("DivergedError", "GateError", "ResourceError"),
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DataError",
    "DivergedError",
    "GateError",
    "KdedgeError",
    "LoadedModel",
    "Recipe",
    "RecipeError",
    "ResourceError",
    "Run",
    "SetupError",
    "__version__",
    "bench",
    "check",
    "distill",
    "evaluate",
    "export",
    "init",
    "list_runs",
    "load",
    "load_recipe",
    "open_run",
    "progress_to",
    "pseudo_label",
    "report",
    "run_suite",
    "teach",
    "train",
]


def __getattr__(name: str) -> object:
    """Loads a name of the API."""
    if name not in _HOME:
        raise AttributeError(f"module 'kdedge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
