"""kdedge: trains small image classifiers from large ones, for devices, and measures what is lost.

Importing this module loads none of the names of the Python API: each is loaded when it is first
used. `__init__.pyi` tells editors and type checkers of them.
"""

import functools

__version__ = "0.2.0"

# Modules of the core -> their names of the API. Those of wings, and of installed packages, are the
# entry points of the group `kdedge.api`.
_CORE = {
    "kdedge.api.about": (
        "Diagnosis",
        "Methods",
        "doctor",
        "list_methods",
        "schema",
    ),
    "kdedge.api.artifact": (
        "change_classes",
        "cpu_choice",
        "open_artifact",
        "verify_client",
        "write_smoke_images",
    ),
    "kdedge.api.bench": ("bench",),
    "kdedge.api.check": ("check",),
    "kdedge.api.compare": ("compare",),
    "kdedge.api.data": ("scan_images",),
    "kdedge.api.demo": (
        "Demo",
        "demo",
    ),
    "kdedge.api.evaluate": ("evaluate",),
    "kdedge.api.export": ("export",),
    "kdedge.api.init": (
        "NewRecipe",
        "init",
    ),
    "kdedge.api.model": (
        "LoadedModel",
        "load",
    ),
    "kdedge.api.predict": (
        "Predictions",
        "predict",
    ),
    "kdedge.api.report": ("report",),
    "kdedge.api.run": (
        "ImageFeatures",
        "Run",
        "list_runs",
        "open_run",
    ),
    "kdedge.api.train": (
        "distill",
        "fill_teacher_store",
        "teach",
        "train",
    ),
    "kdedge.config.load": (
        "LoadedRecipe",
        "load_recipe",
    ),
    "kdedge.config.recipe": ("Recipe",),
    "kdedge.inference.comparison": ("Comparison",),
    "kdedge.data.survey": ("Survey",),
    "kdedge.artifacts.client": ("ClientCheck",),
    "kdedge.errors": (
        "CellsFailed",
        "DataError",
        "DivergedError",
        "GateError",
        "InUseError",
        "Interrupted",
        "KdedgeError",
        "MissingPackage",
        "RecipeError",
        "ResourceError",
        "SetupError",
    ),
    "kdedge.inference.results": (
        "ClassScore",
        "NonFiniteLogits",
        "Prediction",
    ),
    "kdedge.progress": ("progress_to",),
    "kdedge.runtime.preprocess": ("UnreadableImage",),
    "kdedge.runtime.process": ("compute_threads",),
    "kdedge.records.evaluation": (
        "EvalResult",
        "UnlabeledResult",
    ),
    "kdedge.runs.provenance": ("Provenance",),
    "kdedge.runtime.artifact": ("Artifact",),
    "kdedge.runtime.cpu_choice": ("CpuChoice",),
    "kdedge.records.speed": ("SpeedResult",),
    "kdedge.records.tables": ("Table",),
    "kdedge.training.preflight": ("Preflight",),
    "kdedge.training.output_store.store": ("OutputStore",),
}


@functools.cache
def _modules() -> dict[str, str]:
    """Maps each name of the API to the module that defines it."""
    from kdedge.plugins import joined  # imported here so that `import kdedge` is quick

    core = {name: module for module, names in _CORE.items() for name in names}
    return {name: point.module for name, point in joined("kdedge.api").items()} | core


def __getattr__(name: str) -> object:
    """Imports the module of an API name when the name is first used."""
    from importlib import import_module

    if name == "__all__":
        return __dir__()
    if name.startswith("__") or name not in _modules():
        raise AttributeError(f"module 'kdedge' has no attribute {name!r}")
    try:
        globals()[name] = value = getattr(import_module(_modules()[name]), name)
    except ModuleNotFoundError as error:  # classes that need torch or uvicorn
        raise AttributeError(f"kdedge.{name} needs {error.name}, which is missing") from error
    return value


def __dir__() -> list[str]:
    """Lists the names of the API, without classes whose packages are missing."""
    from importlib.util import find_spec

    needs = {
        "kdedge.training.": "torch",
        "kdedge.paper.pseudo_labels.file": "torch",
        "kdedge.serving.server": "uvicorn",
    }
    missing = tuple(prefix for prefix, package in needs.items() if find_spec(package) is None)
    names = [name for name, module in _modules().items() if not module.startswith(missing)]
    return sorted(["__version__", *names])
