"""The ONNX file against the folded model that it was written from."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdedge.builders.onnx.trace import OPSET, Tracer, write_onnx
from kdedge.errors import RecipeError, ResourceError
from kdedge.fold import FoldedModel

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}
"""Sums in another order; logits here are up to 20."""


@pytest.fixture
def traces_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is traced, also one whose structure was traced before."""
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", getattr(export, "traces_always", export))


def run(path: Path, images: Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return np.asarray(logits)


def draw_images(n_images: int) -> Tensor:
    return torch.rand(n_images, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("traces_always")
@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"projector_depth": 1}, {"features/Gemm", "fused_head/Gemm"}),
        (
            {"projector_depth": 3},
            {"hidden/Gemm", "hidden/Gemm_2", "features/Gemm", "fused_head/Gemm"},
        ),
        ({"head": "argmax", "pixels": "uint8"}, None),
    ],
)
def test_a_dynamic_graph_gives_the_models_logits_at_every_batch_and_its_head_has_the_projector(
    fold_student: Callable[..., FoldedModel],
    tmp_path: Path,
    options: dict[str, Any],
    layers: set[str] | None,
) -> None:
    model, is_float = fold_student(**options), "pixels" not in options
    write_onnx(model, tmp_path / "model.onnx", size_px=32)
    for n_images in (1, 2, 7):
        images = draw_images(n_images)
        images = images if is_float else (255 * images).to(torch.uint8)
        expected = model(images).numpy()
        np.testing.assert_allclose(run(tmp_path / "model.onnx", images), expected, **FLOAT32)
    graph = onnx.load(tmp_path / "model.onnx").graph
    kind = getattr(onnx.TensorProto, "FLOAT" if is_float else "UINT8")
    assert graph.input[0].type.tensor_type.elem_type == kind
    products = {x.name for x in graph.node if x.op_type == "Gemm" and "block" not in x.name}
    assert layers in (None, products)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_takes_that_many_images_and_no_other(
    block_model: FoldedModel, tmp_path: Path, batch: int
) -> None:
    path, images = tmp_path / "model.onnx", draw_images(batch)
    write_onnx(block_model, path, size_px=32, batches=(batch, batch))
    np.testing.assert_allclose(run(path, images), block_model(images).numpy(), **FLOAT32)
    with pytest.raises(Exception, match=r"(?i)dimension"):
        run(path, draw_images(batch + 1))


@pytest.mark.usefixtures("traces_always")
@pytest.mark.parametrize("inside", [False, True])
def test_other_weights_are_written_as_if_their_model_were_traced(
    fold_vit: Callable[..., FoldedModel], tmp_path: Path, inside: bool
) -> None:
    one = fold_vit(1, inside=inside)
    other, tracer = copy.deepcopy(one), Tracer()
    with torch.no_grad():
        for values in (*other.parameters(), *other.buffers()):
            values.mul_(1.5) if values.is_floating_point() else None
    paths = [tmp_path / name for name in ("first", "again", "other", "traced")]
    for path, model in zip(paths, (one, one, other), strict=False):
        write_onnx(model, path, size_px=32, batches=(1, 1), tracer=tracer)
    write_onnx(other, paths[3], size_px=32, batches=(1, 1))
    first, again, *others = (path.read_bytes() for path in paths)
    assert first == again
    assert others[0] == others[1] != first


def test_the_graph_has_the_operators_of_a_vit_named_after_their_place(folded_onnx: Path) -> None:
    proto = onnx.load(folded_onnx)
    operators = Counter(node.op_type for node in proto.graph.node)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", OPSET)]
    assert proto.ir_version <= 9
    # ln_pre, two in each of three blocks, ln_post
    assert operators["LayerNormalization"] == 1 + 2 * 3 + 1
    assert operators["Conv"] == 1
    assert not operators.keys() & {"If", "Loop", "ArgMax", "ReduceMean", "Pow", "Erf"}
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    assert {"patch_conv/Conv", "blocks.0.query/MatMul", "fused_head/Gemm"} <= set(names)
    assert [name for name in names if name.startswith("_")] == []


def test_the_file_says_what_it_is_and_nothing_of_this_machine(folded_onnx: Path) -> None:
    found = {p.key: p.value for p in onnx.load(folded_onnx).metadata_props}
    assert json.loads(found["class_names"]) == ["a", "é", *"cdef"]
    assert found["head"] == "scores"
    data = folded_onnx.read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in data
    assert os.fsencode(Path.home()) + b"/" not in data


def test_weights_can_lie_beside_the_graph_and_are_there_first(
    block_model: FoldedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, moved = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        moved.append(target.name)
        return move(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    path = tmp_path / "model.onnx"
    options: Any = {"size_px": 32, "max_bytes": 10_000, "tracer": Tracer()}

    with pytest.raises(RecipeError, match=r"export\.external_data=true"):
        write_onnx(block_model, path, **options)
    assert list(tmp_path.iterdir()) == []
    write_onnx(block_model, path, external_data=True, **options)
    assert moved == ["model.onnx.data", "model.onnx"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    n_bytes = sum(value.nbytes for value in block_model.state_dict().values())
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.9 * n_bytes
    images = draw_images(2)
    np.testing.assert_allclose(run(path, images), block_model(images).numpy(), **FLOAT32)


def test_a_full_disk_leaves_nothing_behind(
    block_model: FoldedModel, small_disk: Callable[[int], Path]
) -> None:
    folder = small_disk(16)
    with pytest.raises(ResourceError, match="disk is full"):
        write_onnx(block_model, folder / "model.onnx", size_px=32, batches=(1, 1))
    assert list(folder.iterdir()) == []
