"""2:4 zeros, against a slow and obvious version, in training and in written files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdedge.compression.sparsity import (
    can_be_sparse,
    is_sparse,
    keep_zeros,
    largest_of_four,
    zero_smallest,
)
from kdedge.errors import GateError
from kdedge.targets.onnx.sparse import check_sparse, sparse_layers


def slow_mask(weight: Tensor) -> Tensor:
    """One group at a time: the two largest magnitudes, of equal ones the first."""
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    rows = weight.reshape(*weight.shape[:2], -1)
    for out in range(rows.shape[0]):
        for start in range(0, rows.shape[1], 4):
            for place in range(rows.shape[2]):
                group = [abs(float(rows[out, start + i, place])) for i in range(4)]
                for i in sorted(range(4), key=lambda i: (-group[i], i))[:2]:
                    mask.view(rows.shape)[out, start + i, place] = True
    return mask


@pytest.mark.parametrize("shape", [(5, 8), (3, 16, 3, 3), (1, 4)])
def test_the_two_largest_of_four_along_the_input_are_kept(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    mask = largest_of_four(weight)
    assert torch.equal(mask, slow_mask(weight))
    assert mask.float().mean() == 0.5


def test_of_equal_weights_and_of_a_dead_channel_the_first_are_kept() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert largest_of_four(weight).tolist() == [[True, True, False, False]] * 2


def test_widths_that_make_no_whole_groups_stay_dense() -> None:
    assert can_be_sparse(nn.Linear(8, 3))
    assert not can_be_sparse(nn.Linear(6, 8))
    assert not can_be_sparse(nn.Conv2d(18, 8, 3))


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_zeros_stay_zero_whatever_is_trained(algorithm: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    mask = zero_smallest(layer)
    keep_zeros(layer, mask)
    assert is_sparse(layer)
    before = layer.weight.detach().clone()
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimizer = kinds[algorithm](layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(16, 8)).square().sum().backward()
        optimizer.step()
    after = layer.weight.detach()
    assert (after[~mask] == 0).all()
    assert (after[mask] != before[mask]).all()
    assert (layer.parametrizations.weight.original[~mask] == 0).all()


def write(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """A graph from pixels to logits with a MatMul for each weight, then the head."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", ["images"], ["x0"], name="Flatten")]
    tensors = []
    for index, (name, weight) in enumerate({**weights, "fused_head": np.ones((8, 2))}.items()):
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), name))
        output = "logits" if name == "fused_head" else f"x{index + 1}"
        nodes.append(
            helper.make_node("MatMul", [f"x{index}", name], [output], name=f"{name}/MatMul")
        )
    graph = helper.make_graph(
        nodes,
        "kdedge",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 2, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_written_file_is_read_again_and_one_group_too_full_is_found(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=(8, 8)) * np.tile([[1], [0], [0], [1]], (2, 8))
    along_output = sparse.T.copy()
    path = write(tmp_path / "a.onnx", {"a": sparse, "b": along_output})
    assert sparse_layers(path) == {"a"}
    check_sparse(path, ["a"])
    spoiled = sparse.copy()
    spoiled[5, 3] = 1e-7
    path = write(tmp_path / "b.onnx", {"a": spoiled, "b": sparse})
    with pytest.raises(GateError, match=r"b\.onnx: 1 of 2 sparse layers .* first a\."):
        check_sparse(path, ["a", "b"])
