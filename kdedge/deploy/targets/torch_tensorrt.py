"""Torch-TensorRT: a program for PyTorch services, on the GPU that compiled it.

It needs torch where it runs. For devices without torch there are ONNX files and engines. Facts of
the API: torch_tensorrt 2.13, `dynamo.compile` and `save`; networks are strongly typed, so that the
precision is the module's own.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdedge._files import sha256_file, write_atomic
from kdedge.deploy.fold import FoldedModel
from kdedge.deploy.parity import misses, parity_on_smoke_set
from kdedge.deploy.targets._engine import refuse_existing
from kdedge.errors import MissingPackage, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, Gate, ModelFile, Precision

NAME = "torch-tensorrt"
DEVICE = "cuda"

NO_INT8 = (
    "Torch-TensorRT gets no INT8 program: its quantizer, ModelOpt's for torch, misses the queries,"
    " keys and values of CLIP's attention.\n"
    "  Build INT8 engines from the ONNX file: --trt --int8; or leave --int8 out."
)


class _FloatNorm(nn.LayerNorm):
    """A layer norm in float32 of values in any precision."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.float())


class HalfModel(nn.Module):
    """A folded model that works in half precision between float32 pixels and float32 logits.

    The layers after the last block stay in float32: they are a small part of the work, and the
    squares under the unit length would overflow half precision from 256 on.

    Args:
        model: is left as it is.
    """

    def __init__(self, model: FoldedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()
        for head in (self.model.hidden, self.model.features, self.model.fused_head):
            if head is not None:
                head.float()
        norm = self.model.ln_post
        self.model.ln_post = _FloatNorm(
            norm.normalized_shape, eps=norm.eps, elementwise_affine=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], float32 0-1 or uint8, -> logits [B, C], float32."""
        logits: Tensor = self.model(images)
        return logits


def check_environment() -> None:
    """Says what is missing for compiling.

    Raises:
        MissingPackage: torch-tensorrt is not installed.
        SetupError: torch sees no CUDA device.
    """
    if find_spec("torch_tensorrt") is None:
        raise MissingPackage("torch-tensorrt", extra="torch-tensorrt", purpose="Torch-TensorRT")
    if not torch.cuda.is_available():
        raise SetupError(
            "Torch-TensorRT compiles for the GPU that it runs on, and torch sees none here.\n"
            f"  This torch is {torch.__version__}; `nvidia-smi` shows the driver and its devices."
        )


def describe() -> dict[str, Any]:
    """Gives the versions and the device that programs are for."""
    module = _find()
    major, minor = torch.cuda.get_device_capability()
    return {
        "tool": "Torch-TensorRT",
        "version": module.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
    }


def add_programs(
    artifact: Artifact, model: FoldedModel, precisions: Sequence[Precision]
) -> tuple[Artifact, tuple[str, ...]]:
    """Compiles programs into an artifact, and measures them on its smoke set.

    Args:
        artifact: gets an entry for each program, and is saved after each.
        model: the folded model that the artifact's ONNX files were made from.
        precisions: fp32 or fp16.

    Returns:
        The artifact with the programs' entries, and their names.

    Raises:
        RecipeError: int8 is among them.
        MissingPackage: torch-tensorrt is not installed.
        SetupError: there is no CUDA device.
        DataError: a program exists, or the artifact's smoke set is damaged.
        ResourceError: the disk is full.
    """
    if "int8" in precisions:
        raise RecipeError(NO_INT8)
    check_environment()
    names = []
    about = describe()
    version = ".".join(about["version"].split("+")[0].split(".")[:3])
    tag = f"torchtrt{version}-sm{about['compute_capability'].replace('.', '')}"
    for precision in precisions:
        path = artifact.path / f"model.{precision}.{tag}.pt2"
        began = time.monotonic()
        export(
            model,
            path,
            precision=precision,
            size_px=artifact.preprocess.size_px,
            batches=artifact.batches,
        )
        entry = ModelFile(
            name=path.name,
            target=NAME,
            precision=precision,
            device="gpu",
            sha256=sha256_file(path),
            n_bytes=path.stat().st_size,
            built_with=about | {"seconds": round(time.monotonic() - began, 1)},
        )
        artifact = artifact.with_files(entry)
        artifact.save()
        parity = parity_on_smoke_set(artifact, Program(path, artifact.batches))
        gate: Gate = "missed" if misses(parity, precision, artifact.gates) else "passed"
        artifact = artifact.with_files(dataclasses.replace(entry, parity=parity, gate=gate))
        artifact.save()
        names.append(path.name)
    return artifact, tuple(names)


class Program:
    """A compiled program, run as a `runtime.backends` backend.

    Args:
        path: a file of `export`.
        batches: the smallest and the largest batch.
    """

    name = NAME

    def __init__(self, path: Path, batches: tuple[int, int]) -> None:
        self._about = describe()
        self._module = torch.export.load(path).module().to(DEVICE)
        self.batches: tuple[int, int | None] = batches

    @torch.no_grad()
    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> logits [B, C]."""
        logits: npt.NDArray[np.float32] = (
            self._module(torch.from_numpy(images).to(DEVICE)).float().cpu().numpy()
        )
        return logits

    def describe(self) -> str:
        """What runs it and on what."""
        return "{tool} {version} {device}".format(**self._about)

    def close(self) -> None:
        """Gives back the memory."""
        del self._module


def export(
    model: FoldedModel,
    path: Path,
    *,
    precision: Precision,
    size_px: int,
    batches: tuple[int, int],
) -> None:
    """Compiles one program and saves it, whole or not at all.

    Args:
        model: from `deploy.fold.fold`.
        path: the file, which must not exist; `torch.export.load` reads it once torch_tensorrt is
            imported.
        precision: fp32 or fp16.
        size_px: side of the model's images.
        batches: the smallest and the largest batch.

    Raises:
        DataError: `path` exists.
        SetupError: package or device is missing.
        ResourceError: the file cannot be written.
    """
    torch_tensorrt = _find()
    refuse_existing(path)
    program, example = trace(
        model, precision=precision, size_px=size_px, batches=batches, device=DEVICE
    )
    low, high = batches
    shape = example.shape[1:]
    images = torch_tensorrt.Input(
        min_shape=(low, *shape), opt_shape=(high, *shape), max_shape=(high, *shape),
        dtype=example.dtype, name="images",
    ) if low < high else example  # fmt: skip
    compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[images])
    # In memory first: torch's writer of files aborts the process where the disk is full
    program_file = io.BytesIO()
    torch_tensorrt.save(
        compiled,
        program_file,
        output_format="exported_program",
        arg_inputs=[example],
        dynamic_shapes=_dynamic_shapes(batches),
    )
    refuse_existing(path)  # compiling takes minutes
    write_atomic(path, program_file.getvalue())


def trace(
    model: FoldedModel,
    *,
    precision: Precision,
    size_px: int,
    batches: tuple[int, int],
    device: str = "cpu",
) -> tuple[torch.export.ExportedProgram, Tensor]:
    """Gives the program that is compiled and the images [B, 3, S, S] that it was traced with.

    Args:
        model: from `deploy.fold.fold`; it is left as it is.
        precision: fp32, or fp16 with float32 at both ends.
        size_px: side of the model's images.
        batches: the smallest and the largest batch.
        device: where to trace.
    """
    module: nn.Module = HalfModel(model) if precision == "fp16" else copy.deepcopy(model)
    dtype = torch.uint8 if model.pixels == "uint8" else torch.float32
    low, high = batches
    # A batch of 1 would be taken for a constant
    n_images = high if low == high else max(low, 2)
    images = torch.zeros(n_images, 3, size_px, size_px, dtype=dtype, device=device)
    with torch.no_grad():
        program = torch.export.export(
            module.eval().to(device), (images,), dynamic_shapes=_dynamic_shapes(batches)
        )
    return program, images


def _dynamic_shapes(batches: tuple[int, int]) -> dict[str, Any] | None:
    low, high = batches
    return {"images": {0: torch.export.Dim("batch", min=low, max=high)}} if low < high else None


def _find() -> ModuleType:
    check_environment()
    import torch_tensorrt

    module: ModuleType = torch_tensorrt
    return module
