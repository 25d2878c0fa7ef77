"""Describes this machine and its packages, the methods, and the keys of a recipe."""

from __future__ import annotations

import importlib
import logging
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from kdedge import __version__
from kdedge.errors import KdedgeError, SetupError
from kdedge.messages import first_line
from kdedge.methods import registry
from kdedge.packages import PACKAGES, Package
from kdedge.runtime.cuda import find_gpus
from kdedge.runtime.machine import cpu_cores, cpu_model, memory_bytes
from kdedge.targets.registry import list_targets, target_records

log = logging.getLogger(__name__)


def doctor() -> dict[str, Any]:
    """Shows what this machine has and what each step still needs, as plain values.

    Nothing is installed, and the network is not used.

    Returns:
        `machine`, `cuda` with its devices, `packages` with versions and how to install missing
        ones, and `problems`, a list of texts.
    """
    packages = {
        package.module: {
            "version": package.version,
            "purpose": package.purpose,
            "install": None if package.version else package.install_line,
        }
        for package in optional_packages()
    }
    problems = [target.find_problem() for target in list_targets()]
    return {
        "machine": {
            "kdedge": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cpu": cpu_model(),
            "cpu_cores": cpu_cores(),
            "memory_bytes": memory_bytes(),
            "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        },
        "cuda": _cuda(has_torch=packages["torch"]["version"] is not None),
        "packages": packages,
        "problems": [problem for problem in problems if problem is not None],
    }


def list_methods() -> dict[str, dict[str, Any]]:
    """Lists the methods that a recipe can name, and what each is trained on.

    Returns:
        By name: `label`, `paper`, `about`, whether it is trained on `labels`, `unlabeled_images`
        and `novel_class_names`, and the `losses` that its settings can name. A method that cannot
        be loaded has an empty entry, and a warning says why.
    """
    modules = _loaded_methods("only the names are listed")
    return {
        name: describe(modules[name]) if name in modules else {} for name in registry.list_methods()
    }


def schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe.

    Returns:
        The schema, with each method's settings under `methods` and the targets of `export` under
        `targets`. A method that cannot be loaded is left out, and a warning says why.
    """
    from kdedge.config.recipe import Recipe

    modules = _loaded_methods("the settings are not listed")
    settings = {name: module.Settings.model_json_schema() for name, module in modules.items()}
    return {**Recipe.model_json_schema(), "methods": settings, "targets": target_records()}


def optional_packages() -> tuple[Package, ...]:
    """Every optional package of kdedge and of the targets, each once."""
    target_packages = [package for target in list_targets() for package in target.packages]
    return tuple({p.module: p for p in (*PACKAGES.values(), *target_packages)}.values())


def _cuda(*, has_torch: bool) -> dict[str, Any]:
    """The driver's GPUs, and the reason if torch is installed and cannot use them."""
    torch_cuda, problem = _cuda_of_torch() if has_torch else (None, None)
    try:
        gpus = find_gpus()
    except SetupError as error:
        return {"devices": [], "problem": first_line(error)}
    devices = [
        {
            "name": gpu.name,
            "memory_bytes": gpu.memory_bytes,
            "compute_capability": gpu.compute_capability,
            "cuda": torch_cuda,
        }
        for gpu in gpus
    ]
    return {"devices": devices, "problem": problem}


def _cuda_of_torch() -> tuple[str | None, str | None]:
    """The CUDA version of torch or None, and the reason if torch cannot use GPUs."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return None, f"torch cannot be imported: {error}"
    if torch.version.cuda is None:
        return None, "the installed torch was built without CUDA"
    problem = None if torch.cuda.is_available() else "torch sees no CUDA device"
    return torch.version.cuda, problem


def _loaded_methods(effect: str) -> dict[str, ModuleType]:
    """Returns the methods that can be loaded; a warning names the others and ends with `effect`."""
    modules: dict[str, ModuleType] = {}
    problems: dict[str, list[str]] = {}
    for name in registry.list_methods():
        try:
            modules[name] = registry.load_method(name)
        except KdedgeError as error:
            problems.setdefault(getattr(error, "remedy", str(error)), []).append(name)
    for problem, names in problems.items():
        log.warning(f"{', '.join(names)} cannot be loaded; {effect}.\n  {problem}")
    return modules


def describe(module: ModuleType) -> dict[str, Any]:
    """A method's declared facts, and the losses that its settings can name, if any."""
    from kdedge.methods.losses import ChosenLosses

    declared = module.METHOD
    facts = {
        "label": declared.label,
        "paper": declared.paper,
        "about": (module.__doc__ or "").partition("\n")[0],
        **asdict(declared.main_data_needs),
    }
    field = module.Settings.model_fields.get("losses")
    kind = None if field is None else field.annotation
    if isinstance(kind, type) and issubclass(kind, ChosenLosses):
        facts["losses"] = {name: str(loss.description) for name, loss in kind.model_fields.items()}
    return facts
