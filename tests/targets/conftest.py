"""A tiny folded student and its three ONNX files, made once: tracing takes seconds."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.artifacts.build import ExportInputs
from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, parity_on_smoke_set, write_smoke_set
from kdedge.records.evaluation import Gates
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact
from kdedge.runtime.backend import to_input
from kdedge.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel
    from kdedge.runtime.backend import Backend

MAX_BATCH = 4
PREPROCESS = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="session")
def tiny_model(fold_student: Callable[..., FoldedModel]) -> FoldedModel:
    """A folded PromptKD student of three blocks: 32x32 pixels, five classes."""
    return fold_student()


@pytest.fixture(scope="session")
def open_onnx(
    fold_student: Callable[..., FoldedModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The ONNX file of the same student with open classes: it gives 40 features."""
    from kdedge.builders.onnx.trace import write_onnx

    path = tmp_path_factory.mktemp("open") / "model.onnx"
    write_onnx(fold_student(open_classes=True), path, size_px=32, batches=(1, MAX_BATCH))
    return path


@pytest.fixture(scope="session")
def fold_vit() -> Callable[..., FoldedModel]:
    """Folds a student of so many blocks with as many heads: 32x32 pixels, five classes.

    With `inside=True` the ViT is part of another encoder, as ridge's: it keeps open_clip's modules.
    """
    import torch
    from open_clip.transformer import VisionTransformer

    from kdedge.clip.blocks import make_wrappable
    from kdedge.fold import FoldRequest, fold
    from kdedge.methods.base import ImageModules

    def make(n: int, *, inside: bool = False) -> FoldedModel:
        torch.manual_seed(0)
        visual = VisionTransformer(32, 8, 32 * n, n, n, 2.0, output_dim=16)
        make_wrappable(visual.eval().requires_grad_(False).transformer)
        vectors = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
        encoder = torch.nn.Sequential(visual) if inside else visual
        return fold(ImageModules(encoder), FoldRequest(vectors, scale=20.0, preprocess=PREPROCESS))

    return make


@pytest.fixture(scope="session")
def block_model(fold_vit: Callable[..., FoldedModel]) -> FoldedModel:
    """A folded student of one block, for converters that take seconds a block."""
    return fold_vit(1)


@pytest.fixture(scope="session")
def block_model_in_int8(block_model: FoldedModel) -> Any:
    """A slow, obvious version: `block_model` with the blocks' linear layers in eight bits.

    A weight has one range for each output, around 0; an input has one for each token, with 0 in it.
    """
    import copy

    import torch

    class Linear(torch.nn.Module):
        def __init__(self, exact: torch.nn.Linear) -> None:
            super().__init__()
            step = exact.weight.abs().amax(dim=1, keepdim=True) / 127
            self.weight, self.bias = (exact.weight / step).round() * step, exact.bias

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            low = tokens.amin(dim=-1, keepdim=True).clamp(max=0)
            high = tokens.amax(dim=-1, keepdim=True).clamp(min=0)
            step = (high - low) / 255
            zero = (-128 - low / step).round()
            rounded = ((tokens / step).round() + zero).clamp(-128, 127)
            return torch.nn.functional.linear((rounded - zero) * step, self.weight, self.bias)

    model = copy.deepcopy(block_model)
    for name, layer in list(model.named_modules()):
        if name.startswith("blocks.") and isinstance(layer, torch.nn.Linear):
            model.set_submodule(name, Linear(layer))
    return model


@pytest.fixture(scope="session")
def check_int8_by_token(
    block_model: FoldedModel, block_model_in_int8: Any
) -> Callable[[Backend], None]:
    """Checks that an INT8 file of `block_model` gives what `block_model_in_int8` gives."""
    import torch

    images = np.random.default_rng(2).random((1, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = block_model_in_int8(torch.from_numpy(images)).numpy()
    exact = block_model(torch.from_numpy(images)).numpy()
    assert np.abs(exact - expected).max() > 1e-3

    def check(backend: Backend) -> None:
        # Another order of sums over at most 192 float32 products
        np.testing.assert_allclose(backend.run(images), expected, rtol=0, atol=1e-4)

    return check


@pytest.fixture(scope="session")
def cnn_model() -> Any:
    """Convolutions over 3 and 16 channels and a depthwise one, with a head; it takes bytes."""
    import torch

    class Small(torch.nn.Module):
        pixels = "uint8"

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 16, 8, 8)
            self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.second = torch.nn.Conv2d(16, 16, 4)
            self.fused_head = torch.nn.Linear(16, 5)

        def before_second(self, images: torch.Tensor) -> torch.Tensor:
            return self.depthwise(self.first(images.float() / 255).relu()).relu()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fused_head(self.second(self.before_second(images)).flatten(1))

    torch.manual_seed(0)
    return Small().requires_grad_(False)


def _tiny_artifact(folder: Path, **changes: Any) -> Artifact:
    values: dict[str, Any] = {
        "name": "tiny",
        "class_names": tuple("abcde"),
        "preprocess": PREPROCESS,
        "pixels": "float",
        "head": "scores",
        "max_batch": MAX_BATCH,
        "batch": "dynamic",
        "gates": Gates({"fp32": 100, "fp16": 50, "int8": 50}, max_drop=1),
    }
    return Artifact(path=folder, **{**values, **changes})


@pytest.fixture(scope="session")
def tiny_artifact() -> Callable[..., Artifact]:
    """Makes an artifact of five classes in a folder, which stays as it is."""
    return _tiny_artifact


@pytest.fixture(scope="session")
def save_artifact() -> Callable[..., Artifact]:
    """Saves an artifact of five classes with a model's smoke set in a new folder."""
    import torch

    def save(
        folder: Path, model: Any, *, pixels: Any = None, whole: Sequence[bytes] = (), **changes: Any
    ) -> Artifact:
        folder.mkdir()
        if pixels is None:
            pixels = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        with torch.no_grad():
            logits = model(torch.from_numpy(to_input(pixels, "float"))).numpy()
        write_smoke_set(folder / SMOKE_SET, SmokeSet(pixels, logits, tuple(whole)))
        others = {SMOKE_SET: hashlib.sha256((folder / SMOKE_SET).read_bytes()).hexdigest()}
        artifact = _tiny_artifact(folder, others=others, **changes)
        artifact.save()
        return artifact

    return save


@pytest.fixture(scope="session")
def listed() -> Callable[..., ModelFile]:
    """Gives the entry of an ONNX file that passed its gate."""

    def make(path: Path, precision: Any = "fp32") -> ModelFile:
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        return ModelFile(path.name, "onnx", precision, "any", sha256, len(data), gate="passed")

    return make


@pytest.fixture(scope="session")
def block_artifact(
    tmp_path_factory: pytest.TempPathFactory,
    block_model: FoldedModel,
    save_artifact: Callable[..., Artifact],
) -> Artifact:
    """The artifact of `block_model` with a smoke set, and without model files."""
    return save_artifact(tmp_path_factory.mktemp("bare") / "artifact", block_model)


@pytest.fixture
def block_copy(block_artifact: Artifact, tmp_path: Path) -> Artifact:
    """A copy of `block_artifact`."""
    return load_artifact(shutil.copytree(block_artifact.path, tmp_path / "artifact"))


@pytest.fixture(scope="session")
def block_inputs(block_model: FoldedModel) -> ExportInputs:
    """What the export of `block_model`'s run has."""
    images = np.random.default_rng(2).random((8, 3, 32, 32), dtype=np.float32)
    return ExportInputs(block_model, parity_on_smoke_set, images)


@pytest.fixture(scope="session")
def write_precisions(
    int8_by_maxima: Callable[..., None], made_once: Callable[..., Path]
) -> Callable[[str, FoldedModel], dict[str, Path]]:
    """Writes a model's ONNX files for batches of 1 to 4; gives precision -> file."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from kdedge.builders.onnx.trace import write_onnx
    from kdedge.targets.onnx.half import to_fp16

    names = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
    images = np.random.default_rng(0).random((8, 3, 32, 32), dtype=np.float32)

    def write(name: str, model: FoldedModel) -> dict[str, Path]:
        def make(folder: Path) -> None:
            float32, half, int8 = (folder / name for name in names.values())
            write_onnx(model, float32, size_px=32, batches=(1, MAX_BATCH))
            to_fp16(float32, half, images=images)
            int8_by_maxima(float32, int8, calibration=images)

        folder = made_once(f"files of {name}", make)
        return {precision: folder / name for precision, name in names.items()}

    return write


@pytest.fixture(scope="session")
def onnx_files(
    tiny_model: FoldedModel, write_precisions: Callable[..., dict[str, Path]]
) -> dict[str, Path]:
    """Those of the student with three blocks."""
    return write_precisions("a student", tiny_model)


@pytest.fixture(scope="session")
def cnn_files(write_precisions: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    """Those of a small CNN."""
    import timm
    import torch

    from kdedge.fold import FoldRequest, fold
    from kdedge.methods.base import ImageModules

    torch.manual_seed(0)
    encoder = timm.create_model("test_efficientnet", num_classes=0).eval().requires_grad_(False)
    vectors = torch.nn.functional.normalize(torch.randn(5, encoder.num_features), dim=-1)
    model = fold(ImageModules(encoder), FoldRequest(vectors, scale=20.0, preprocess=PREPROCESS))
    return write_precisions("a CNN", model)


@pytest.fixture(scope="session")
def write_graph() -> Callable[..., Path]:
    """Writes a float32 graph from its inputs, nodes (operator, inputs) and output shape."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def describe(name: str, shape: Sequence[int | str]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def write(
        path: Path,
        inputs: dict[str, Sequence[int | str]],
        nodes: Sequence[tuple[str, Sequence[str]]],
        output: Sequence[int | str],
    ) -> Path:
        names = [f"between {index}" for index in range(len(nodes) - 1)] + ["logits"]
        graph = helper.make_graph(
            [
                helper.make_node(operator, given, [name], name=f"{index}/{operator}")
                for index, ((operator, given), name) in enumerate(zip(nodes, names, strict=True))
            ],
            "graph",
            [describe(name, shape) for name, shape in inputs.items()],
            [describe("logits", output)],
            [numpy_helper.from_array(np.ones((5, 3, 32, 32), np.float32), "weight")],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
        return path

    return write
