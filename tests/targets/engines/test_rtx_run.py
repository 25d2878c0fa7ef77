"""Engines that TensorRT-RTX builds here, loaded by it: without a GPU it says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.errors import DataError, MissingPackage, SetupError
from kdedge.runtime.cuda import open_cuda
from kdedge.targets.engines.package import open_log
from kdedge.targets.registry import check_can_run
from kdedge.targets.tensorrt_rtx import TARGET
from kdedge.targets.tensorrt_rtx import run as target

WriteModel = Callable[..., Path]


def _has_gpu() -> bool:
    try:
        open_cuda()
    except SetupError:
        return False
    return True


without_gpu = pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def engine(trt: Any, write_model: WriteModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    log = open_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(write_model(folder / "m.onnx", batch=2)))
    data = builder.build_serialized_network(network, builder.create_builder_config())
    path = folder / "m.engine"
    path.write_bytes(data)
    return path


def test_without_a_gpu_nothing_is_checked_or_loaded(trt: Any, engine: Path, no_gpu: None) -> None:
    for call in (lambda: check_can_run(TARGET), lambda: target.load(engine)):
        with pytest.raises(SetupError, match=r"driver|CUDA") as caught:
            call()
        assert not isinstance(caught.value, MissingPackage)


@without_gpu
def test_a_good_engine_without_a_driver_is_refused_with_tensorrts_reason(
    cudart: Any, engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorRT-RTX itself finds no GPU, whatever the GPU of host memory says."""
    with pytest.raises(SetupError, match=r"m\.engine cannot be loaded.*on a GPU.*driver"):
        target.load(engine)
    assert capfd.readouterr() == ("", "")


def test_a_missing_engine_is_told(trt: Any, cudart: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: no such file"):
        target.load(tmp_path / "m.engine")


@pytest.mark.parametrize("data", [b"", b"garbage" * 1000])
def test_an_engine_of_another_version_or_a_damaged_file_is_told(
    trt: Any, cudart: Any, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(data)
    built_with = {"tool": "TensorRT-RTX", "version": "1.2.0", "device": "RTX 4090"}
    built_with["compute_capability"] = "8.9"
    with pytest.raises(SetupError) as caught:
        target.load(path, built_with=built_with)
    first, second, third = str(caught.value).splitlines()
    assert f"loaded by tensorrt-rtx {trt.__version__} on" in first
    assert "malformed engine" in first
    assert second == "  It was built with: TensorRT-RTX 1.2.0 RTX 4090 8.9."
    assert f"kdedge export {tmp_path} --trt-rtx" in third


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="needs an NVIDIA GPU")
def test_an_engine_gives_what_numpy_gives(engine: Path, mean_color_logits: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.uint8)
    backend = target.load(engine)
    assert backend.batches == (2, 2)
    logits = backend.run(images[:2].astype(np.float32) / np.float32(255))
    # TF32 keeps 10 bits of the products
    np.testing.assert_allclose(
        logits, mean_color_logits(images[:2].transpose(0, 2, 3, 1)), rtol=0, atol=2e-2
    )
    with pytest.raises(SetupError, match="takes 2 to 2 images at once"):
        backend.run(images.astype(np.float32))
    backend.close()
    backend.close()
