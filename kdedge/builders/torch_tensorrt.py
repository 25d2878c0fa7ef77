"""Compiles Torch-TensorRT programs, for PyTorch services with the same kind of GPU.

Programs need torch to run, so there is no run.py. API: `dynamo.compile` and `save` of
torch_tensorrt 2.13; networks are strongly typed, so a program has the precision of its module.
There is no INT8, since its quantizer, ModelOpt for torch, does not quantize the queries, keys and
values of CLIP's attention.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdedge.builders.program import dynamic_shapes, example_images, export_program
from kdedge.errors import SetupError
from kdedge.files import write_atomic
from kdedge.runtime.artifact import Artifact, Precision
from kdedge.targets.base import BuildRequest, PlannedFile
from kdedge.targets.torch_tensorrt import TORCH_TENSORRT


class _FloatNorm(nn.LayerNorm):
    """A layer norm that computes in float32, for inputs of any precision."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.float())


def half_model(model: nn.Module) -> Any:
    """A copy of a folded model in half precision, with float32 pixels and float32 logits.

    The layers after the last block stay in float32: they are a small part of the work, and the
    squares in the L2 norm would overflow half precision for values from 256 on.
    """
    half: Any = copy.deepcopy(model).half()
    for head in (half.hidden, half.features, half.fused_head):
        if head is not None:
            head.float()
    norm: Any = getattr(half, "ln_post", None)  # of CLIP's ViT
    if norm is not None:
        half.ln_post = _FloatNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    return half


def check_environment() -> ModuleType:
    """Imports torch_tensorrt, and checks for a GPU that torch can use.

    Raises:
        MissingPackage: torch-tensorrt is not installed.
        SetupError: torch sees no CUDA device.
    """
    package: ModuleType = TORCH_TENSORRT.load()
    if not torch.cuda.is_available():
        raise SetupError(
            "Torch-TensorRT compiles for the GPU that it runs on, but torch sees no GPU on this"
            " machine.\n"
            f"  This torch is {torch.__version__}; `nvidia-smi` shows the driver and its devices."
        )
    return package


def plan(precision: Precision) -> PlannedFile:
    """The program of a precision, named after the version and the GPU that it needs."""
    about = _about(check_environment())
    version = ".".join(about["version"].split("+")[0].split(".")[:3])
    tag = f"torchtrt{version}-sm{about['compute_capability'].replace('.', '')}"
    return PlannedFile(f"model.{precision}.{tag}.pt2", precision, "gpu")


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Compiles a program, which `torch.export.load` reads after torch_tensorrt is imported.

    Raises:
        DataError: the file exists.
        SetupError: a package or device is missing.
        ResourceError: the file cannot be written.
    """
    torch_tensorrt = check_environment()
    path = request.path
    batches = request.artifact.batches
    program, example = trace(
        request.model,
        precision=file.precision,
        size_px=request.artifact.preprocess.size_px,
        batches=batches,
        on_gpu=True,
    )
    images = example
    smallest, largest = ((n_images, *example.shape[1:]) for n_images in batches)
    if smallest != largest:
        images = torch_tensorrt.Input(
            min_shape=smallest,
            opt_shape=largest,
            max_shape=largest,
            dtype=example.dtype,
            name="images",
        )
    compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[images])
    # Saved to memory first, since torch's file writer aborts the process if the disk is full
    program_file = io.BytesIO()
    torch_tensorrt.save(
        compiled,
        program_file,
        output_format="exported_program",
        arg_inputs=[example],
        dynamic_shapes=dynamic_shapes(batches),
    )
    write_atomic(path, program_file.getvalue())
    return _about(torch_tensorrt)


class Program:
    """A compiled program, run as a backend to compare it with the model.

    Args:
        path: a file that `build` wrote.
        artifact: has batches, pixels and size of its input.
    """

    name = "torch-tensorrt"

    def __init__(self, path: Path, artifact: Artifact) -> None:
        self._about = _about(check_environment())
        self._module: Any = torch.export.load(path).module().cuda()
        size_px = artifact.preprocess.size_px
        self.batches: tuple[int, int | None] = artifact.batches
        self.pixels = artifact.pixels
        self.image_shape = (3, size_px, size_px)

    @torch.no_grad()
    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> logits [B, C]."""
        logits: npt.NDArray[np.float32] = (
            self._module(torch.from_numpy(images).cuda()).float().cpu().numpy()
        )
        return logits

    def describe(self) -> str:
        """Name, version and GPU."""
        return "{tool} {version} {device}".format(**self._about)

    def close(self) -> None:
        """Frees the memory."""
        self._module = None


load = Program


def trace(
    model: Any, *, precision: Precision, size_px: int, batches: tuple[int, int], on_gpu: bool
) -> tuple[torch.export.ExportedProgram, Tensor]:
    """Traces the model; returns the program and the images [B, 3, S, S] of the trace.

    Args:
        model: a folded model; it is not changed.
        precision: fp32, or fp16 with float32 input and output.
        size_px: side of the model's images.
        batches: smallest and largest batch.
        on_gpu: trace on torch's CUDA device, for which the program is compiled.
    """
    module = half_model(model) if precision == "fp16" else copy.deepcopy(model)
    images = example_images(model, size_px=size_px, batches=batches)
    module.eval()
    if on_gpu:
        module = module.cuda()
        images = images.cuda()
    return export_program(module, images, batches=batches), images


def _about(module: ModuleType) -> dict[str, Any]:
    """The versions and the GPU for which programs are compiled."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "tool": "Torch-TensorRT",
        "version": module.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
    }
