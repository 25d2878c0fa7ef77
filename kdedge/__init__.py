"""kdedge: make a big CLIP small enough for the edge, and prove what that cost.

The names below are the Python API. Importing this module loads none of them: each is loaded when it
is first used.
"""

__version__ = "0.2.0"

TYPE_CHECKING = False  # not typing's, which would be loaded: `kdedge --help` starts at once

if TYPE_CHECKING:
    from kdedge.api.about import doctor, list_methods, schema
    from kdedge.api.artifact import (
        change_classes,
        cpu_choice,
        open_artifact,
        verify_client,
        write_browser,
        write_smoke_images,
        write_triton,
    )
    from kdedge.api.bench import bench, check_speed
    from kdedge.api.compare import Comparison, compare
    from kdedge.api.data import fetch_set, list_sets, open_set, scan_images, verify_set
    from kdedge.api.demo import demo
    from kdedge.api.evaluate import evaluate, report
    from kdedge.api.export import export
    from kdedge.api.model import LoadedModel, load
    from kdedge.api.predict import Predictions, predict
    from kdedge.api.run import Run, list_runs, open_run
    from kdedge.api.serve import serve, watch
    from kdedge.api.suite import run_suite
    from kdedge.api.train import (
        check,
        distill,
        fill_teacher_store,
        import_checkpoint,
        init,
        pseudo_label,
        teach,
        train,
    )
    from kdedge.config.load import load_recipe
    from kdedge.config.recipe import Recipe
    from kdedge.errors import (
        CellsFailed,
        DataError,
        DivergedError,
        GateError,
        Interrupted,
        InUseError,
        KdedgeError,
        RecipeError,
        ResourceError,
        SetupError,
    )
    from kdedge.progress import progress_to

_HOMES = {
    "kdedge.api.train": "check distill fill_teacher_store import_checkpoint init pseudo_label teach"
    " train",
    "kdedge.api.demo": "demo",
    "kdedge.api.suite": "run_suite",
    "kdedge.api.evaluate": "evaluate report",
    "kdedge.api.export": "export",
    "kdedge.api.artifact": "change_classes cpu_choice open_artifact verify_client write_browser"
    " write_smoke_images write_triton",
    "kdedge.api.bench": "bench check_speed",
    "kdedge.api.run": "Run list_runs open_run",
    "kdedge.api.model": "LoadedModel load",
    "kdedge.api.predict": "Predictions predict",
    "kdedge.api.compare": "Comparison compare",
    "kdedge.api.serve": "serve watch",
    "kdedge.api.data": "fetch_set list_sets open_set scan_images verify_set",
    "kdedge.api.about": "doctor list_methods schema",
    "kdedge.config.recipe": "Recipe",
    "kdedge.config.load": "load_recipe",
    "kdedge.progress": "progress_to",
    "kdedge.errors": "CellsFailed DataError DivergedError GateError InUseError Interrupted"
    " KdedgeError RecipeError ResourceError SetupError",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "CellsFailed",
    "Comparison",
    "DataError",
    "DivergedError",
    "GateError",
    "InUseError",
    "Interrupted",
    "KdedgeError",
    "LoadedModel",
    "Predictions",
    "Recipe",
    "RecipeError",
    "ResourceError",
    "Run",
    "SetupError",
    "__version__",
    "bench",
    "change_classes",
    "check",
    "check_speed",
    "compare",
    "cpu_choice",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "fetch_set",
    "fill_teacher_store",
    "import_checkpoint",
    "init",
    "list_methods",
    "list_runs",
    "list_sets",
    "load",
    "load_recipe",
    "open_artifact",
    "open_run",
    "open_set",
    "predict",
    "progress_to",
    "pseudo_label",
    "report",
    "run_suite",
    "scan_images",
    "schema",
    "serve",
    "teach",
    "train",
    "verify_client",
    "verify_set",
    "watch",
    "write_browser",
    "write_smoke_images",
    "write_triton",
]


def __getattr__(name: str) -> object:
    """Loads a name of the API."""
    if name not in _HOME:
        raise AttributeError(f"module 'kdedge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
