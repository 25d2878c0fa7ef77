"""Show what this machine has and what it lacks for each step."""

from __future__ import annotations

import importlib
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import click

from kdedge import __version__
from kdedge.cli._output import gibibytes, json_option, print_result, table
from kdedge.deploy.targets._platform import find_cuda_device, jetson_wheel_problem
from kdedge.errors import SetupError
from kdedge.runtime.machine import cpu_cores, cpu_model, memory_bytes


class _Package(NamedTuple):
    """An optional package.

    Attributes:
        name: what it is called in the list.
        distributions: any of these brings it.
        install: the pip line.
        purpose: what needs it.
    """

    name: str
    distributions: tuple[str, ...]
    install: str
    purpose: str


def _from_extra(extra: str) -> str:
    return f"pip install 'kdedge[{extra}]'"


_PACKAGES = (
    _Package("torch", ("torch",), _from_extra("train"), "training"),
    _Package("torchvision", ("torchvision",), _from_extra("train"), "training"),
    _Package("open_clip", ("open_clip_torch",), _from_extra("train"), "backbones"),
    _Package("timm", ("timm",), _from_extra("train"), "backbones without texts"),
    _Package("torchmetrics", ("torchmetrics",), _from_extra("train"), "evaluation"),
    _Package("webdataset", ("webdataset",), _from_extra("train"), "tar shards"),
    _Package("datasets", ("datasets",), _from_extra("data"), "Parquet, Hugging Face datasets"),
    _Package("scipy", ("scipy",), _from_extra("data"), "labels of two benchmark sets"),
    _Package("tensorboard", ("tensorboard",), _from_extra("train"), "curves"),
    _Package("onnx", ("onnx",), _from_extra("export"), "ONNX files"),
    _Package("onnxscript", ("onnxscript",), _from_extra("export"), "ONNX files"),
    _Package("modelopt", ("nvidia-modelopt",), _from_extra("export"), "FP16 and INT8 files"),
    _Package(
        "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), _from_extra("runtime"),
        "running ONNX files",
    ),
    _Package(
        "tensorrt", ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
        "pip install tensorrt (on a Jetson, JetPack brings it)", "TensorRT engines",
    ),
    _Package(
        "tensorrt_rtx", ("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
        _from_extra("trt-rtx"), "TensorRT-RTX engines",
    ),
    _Package(
        "torch_tensorrt", ("torch-tensorrt",), _from_extra("torch-tensorrt"),
        "programs for PyTorch services",
    ),
    _Package("pynvml", ("nvidia-ml-py",), _from_extra("power"), "a GPU's watts and clocks"),
    _Package("matplotlib", ("matplotlib",), _from_extra("report"), "reports"),
    _Package("jinja2", ("jinja2",), _from_extra("report"), "reports"),
    _Package(
        "cv2", ("opencv-python-headless", "opencv-python"), "pip install opencv-python-headless",
        "cameras",
    ),
)  # fmt: skip


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine has and what it lacks for each step.

    Nothing is installed, and the network is not used.
    """
    report = examine()
    print_result(report, as_json=as_json, text=_as_text(report))


def examine() -> dict[str, Any]:
    """Gives the machine, its CUDA devices and the optional packages as plain values."""
    packages = {package.name: _examine_package(package) for package in _PACKAGES}
    return {
        "machine": _machine(),
        "cuda": _cuda() if packages["torch"]["version"] else _cuda_of_the_driver(),
        "packages": packages,
        "problems": [problem for problem in (jetson_wheel_problem(),) if problem is not None],
    }


def _machine() -> dict[str, Any]:
    memory = memory_bytes()
    return {
        "kdedge": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_cores": cpu_cores(),
        "memory_bytes": memory,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def _examine_package(package: _Package) -> dict[str, Any]:
    found = None
    for distribution in package.distributions:
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        break
    install = None if found else package.install
    return {"version": found, "purpose": package.purpose, "install": install}


def _cuda() -> dict[str, Any]:
    """CUDA devices as torch sees them."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return {"devices": [], "problem": f"torch cannot be imported: {error}"}
    if torch.version.cuda is None:
        return {"devices": [], "problem": "this torch was built without CUDA"}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
            }
        )
    problem = None if devices else "torch sees no CUDA device: is the NVIDIA driver installed?"
    return {"devices": devices, "problem": problem}


def _cuda_of_the_driver() -> dict[str, Any]:
    """The CUDA device that engines are for, where there is no torch, as on a device."""
    try:
        device = find_cuda_device()
    except SetupError as error:
        return {"devices": [], "problem": str(error).partition("\n")[0].rstrip(".")}
    found = {"name": device.name, "memory_bytes": None, "compute_capability": device.capability}
    return {"devices": [{**found, "cuda": None}], "problem": None}


def _as_text(report: dict[str, Any]) -> str:
    machine = report["machine"]
    memory = machine["memory_bytes"]
    rows = [
        ["kdedge", machine["kdedge"]],
        ["Python", machine["python"]],
        ["system", machine["system"]],
        ["CPU", f"{machine['cpu']}, {machine['cpu_cores']} cores"],
        ["memory", gibibytes(memory) if memory is not None else "unknown"],
        ["free disk", f"{gibibytes(machine['disk_free_bytes'])} in this folder"],
    ]
    rows += [["GPU", _device_line(device)] for device in report["cuda"]["devices"]]
    if not report["cuda"]["devices"]:
        rows.append(["GPU", f"none: {report['cuda']['problem']}"])
    packages = [
        [name, found["version"] or "missing", found["purpose"], found["install"] or ""]
        for name, found in report["packages"].items()
    ]
    header = ("package", "version", "for", "install with")
    return "\n\n".join([table(rows), table(packages, header=header), *report["problems"]])


def _device_line(device: dict[str, Any]) -> str:
    parts = [device["name"]]
    if device["memory_bytes"] is not None:
        parts.append(gibibytes(device["memory_bytes"]))
    parts.append(f"compute capability {device['compute_capability']}")
    if device["cuda"] is not None:
        parts.append(f"CUDA {device['cuda']}")
    return ", ".join(parts)
