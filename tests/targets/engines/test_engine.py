"""Running an engine: buffers, shapes and calls, on a GPU and a TensorRT made of host memory."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.errors import SetupError
from kdedge.targets.tensorrt import run as target

N_CLASSES = 4


def load(tmp_path: Path, cudart: Any, text: str) -> Any:
    """Loads an engine on the GPU of host memory, which `cudart` makes."""
    assert sys.modules["tensorrt"].__version__ == "10.3.0"
    path = tmp_path / "m.engine"
    path.write_text(text)
    return target.load(path)


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 3, 2, 2)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["FLOAT", "UINT8"])
@pytest.mark.parametrize("output", ["logits", "features"])
def test_every_batch_of_the_profile_goes_through_and_results_stay(
    tmp_path: Path, cudart: Any, kind: str, output: str
) -> None:
    engine = load(tmp_path, cudart, f"engine 1 5 {kind} {output}")
    assert engine.batches == (1, 5)
    results = {n: engine.run(images(n)) for n in (1, 2, 5)}
    for n, logits in results.items():
        assert logits.shape == (n, N_CLASSES)
        assert logits[:, :3].tolist() == images(n).sum(axis=(2, 3)).astype(np.float32).tolist()


def test_a_transposed_view_is_copied_as_it_looks(tmp_path: Path, cudart: Any) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 UINT8 logits")
    turned = images(2).transpose(0, 1, 3, 2)[::-1]
    assert engine.run(turned)[:, :3].tolist() == turned.sum(axis=(2, 3)).tolist()


def test_it_says_what_it_takes_and_refuses_all_else(tmp_path: Path, cudart: Any) -> None:
    engine = load(tmp_path, cudart, "engine 2 2 UINT8 logits")
    assert engine.batches == (2, 2)
    assert (engine.pixels, engine.image_shape) == ("uint8", (3, 2, 2))
    assert engine.describe() == "tensorrt 10.3.0 GPU 8.7"
    with pytest.raises(SetupError, match=r"takes 2 to 2 images at once, got shape \(3, 3, 2, 2\)"):
        engine.run(images(3))
    with pytest.raises(SetupError, match=r"got shape \(2, 3, 4, 4\)"):
        engine.run(np.zeros((2, 3, 4, 4), np.uint8))
    other = load(tmp_path, cudart, "engine 1 5 FLOAT logits 16")
    assert (other.pixels, other.image_shape) == ("float", (3, 16, 16))


def test_single_images_take_the_profile_that_was_tuned_for_them(
    tmp_path: Path, cudart: Any, host_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = []
    create = host_gpu.HostEngine.create_execution_context
    monkeypatch.setattr(
        host_gpu.HostEngine,
        "create_execution_context",
        lambda engine: contexts.append(create(engine)) or contexts[-1],
    )
    engine = load(tmp_path, cudart, "engine 1 5 UINT8 logits")
    for n in (5, 1, 1, 2, 1):
        assert engine.run(images(n))[:, :3].tolist() == images(n).sum(axis=(2, 3)).tolist()
    assert contexts[0].profiles_used == [0, 1, 1, 0, 1]


def test_buffers_are_those_of_the_largest_batch_and_are_given_back(
    tmp_path: Path, cudart: Any
) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 FLOAT logits")
    assert sorted(cudart.allocated.values()) == [5 * N_CLASSES * 4, 5 * 3 * 2 * 2 * 4]
    engine.close()
    engine.close()
    assert (cudart.allocated, cudart.streams) == ({}, set())


def test_what_an_engine_holds_is_given_back_where_it_cannot_be_prepared(
    tmp_path: Path, cudart: Any
) -> None:
    cudart.memory_bytes = 5 * 3 * 2 * 2 * 4  # the images' buffer and not the logits'
    with pytest.raises(SetupError, match="cudaMalloc failed with error 2, out of memory"):
        load(tmp_path, cudart, "engine 1 5 FLOAT logits")
    assert (cudart.allocated, cudart.streams) == ({}, set())


@pytest.mark.parametrize("function", ["cudaFree", "cudaStreamDestroy"])
def test_closing_never_hides_the_failure_before_it(
    tmp_path: Path, cudart: Any, host_gpu: Any, function: str
) -> None:
    gc.collect()
    n_before = len(host_gpu.HostEngine.alive)
    engine = load(tmp_path, cudart, "engine 1 5 FLOAT logits")
    cudart.fails |= {"cudaMemcpyAsync": 700, function: 700}

    def use() -> None:
        try:
            engine.run(images(1))
        finally:
            engine.close()

    with pytest.raises(SetupError, match="cudaMemcpyAsync failed with error 700"):
        use()
    engine.close()
    gc.collect()
    assert len(host_gpu.HostEngine.alive) == n_before
    assert not (cudart.streams if function == "cudaFree" else cudart.allocated)


def test_a_null_engine_gives_tensorrts_error_in_one_line(tmp_path: Path, cudart: Any) -> None:
    with pytest.raises(SetupError) as caught:
        load(tmp_path, cudart, "something else")
    first, _, remedy = str(caught.value).partition("\n")
    assert first.startswith(f"{tmp_path / 'm.engine'} cannot be loaded by tensorrt 10.3.0 on a GPU")
    assert first.endswith("8.7: Serialization assertion failed.")
    assert f"Build it on this machine: kdedge export {tmp_path} --trt" in remedy


def test_a_tensorrt_that_cannot_use_the_driver_is_no_bug(
    tmp_path: Path, cudart: Any, host_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def null(log: Any) -> None:
        log.log(1, "CUDA initialization failure with error: 35.")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(host_gpu.HostTensorRT, "Runtime", null)
    with pytest.raises(SetupError, match=r"on a GPU of .* cannot start: CUDA init.*error: 35"):
        load(tmp_path, cudart, "engine 1 5 FLOAT logits")


@pytest.mark.parametrize(
    "function", ["cudaMalloc", "cudaStreamCreate", "cudaMemcpyAsync", "cudaStreamSynchronize"]
)
def test_what_cuda_refuses_is_told(tmp_path: Path, cudart: Any, function: str) -> None:
    cudart.fails[function] = 2
    with pytest.raises(SetupError, match=f"{function} failed with error 2, out of memory"):
        load(tmp_path, cudart, "engine 1 5 FLOAT logits").run(images(1))


def test_torchs_own_gpu_stays_the_current_one(tmp_path: Path, cudart: Any) -> None:
    cudart.current = 1
    engine = load(tmp_path, cudart, "engine 1 5 UINT8 logits")
    engine.run(images(3))
    engine.device_ms(images(3))
    with pytest.raises(SetupError, match="cannot be loaded"):
        load(tmp_path, cudart, "something else")
    assert cudart.current == 1


def test_events_are_destroyed_where_the_engine_fails(tmp_path: Path, cudart: Any) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 UINT8 logits")
    with pytest.raises(SetupError, match="takes 1 to 5 images at once"):
        engine.device_ms(images(6))
    cudart.fails["cudaEventElapsedTime"] = 700
    with pytest.raises(SetupError, match="cudaEventElapsedTime failed with error 700"):
        engine.device_ms(images(2))
    assert cudart.events == {}
