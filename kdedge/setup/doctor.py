"""Reports this machine's hardware and packages, and problems of training and targets."""

from __future__ import annotations

import importlib
import platform
import shutil
from pathlib import Path
from typing import Any

from kdedge import __version__
from kdedge.errors import SetupError
from kdedge.messages import first_line
from kdedge.packages import PACKAGES, Package
from kdedge.runtime.cuda import find_gpus
from kdedge.runtime.machine import cpu_cores, cpu_model, memory_bytes
from kdedge.targets.registry import list_targets


def optional_packages() -> tuple[Package, ...]:
    """Every optional package of kdedge and of the targets, each once."""
    target_packages = [package for target in list_targets() for package in target.packages]
    return tuple({p.module: p for p in (*PACKAGES.values(), *target_packages)}.values())


def examine() -> dict[str, Any]:
    """Returns facts of the machine, its GPUs and the optional packages as plain values."""
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
