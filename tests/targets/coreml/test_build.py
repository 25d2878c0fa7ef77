"""Core ML packages: the converted program computes what the folded model does."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.artifacts.build import ExportInputs, build_files
from kdedge.errors import RecipeError
from kdedge.runtime.artifact import Artifact, OpenClasses, load_artifact
from kdedge.targets.base import BuildRequest
from kdedge.targets.registry import find_target

pytestmark = pytest.mark.filterwarnings(  # coremltools removes its folders when it is collected
    "ignore:Implicitly cleaning up", "ignore::pytest.PytestUnraisableExceptionWarning"
)

torch = pytest.importorskip("torch")
ct = pytest.importorskip("coremltools")

from kdedge.builders import coreml as target  # noqa: E402
from kdedge.targets.coreml import TARGET  # noqa: E402

Make = Callable[..., Artifact]


@pytest.fixture(scope="module")
def model(fold_vit: Callable[[int], Any]) -> Any:
    return fold_vit(2)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """[8, 3, 32, 32]: bytes as an app gives them."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 4), dtype=np.uint8)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


def run_program(package: Any, image: np.ndarray) -> dict[str, float]:
    """Runs a package's program step by step, in float64: only Apple's systems run it as a whole."""
    spec, program = package.get_spec(), package._mil_program
    assert spec.description.input[0].type.imageType.colorSpace == 20  # RGB
    values: dict[str, Any] = {}

    def value(of: Any) -> Any:
        if isinstance(of, tuple | list):
            return [value(one) for one in of]
        known = of.val if of.val is not None else values[of.name]
        known = np.asarray(known)
        return torch.from_numpy(known.astype(np.float64)) if known.dtype.kind == "f" else known

    (source,) = program.functions["main"].inputs
    values[source] = image[None].astype(np.float64)  # the scale is in the program
    for op in program.functions["main"].operations:
        if op.op_type in ("const", "classify"):
            continue
        given = {key: value(of) for key, of in op.inputs.items()}
        values[op.outputs[0].name] = OPS[op.op_type](given).numpy()
    (labels,) = [op for op in program.functions["main"].operations if op.op_type == "classify"]
    scores = values[labels.inputs["probabilities"].name][0]
    return dict(zip(labels.inputs["classes"].val, scores.tolist(), strict=True))


def _sliced(x: dict[str, Any]) -> Any:
    cut = []
    for axis, (low, high) in enumerate(zip(x["begin"], x["end"], strict=True)):
        is_whole = "end_mask" in x and x["end_mask"][axis]
        begins = "begin_mask" in x and x["begin_mask"][axis]
        squeezed = "squeeze_mask" in x and x["squeeze_mask"][axis]
        first = 0 if begins else int(low)
        cut.append(first if squeezed else slice(first, None if is_whole else int(high)))
    return x["x"][tuple(cut)]


def _dequantized(x: dict[str, Any]) -> Any:
    scale = x["scale"].numpy()
    shape = [1] * x["quantized_data"].ndim
    shape[int(x["axis"])] = -1
    return torch.from_numpy(x["quantized_data"].astype(np.float64) * scale.reshape(shape))


functional = torch.nn.functional
OPS: dict[str, Any] = {
    "cast": lambda x: x["x"],
    "conv": lambda x: functional.conv2d(
        x["x"], x["weight"], x.get("bias"), stride=tuple(map(int, x["strides"]))
    ),
    "reshape": lambda x: x["x"].reshape(tuple(map(int, x["shape"]))),
    "transpose": lambda x: x["x"].permute(tuple(map(int, x["perm"]))).contiguous(),
    "add": lambda x: x["x"] + x["y"],
    "mul": lambda x: x["x"] * x["y"],
    "real_div": lambda x: x["x"] / x["y"],
    "sqrt": lambda x: x["x"].sqrt(),
    "reduce_sum": lambda x: x["x"].sum(dim=tuple(map(int, x["axes"])), keepdim=True),
    "concat": lambda x: torch.cat(x["values"], dim=int(x["axis"])),
    "linear": lambda x: functional.linear(x["x"], x["weight"], x["bias"]),
    "matmul": lambda x: (
        (x["x"].transpose(-1, -2) if x["transpose_x"] else x["x"])
        @ (x["y"].transpose(-1, -2) if x["transpose_y"] else x["y"])
    ),
    "softmax": lambda x: x["x"].softmax(dim=int(x["axis"])),
    "gelu": lambda x: functional.gelu(x["x"]),
    "layer_norm": lambda x: functional.layer_norm(
        x["x"], x["x"].shape[-1:], x.get("gamma"), x.get("beta"), float(x["epsilon"])
    ),
    "slice_by_index": _sliced,
    "constexpr_affine_dequantize": _dequantized,
}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_the_program_computes_what_the_model_does(
    tmp_path: Path,
    tiny_artifact: Make,
    model: Any,
    images: np.ndarray,
    precision: Any,
    tolerance: float,
) -> None:
    package = target.convert(model, tiny_artifact(tmp_path), precision)
    logits = model(torch.from_numpy(images.astype(np.float32) / 255))
    expected = logits.softmax(dim=-1).numpy()
    assert expected.argmax(axis=1).max() > 0  # not one class for all
    for image, row in zip(images, expected, strict=True):
        scores = run_program(package, image)
        assert tuple(scores) == tuple("abcde")
        np.testing.assert_allclose(list(scores.values()), row, rtol=0, atol=tolerance)


def test_files_are_listed_as_not_measured_and_read_back(
    tmp_path: Path, tiny_artifact: Make, model: Any
) -> None:
    inputs = ExportInputs(model, lambda *_: pytest.fail("it cannot run"))
    artifact = tiny_artifact(tmp_path)
    artifact.save()
    artifact, names = build_files(artifact, find_target("coreml"), ["fp16", "int8"], inputs=inputs)
    assert names == ("model.fp16.mlpackage.zip", "model.int8.mlpackage.zip")
    assert load_artifact(tmp_path) == artifact
    sizes = {file.precision: file.n_bytes for file in artifact.files}
    assert sizes["int8"] < 0.8 * sizes["fp16"]
    assert not list(tmp_path.glob(".coreml.*"))
    for file in artifact.files:
        assert (file.gate, file.parity, file.device) == ("not measured", None, "any")
        assert file.built_with["tool"] == "Core ML Tools"
        data = (tmp_path / file.name).read_bytes()
        assert str(tmp_path).encode() not in data
        zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path / "unzipped")
        whole = tmp_path / "unzipped" / file.name.removesuffix(".zip")
        assert "rootModelIdentifier" in json.loads((whole / "Manifest.json").read_text())
        spec = ct.utils.load_spec(str(whole))
        size = spec.description.input[0].type.imageType
        assert (spec.description.input[0].name, size.width, size.height) == ("image", 32, 32)
        assert spec.description.predictedFeatureName == "classLabel"


def test_a_graph_for_bytes_gives_the_same_answers(
    tmp_path: Path, tiny_artifact: Make, model: Any, images: np.ndarray
) -> None:
    bytes_model = copy.deepcopy(model)
    bytes_model.pixels = "uint8"
    bytes_model.patch_conv.weight.div_(255)
    package = target.convert(bytes_model, tiny_artifact(tmp_path, pixels="uint8"), "fp16")
    expected = model(torch.from_numpy(images[:1].astype(np.float32) / 255)).softmax(dim=-1)
    scores = run_program(package, images[0])
    np.testing.assert_allclose(list(scores.values()), expected[0].numpy(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 4}, r"takes one image, but export\.batch is 4"),
        (
            {
                "open_classes": OpenClasses("classes.1.npy", 16, 20.0),
                "others": {"classes.1.npy": "0"},
            },
            "Leave out the open classes or Core ML",
        ),
    ],
)
def test_what_core_ml_cannot_have_is_refused_before_the_conversion(
    tmp_path: Path, tiny_artifact: Make, changes: Any, message: str
) -> None:
    file = TARGET.plan("fp16")
    with pytest.raises(RecipeError, match=message):
        target.build(file, BuildRequest(tiny_artifact(tmp_path, **changes), tmp_path / file.name))


def test_a_model_that_cannot_be_converted_is_one_message(
    tmp_path: Path, tiny_artifact: Make
) -> None:
    class Odd(torch.nn.Module):  # type: ignore[name-defined,misc]
        pixels = "float"

        def forward(self, images: Any) -> Any:
            return torch.linalg.eigvals(images[0]).real

    file = TARGET.plan("fp16")
    with pytest.raises(RecipeError, match="cannot be built by coremltools"):
        target.build(file, BuildRequest(tiny_artifact(tmp_path), tmp_path / file.name, model=Odd()))
    assert list(tmp_path.iterdir()) == []
