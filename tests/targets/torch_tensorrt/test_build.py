"""Torch-TensorRT's target without it: the program that it gets, and what it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.artifacts.build import ExportInputs, build_files
from kdedge.artifacts.parity import (
    SMOKE_SET,
    SmokeSet,
    parity_on_smoke_set,
    read_smoke_set,
    write_smoke_set,
)
from kdedge.builders import torch_tensorrt as target
from kdedge.errors import MissingPackage, RecipeError, SetupError
from kdedge.fold import FoldedModel
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.targets.base import BuildRequest, PlannedFile
from kdedge.targets.registry import find_target


def sha256_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A torch_tensorrt that writes down what it is asked for, on an L4 that traces on the CPU."""
    seen = SimpleNamespace(inputs=[], compiled=[], saved=[])

    def compile_program(program: Any, **options: Any) -> Any:
        seen.compiled.append((program, options))
        return program

    def save(module: Any, file: Any, **options: Any) -> None:
        seen.saved.append((module, options))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of weights that share a storage
            torch.export.save(module, file)  # as torch_tensorrt does in the end

    def describe_input(**options: Any) -> Any:
        seen.inputs.append(options)
        return "images"

    module = ModuleType("torch_tensorrt")
    module.__spec__ = ModuleSpec("torch_tensorrt", None)
    vars(module).update(
        __version__="2.13.0+cu130",
        Input=describe_input,
        dynamo=SimpleNamespace(compile=compile_program),
        save=save,
    )
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    monkeypatch.setattr(Tensor, "cuda", lambda value: value)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda value: value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    return seen


@pytest.fixture
def artifact(
    tmp_path: Path, block_model: FoldedModel, save_artifact: Callable[..., Artifact]
) -> Artifact:
    """An artifact whose smoke set holds the model's answers."""
    return save_artifact(tmp_path / "artifact", block_model)


@pytest.fixture
def inputs(block_model: FoldedModel) -> ExportInputs:
    """What a run's export has."""
    return ExportInputs(block_model, parity_on_smoke_set)


@pytest.fixture
def compile_program(
    block_model: FoldedModel, tiny_artifact: Callable[..., Artifact]
) -> Callable[..., None]:
    """Compiles one program without an artifact's other files."""

    def build(path: Path, precision: Any, **batches: Any) -> None:
        artifact = tiny_artifact(path.parent, **batches)
        request = BuildRequest(artifact, path, model=block_model)
        target.build(PlannedFile(path.name, precision, "gpu"), request)

    return build


def draw_images(n_images: int) -> Tensor:
    return torch.rand(n_images, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_missing_package_is_told_with_the_line_that_installs_it(
    absent: None, inputs: ExportInputs, artifact: Artifact
) -> None:
    for call in (
        target.check_environment,
        lambda: target.plan("fp16"),
        lambda: build_files(artifact, find_target("torch-tensorrt"), ["fp16"], inputs=inputs),
    ):
        with pytest.raises(MissingPackage, match=r"pip install 'kdedge\[torch-tensorrt\]'"):
            call()
    assert load_artifact(artifact.path) == artifact


def test_a_missing_device_is_told(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match="torch sees no GPU") as caught:
        target.check_environment()
    assert torch.__version__ in str(caught.value)


def test_int8_is_refused_before_anything_is_looked_for(
    absent: None, inputs: ExportInputs, artifact: Artifact
) -> None:
    with pytest.raises(RecipeError, match="Build INT8 engines from the ONNX file: `--trt --int8`"):
        build_files(artifact, find_target("torch-tensorrt"), ["fp16", "int8"], inputs=inputs)


@pytest.mark.parametrize(
    ("precision", "tolerance", "on_gpu"),
    # logits up to 8, whose blocks round to 11 bits
    [("fp32", 1e-5, False), ("fp16", 0.03, False), ("fp16", 0.03, True)],
)
def test_the_traced_program_gives_the_models_logits_at_every_batch(
    tiny_model: FoldedModel, gpu: Any, precision: Any, tolerance: float, on_gpu: bool
) -> None:
    with gpu() if on_gpu else contextlib.nullcontext():
        sizes = {"size_px": 32, "batches": (1, 4)}
        program, example = target.trace(tiny_model, precision=precision, on_gpu=on_gpu, **sizes)
        assert example.is_cuda == on_gpu
        for n_images in (1, 2, 4):
            images = draw_images(n_images)
            logits = program.module()(images.to(example.device)).cpu()
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, tiny_model(images), rtol=0, atol=tolerance)


def test_half_precision_is_that_of_the_blocks_and_the_model_stays_as_it_is(
    tiny_model: FoldedModel,
) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    half = target.half_model(tiny_model)
    kinds = {name: value.dtype for name, value in half.state_dict().items()}
    heads = {name for name in kinds if name.startswith(("hidden.", "features.", "fused_head."))}
    assert heads
    for name, kind in kinds.items():
        assert kind == (torch.float32 if name in heads else torch.float16), name
    after = tiny_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {value.dtype for value in after.values()} == {torch.float32}


def test_large_activations_survive_half_precisions_range(tiny_model: FoldedModel) -> None:
    norm = target.half_model(tiny_model).ln_post
    values = torch.full((1, norm.normalized_shape[0]), -300.0)
    values[:, ::2] = 300.0
    torch.testing.assert_close(norm(values.half()), values / 300, rtol=0, atol=1e-5)


def test_a_dynamic_program_is_compiled_for_the_largest_batch_and_saved_for_all(
    recorder: Any, compile_program: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    compile_program(path, "fp16")
    shapes = {"min_shape": 1, "opt_shape": 4, "max_shape": 4}
    assert recorder.inputs == [
        {
            **{name: (n, 3, 32, 32) for name, n in shapes.items()},
            "dtype": torch.float32,
            "name": "images",
        }
    ]
    ((program, compile_options),) = recorder.compiled
    assert isinstance(program, torch.export.ExportedProgram)
    assert compile_options == {"arg_inputs": ["images"]}
    ((module, save_options),) = recorder.saved
    assert module is program
    assert save_options["output_format"] == "exported_program"
    assert [tuple(example.shape) for example in save_options["arg_inputs"]] == [(2, 3, 32, 32)]
    batch = save_options["dynamic_shapes"]["images"][0]
    assert (batch.min, batch.max) == (1, 4)
    assert list(tmp_path.iterdir()) == [path]
    images = draw_images(3)
    loaded = torch.export.load(path).module()
    torch.testing.assert_close(loaded(images), program.module()(images))


def test_a_fixed_program_is_compiled_for_its_one_batch(
    recorder: Any, compile_program: Callable[..., None], tmp_path: Path
) -> None:
    compile_program(tmp_path / "m.pt2", "fp32", max_batch=3, batch=3)
    assert recorder.inputs == []
    ((_, compile_options),) = recorder.compiled
    assert [tuple(example.shape) for example in compile_options["arg_inputs"]] == [(3, 3, 32, 32)]
    ((_, save_options),) = recorder.saved
    assert save_options["dynamic_shapes"] is None


def test_programs_are_listed_in_the_artifact(
    recorder: Any, inputs: ExportInputs, artifact: Artifact
) -> None:
    found, names = build_files(
        artifact, find_target("torch-tensorrt"), ["fp16", "fp32"], inputs=inputs
    )
    assert load_artifact(artifact.path) == found
    expected = tuple(f"model.{kind}.torchtrt2.13.0-sm89.pt2" for kind in ("fp16", "fp32"))
    assert names == tuple(file.name for file in found.files) == expected
    for file in found.files:
        assert file.target == "torch-tensorrt"
        assert file.gate == "passed"
        assert file.parity.runtime == "Torch-TensorRT 2.13.0+cu130 NVIDIA L4"
        assert file.parity.mean_softmax_distance < (1e-6 if file.precision == "fp32" else 0.02)
        assert file.n_bytes == (artifact.path / file.name).stat().st_size
        assert file.sha256 == sha256_file(artifact.path / file.name)
        about = {key: value for key, value in file.built_with.items() if key != "seconds"}
        assert about == {
            "tool": "Torch-TensorRT",
            "version": "2.13.0+cu130",
            "torch": torch.__version__,
            "device": "NVIDIA L4",
            "compute_capability": "8.9",
        }


def test_a_program_that_misses_its_gate_is_marked(
    recorder: Any, inputs: ExportInputs, artifact: Artifact
) -> None:
    smoke_set = read_smoke_set(artifact.path / SMOKE_SET)
    write_smoke_set(artifact.path / SMOKE_SET, SmokeSet(smoke_set.pixels, -smoke_set.logits))
    others = {SMOKE_SET: sha256_file(artifact.path / SMOKE_SET)}
    other = dataclasses.replace(artifact, others=others)
    found, _ = build_files(other, find_target("torch-tensorrt"), ["fp16"], inputs=inputs)
    assert [file.gate for file in found.files] == ["missed"]
    assert load_artifact(artifact.path) == found
