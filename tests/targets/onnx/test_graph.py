"""Reading, measuring and writing graphs: what is refused, and that measuring changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.errors import DataError, ResourceError
from kdedge.targets.onnx.graph import (
    batches,
    drop_unused,
    head_nodes,
    initializers,
    load_graph,
    run_outputs,
    save_graph,
    set_initializer,
    weight_matmuls,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Run = Callable[[Path, np.ndarray], np.ndarray]


def test_external_weights_are_read(folded_graph: Any, folded_onnx: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    onnx.save(folded_graph, path, save_as_external_data=True, location=data.name)
    whole = load_graph(path)
    for name, tensor in initializers(load_graph(folded_onnx)).items():
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(initializers(whole)[name]),
            onnx.numpy_helper.to_array(tensor),
        )


def test_weights_beyond_one_file_are_refused(folded_onnx: Path) -> None:
    model = onnx.load(folded_onnx)
    n_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    load_graph(folded_onnx, max_bytes=n_bytes)
    with pytest.raises(DataError, match=r"model\.onnx has 0\.00 GB of weights, but one ONNX file"):
        load_graph(folded_onnx, max_bytes=n_bytes - 1)


def test_a_graph_is_written_whole_or_not_at_all(
    folded_graph: Any, small_disk: Callable[[int], Path]
) -> None:
    folder = small_disk(100)
    with pytest.raises(ResourceError, match="disk is full"):
        save_graph(folded_graph, folder / "model.onnx")
    assert list(folder.iterdir()) == []


def test_layers_are_known_by_their_names(folded_graph: Any) -> None:
    head = head_nodes(folded_graph)
    assert {"hidden/Gemm", "fused_head/Gemm", "features/Gemm", "Div"} <= head
    assert not any(name.startswith(("blocks.", "ln_post", "patch_conv")) for name in head)
    names = [node.name for node in weight_matmuls(folded_graph)]
    parts = ("query", "key", "value", "out", "mlp.c_fc", "mlp.c_proj")
    assert sorted(names) == sorted(f"blocks.{i}.{part}/MatMul" for i in range(3) for part in parts)


def test_a_dynamic_graph_sees_each_image_once(folded_graph: Any, folded_images: np.ndarray) -> None:
    runs = list(batches(folded_graph, folded_images[:19]))
    assert [len(run) for run in runs] == [8, 8, 3]
    np.testing.assert_array_equal(np.concatenate(runs), folded_images[:19])


def test_a_fixed_batch_is_filled_up_with_the_first_images(
    folded_graph: Any, folded_images: np.ndarray
) -> None:
    folded_graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    runs = list(batches(folded_graph, folded_images[:6]))
    assert [len(run) for run in runs] == [4, 4]
    expected = folded_images[[0, 1, 2, 3, 4, 5, 0, 1]]
    np.testing.assert_array_equal(np.concatenate(runs), expected)
    (lone,) = batches(folded_graph, folded_images[:1])
    np.testing.assert_array_equal(lone, folded_images[[0, 0, 0, 0]])


def test_measuring_gives_the_tensors_values_and_leaves_the_graph_as_it_was(
    folded_graph: Any, folded_onnx: Path, folded_images: np.ndarray, folded_run: Run
) -> None:
    before = folded_graph.SerializeToString()
    runs = run_outputs(folded_graph, ["ln_pre.weight", "logits", "layer_norm"], folded_images)
    weights, logits, normed = zip(*runs, strict=True)
    assert folded_graph.SerializeToString() == before
    expected = onnx.numpy_helper.to_array(initializers(folded_graph)["ln_pre.weight"])
    np.testing.assert_array_equal(weights[0], expected)
    assert np.concatenate(normed).shape == (24, 16, 64)
    np.testing.assert_allclose(
        np.concatenate(logits), folded_run(folded_onnx, folded_images), rtol=0, atol=1e-5
    )


def test_constants_that_nothing_reads_are_dropped_and_others_replaced(folded_graph: Any) -> None:
    names = set(initializers(folded_graph))
    set_initializer(folded_graph, "lone", np.zeros(3, np.float32))
    set_initializer(folded_graph, "ln_pre.bias", np.arange(64, dtype=np.float32))
    drop_unused(folded_graph)
    assert set(initializers(folded_graph)) == names
    tensor = initializers(folded_graph)["ln_pre.bias"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), np.arange(64))
