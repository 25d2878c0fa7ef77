"""Backends: the ONNX file gives what numpy gives, and what cannot run says why."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kdedge.errors import DataError, MissingPackage, RecipeError, ResourceError, SetupError
from kdedge.runtime.backends import _cudart, _engine, backend_module, list_backends
from kdedge.runtime.backends import onnxruntime as onnxruntime_backend
from kdedge.runtime.backends._protocol import NotHere

WriteModel = Callable[..., Path]


@pytest.fixture
def images() -> np.ndarray:
    """Three images, [3, 3, 16, 16], uint8."""
    return np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.uint8)


@pytest.fixture
def by_hand(mean_color_logits: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The model in numpy, for [B, 3, S, S] uint8."""
    return lambda images: mean_color_logits(images.transpose(0, 2, 3, 1))


def test_the_folder_holds_these_backends() -> None:
    assert list_backends() == ("onnxruntime", "tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize("name", list_backends())
def test_every_backend_has_what_a_backend_needs(name: str) -> None:
    module = backend_module(name)
    assert name == module.NAME
    assert module.TARGET in {"onnx", "tensorrt", "tensorrt-rtx"}
    assert callable(module.check_environment)
    assert callable(module.load)


def test_an_unknown_backend_is_told_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r'no backend "tensort"\.\n  Did you mean tensorrt'):
        backend_module("tensort")
    with pytest.raises(RecipeError, match="There are: onnxruntime, tensorrt, tensorrt-rtx"):
        backend_module("../x")


@pytest.fixture
def load_onnx() -> Callable[..., Any]:
    """Loads an ONNX file with ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    return onnxruntime_backend.load


def test_onnxruntimes_logits_are_those_of_numpy(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel, images: np.ndarray, by_hand: Any
) -> None:
    backend = load_onnx(write_model(tmp_path / "m.onnx"))
    logits = backend.run(images.astype(np.float32) / np.float32(255))
    assert logits.dtype == np.float32
    # Sums of 256 float32 values from 0 to 1 and products with numbers up to 8
    np.testing.assert_allclose(logits, by_hand(images), rtol=0, atol=1e-5)


def test_a_graph_of_bytes_takes_bytes(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel, images: np.ndarray, by_hand: Any
) -> None:
    backend = load_onnx(write_model(tmp_path / "m.onnx", pixels="uint8"))
    np.testing.assert_allclose(backend.run(images), by_hand(images), rtol=0, atol=1e-5)


def test_external_data_is_read_from_beside_the_file(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel, images: np.ndarray, by_hand: Any
) -> None:
    path = write_model(tmp_path / "m.onnx", external="m.data")
    assert (tmp_path / "m.data").stat().st_size > 0
    logits = load_onnx(path).run(images.astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(logits, by_hand(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "batches"), [(None, (1, None)), (2, (2, 2))])
def test_onnxruntime_knows_which_batches_its_graph_takes(
    load_onnx: Any,
    tmp_path: Path,
    write_model: WriteModel,
    batch: int | None,
    batches: tuple[int, Any],
) -> None:
    path = write_model(tmp_path / "m.onnx", batch=batch)
    assert load_onnx(path).batches == batches


def test_onnxruntime_says_what_it_is(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel
) -> None:
    backend = load_onnx(write_model(tmp_path / "m.onnx"), n_threads=1)
    version = sys.modules["onnxruntime"].__version__
    assert backend.describe() == f"onnxruntime {version} CPU"
    backend.close()
    backend.close()


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"\x08\x09"])
def test_a_file_that_is_no_onnx_is_told(load_onnx: Any, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"m\.onnx cannot be loaded by onnxruntime") as caught:
        load_onnx(path)
    assert "export again" in str(caught.value)


def test_a_truncated_file_is_told(load_onnx: Any, tmp_path: Path, write_model: WriteModel) -> None:
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_onnx(path)


def test_missing_external_data_is_told(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel
) -> None:
    path = write_model(tmp_path / "m.onnx", external="m.data")
    (tmp_path / "m.data").unlink()
    with pytest.raises(DataError, match=r"m\.data"):
        load_onnx(path)


def test_an_opset_that_is_too_new_asks_for_a_newer_version(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel
) -> None:
    onnx = pytest.importorskip("onnx")
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, path)
    with pytest.raises(SetupError, match=r"too old for .*m\.onnx: .*opset") as caught:
        load_onnx(path)
    assert "pip install --upgrade onnxruntime" in str(caught.value)


def test_another_kind_of_graph_is_refused(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel
) -> None:
    onnx = pytest.importorskip("onnx")
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    onnx.save(model, path)
    with pytest.raises(DataError, match="Expected 'images' with 4 axes"):
        load_onnx(path)


def test_images_that_the_graph_does_not_take_are_told_in_onnxruntimes_words(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel, images: np.ndarray
) -> None:
    backend = load_onnx(write_model(tmp_path / "m.onnx"))
    assert (backend.pixels, backend.image_shape) == ("float", (3, 16, 16))
    with pytest.raises(DataError, match=r"m\.onnx cannot be run .* Unexpected input data type"):
        backend.run(images)
    with pytest.raises(DataError, match=r"m\.onnx cannot be run .* invalid dimensions"):
        backend.run(images[:, :, :8].astype(np.float32))


@pytest.mark.parametrize("reason", ["Failed to allocate memory for 9 bytes", "std::bad_alloc"])
def test_no_memory_for_a_batch_is_no_fault_of_the_file(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel, images: np.ndarray, reason: str
) -> None:
    class Full:
        def run(self, *_: Any) -> Any:
            raise RuntimeError(reason)

    backend = load_onnx(write_model(tmp_path / "m.onnx"))
    backend._session = Full()
    with pytest.raises(ResourceError, match=r"m\.onnx cannot be run .*\n  Use smaller batches"):
        backend.run(images)


def test_threads_are_as_many_as_asked_for(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel
) -> None:
    backend = load_onnx(write_model(tmp_path / "m.onnx"), n_threads=3)
    assert backend._session.get_session_options().intra_op_num_threads == 3


def test_loading_an_onnx_file_writes_nothing_to_stderr(
    tmp_path: Path, write_model: WriteModel
) -> None:
    pytest.importorskip("onnxruntime")
    path = write_model(tmp_path / "m.onnx")
    code = (
        "from pathlib import Path; from kdedge.runtime.backends import onnxruntime as b;"
        f" b.load(Path({str(path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_onnxruntimes_warnings_on_unknown_graphics_cards_are_dropped_and_other_lines_kept(
    tmp_path: Path,
) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import os\n"
        "os.write(2, b'[W:onnxruntime:Default, device_discovery.cc:164] no vendor\\n')\n"
        "os.write(2, b'something else\\n')\n"
        "class InferenceSession: pass\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        " from kdedge.runtime.backends import onnxruntime as b; b.check_environment()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "something else\n"


@pytest.mark.parametrize("without", ["tempfile.tempdir = '/nowhere'", "del os.memfd_create"])
def test_onnxruntime_is_imported_where_nothing_can_be_written(tmp_path: Path, without: str) -> None:
    (tmp_path / "onnxruntime.py").write_text("class InferenceSession: pass\n")
    code = (
        f"import os, sys, tempfile; sys.path.insert(0, {str(tmp_path)!r}); {without};"
        " from kdedge.runtime.backends import onnxruntime as b;"
        " before = os.listdir('/proc/self/fd'); b.check_environment();"
        " assert os.listdir('/proc/self/fd') == before"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("onnxruntime", "onnxruntime", r"'kdedge\[runtime\]'"),
        ("tensorrt", "tensorrt", "tensorrt\n"),
        ("tensorrt-rtx", "tensorrt_rtx", r"'kdedge\[trt-rtx\]'"),
    ],
)
@pytest.mark.parametrize("how", ["absent", "stubs only"])
def test_a_package_that_is_not_there_is_told_with_the_line_that_installs_it(
    name: str, module: str, package: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of type stubs makes an empty module of the same name."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setitem(sys.modules, module, None if how == "absent" else ModuleType(module))
    with pytest.raises((MissingPackage, NotHere), match=f"pip install {package}"):
        backend_module(name).check_environment()


@pytest.mark.parametrize("module", ["onnxruntime", "tensorrt"])
def test_a_package_without_its_libraries_is_told(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')\n")
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match=r"cannot be (imported|loaded): libnvinfer\.so\.10"):
        backend_module(module).check_environment()


def _has_driver() -> bool:
    try:
        _cudart.open_cuda()
    except SetupError:
        return False
    return True


without_gpu = pytest.mark.skipif(_has_driver(), reason="this machine has a GPU")


@without_gpu
def test_without_a_driver_cuda_says_so_and_names_the_way_out() -> None:
    with pytest.raises(SetupError, match=r"driver|CUDA") as caught:
        _cudart.open_cuda()
    assert len(str(caught.value).splitlines()) in {2, 3}


class NoDriver:
    """A libcudart on a machine whose driver is too old."""

    class Function:
        def __init__(self, result: Any) -> None:
            self._result = result

        def __call__(self, *_: Any) -> Any:
            return self._result

    def __getattr__(self, name: str) -> Any:
        is_text = name == "cudaGetErrorString"
        function = self.Function(b"CUDA driver version is insufficient" if is_text else 35)
        setattr(self, name, function)
        return function


def test_of_several_cuda_libraries_that_fail_the_first_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        def __init__(self, library: str) -> None:
            self._library = library

        def check_device(self) -> None:
            raise SetupError(f"{self._library} fails")

    monkeypatch.setattr(_cudart.ctypes, "CDLL", lambda name: name)
    monkeypatch.setattr(_cudart, "Cuda", Failing)
    monkeypatch.setattr(_cudart, "_candidates", lambda: iter(["libcudart.so.13", "another"]))
    with pytest.raises(SetupError, match=r"^libcudart\.so\.13 fails$"):
        _cudart.open_cuda()


def test_a_cuda_error_is_told_with_its_number_and_text() -> None:
    cuda = _cudart.Cuda(NoDriver())
    for call in (cuda.check_device, cuda.new_stream, lambda: cuda.allocate(8)):
        with pytest.raises(SetupError, match="error 35, CUDA driver version is insufficient"):
            call()


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def engine(trt: Any, write_model: WriteModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(write_model(folder / "m.onnx", batch=2)))
    data = builder.build_serialized_network(network, builder.create_builder_config())
    path = folder / "m.engine"
    path.write_bytes(data)
    return path


@without_gpu
def test_without_a_gpu_the_environment_check_fails(trt: Any) -> None:
    with pytest.raises(SetupError, match=r"driver|CUDA") as caught:
        backend_module("tensorrt-rtx").check_environment()
    assert not isinstance(caught.value, MissingPackage)


@without_gpu
def test_loading_without_a_gpu_fails_with_the_same_reason(engine: Path) -> None:
    with pytest.raises(SetupError, match=r"driver|CUDA"):
        backend_module("tensorrt-rtx").load(engine)


@without_gpu
def test_a_good_engine_without_a_driver_is_refused_with_tensorrts_reason(
    trt: Any, engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SetupError, match=r"m\.engine cannot be loaded.*on no GPU.*driver"):
        _engine.deserialize(trt, engine, name="tensorrt-rtx", gpu="no GPU", built_with=None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", [b"", b"garbage" * 1000])
def test_an_engine_of_another_version_or_a_damaged_file_is_told(
    trt: Any, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(data)
    built_with = {
        "tool": "TensorRT-RTX", "version": "1.2.0", "device": "RTX 4090",
        "compute_capability": "8.9", "flags": [],
    }  # fmt: skip
    with pytest.raises(SetupError) as caught:
        _engine.deserialize(trt, path, name="tensorrt-rtx", gpu="a GPU", built_with=built_with)
    assert str(caught.value) == (
        f"{path} cannot be loaded by tensorrt-rtx {trt.__version__} on a GPU: the file is"
        " damaged, or another version or product built it.\n"
        "  It was built with TensorRT-RTX 1.2.0 for RTX 4090, compute capability 8.9.\n"
        "  An engine runs only with the version and the kind of GPU that it was built for."
        f" Build one on this machine: kdedge export {tmp_path} --trt-rtx"
    )


def test_a_missing_engine_is_told(trt: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: no such file"):
        _engine.deserialize(
            trt, tmp_path / "m.engine", name="tensorrt-rtx", gpu="a GPU", built_with=None
        )


@pytest.mark.gpu
@pytest.mark.skipif(not _has_driver(), reason="needs an NVIDIA GPU")
def test_an_engine_gives_what_numpy_gives(engine: Path, images: np.ndarray, by_hand: Any) -> None:
    backend = backend_module("tensorrt-rtx").load(engine)
    assert backend.batches == (2, 2)
    logits = backend.run(images[:2].astype(np.float32) / np.float32(255))
    # TF32 keeps 10 bits of the products
    np.testing.assert_allclose(logits, by_hand(images[:2]), rtol=0, atol=2e-2)
    with pytest.raises(SetupError, match="takes 2 to 2 images at once"):
        backend.run(images.astype(np.float32))
    backend.close()
    backend.close()
