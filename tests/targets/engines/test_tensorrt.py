"""TensorRT's target without TensorRT.

The real TensorRT-RTX package builds under TensorRT's name, with what a version lacks hidden and
what it has more recorded.
"""

from __future__ import annotations

import enum
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kdedge.errors import BackendUnavailable, MissingPackage, ResourceError, SetupError
from kdedge.targets.engines.builder import EngineBuilder
from kdedge.targets.tensorrt import build as target

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")


class NetworkFlagsOf10(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class NoNetworkFlags(enum.IntEnum):
    pass


class Config:
    """RTX's build configuration, with the timing cache that it lacks.

    A cache that begins with `torn` cannot be read; one of a foreign device is not taken.
    """

    def __init__(self, real: Any, version: Version) -> None:
        self.__dict__.update(real=real, version=version)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data.startswith(b"torn") else data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.startswith(b"foreign"):
            return False
        self.version.caches.append(cache)
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.version.caches[-1] + b"measured ")


class Version:
    """A version of TensorRT; `module` is its Python module.

    Args:
        number: its version.
        network_flags: its `NetworkDefinitionCreationFlag`.

    Attributes:
        networks: the flags of each network.
        caches: the timing caches that were taken.
        instead: called for the engine in place of RTX's builder, with the log.
    """

    def __init__(self, number: str, network_flags: type[enum.IntEnum]) -> None:
        self.networks: list[int] = []
        self.caches: list[bytes] = []
        self.instead: Callable[[Any], Any] | None = None
        self.module = ModuleType("tensorrt")
        vars(self.module).update(
            vars(tensorrt_rtx),
            __name__="tensorrt",
            __spec__=None,
            __version__=number,
            NetworkDefinitionCreationFlag=network_flags,
            Builder=self._new_builder,
        )

    def _new_builder(self, log: Any) -> Any:
        real = tensorrt_rtx.Builder(log)

        def create_network(flags: int) -> Any:
            self.networks.append(flags)
            return real.create_network(1 << 0)  # RTX has strong typing only

        def build(network: Any, config: Config) -> Any:
            if self.instead is not None:
                return self.instead(log)
            return real.build_serialized_network(network, config.real)

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: Config(real.create_builder_config(), self),
            create_optimization_profile=real.create_optimization_profile,
            build_serialized_network=build,
        )

    def builder(self, **options: Any) -> EngineBuilder:
        values = {"title": "TensorRT", "timing_cache": None, **options}
        return EngineBuilder(self.module, **values)


@pytest.fixture
def version_10() -> Version:
    return Version("10.3.0", NetworkFlagsOf10)


@pytest.fixture
def small(write_graph: Callable[..., Path], tmp_path: Path) -> Path:
    """A graph of one convolution, which is built in no time."""
    return write_graph(
        tmp_path / "small.onnx",
        {"images": ("batch", 3, 32, 32)},
        [("Conv", ("images", "weight")), ("Flatten", ("between 0",))],
        ("batch", 5),
    )


@pytest.fixture
def device(cudart: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with an Orin; gives its folder of timing caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "kdedge" / "timing"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder that holds all packages that can be imported and are not loaded yet."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]
    monkeypatch.setattr(sys, "path", [str(folder)])
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("tensorrt", None)


def install(folder: Path, source: str) -> None:
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(source)


# What a machine has


def test_the_way_to_tensorrt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match="needs tensorrt, which is not inst") as caught:
        target.check_environment()
    words = ("pip install tensorrt", "apt-get install python3-libnvinfer", "system-site-packages")
    assert all(word in str(caught.value) for word in words)


def test_type_stubs_alone_are_no_package(packages: Path) -> None:
    (packages / "tensorrt").mkdir()
    (packages / "tensorrt" / "__init__.pyi").write_text("__version__: str\n")
    assert importlib.import_module("tensorrt").__file__ is None
    with pytest.raises(SetupError, match="needs tensorrt, which is not installed"):
        target.plan("fp16")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
            "libnvinfer.so.10: cannot open shared object file",
        ),
        ("raise FileNotFoundError('no nvinfer')", "no nvinfer"),
        ("raise RuntimeError('built for another numpy')", "built for another numpy"),
        ("import tensorrt_bindings_of_no_one", "No module named 'tensorrt_bindings_of_no_one'"),
    ],
)
def test_a_package_that_is_there_and_does_not_load_is_no_missing_one(
    packages: Path, source: str, reason: str
) -> None:
    install(packages, source)
    expected = rf"is installed, but cannot be imported: {reason}\.\n  Remove it, and install it"
    with pytest.raises(SetupError, match=expected) as caught:
        target.check_environment()
    assert not isinstance(caught.value, MissingPackage)


# The target


def test_without_a_device_nothing_can_be_built(
    monkeypatch: pytest.MonkeyPatch,
    version_10: Version,
    no_gpu: None,
    build_engine: Any,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", version_10.module)
    calls: tuple[Callable[[], Any], ...] = (
        target.check_environment,
        lambda: target.plan("fp16"),
        lambda: build_engine(target, tmp_path / "none.onnx", tmp_path, "fp16"),
    )
    for call in calls:
        with pytest.raises(SetupError, match="There is no NVIDIA driver on this machine"):
            call()


def test_a_tensorrt_before_10_is_refused(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Version("8.6.2", NetworkFlagsOf10).module)
    with pytest.raises(SetupError, match=r"TensorRT 8\.6\.2 is too old.*\n.*JetPack 6\.1"):
        target.check_environment()


def test_an_engine_is_named_and_described_after_the_version_and_the_device(
    monkeypatch: pytest.MonkeyPatch,
    device: Path,
    onnx_files: dict[str, Path],
    build_engine: Any,
    tmp_path: Path,
) -> None:
    version = Version("10.16.2.11", NetworkFlagsOf10)
    monkeypatch.setitem(sys.modules, "tensorrt", version.module)
    built = build_engine(target, onnx_files["fp16"], tmp_path, "fp16")
    assert built.path == tmp_path / "model.fp16.trt10.16.2-sm87-orin-8.engine"
    assert built.path.stat().st_size > 100_000
    assert (
        built.built_with.items()
        >= {
            "tool": "TensorRT",
            "version": "10.16.2.11",
            "device": "Orin",
            "compute_capability": "8.7",
            "multiprocessors": 8,
        }.items()
    )
    assert [path.name for path in device.iterdir()] == ["trt10.16.2-sm87-orin-8.cache"]


# One builder for every version


def test_version_10_builds_what_the_file_holds(
    version_10: Version, small: Path, onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    for number, path in enumerate((small, onnx_files["int8"])):  # FP16 is built above
        version_10.builder().build(path, tmp_path / f"{number}.engine", batches=(1, 4))
    assert version_10.networks == [1 << NetworkFlagsOf10.STRONGLY_TYPED] * 2


def test_a_version_without_network_flags_is_asked_for_none(small: Path, tmp_path: Path) -> None:
    version = Version("12.0.0", NoNetworkFlags)
    version.builder().build(small, tmp_path / "a.engine", batches=(1, 4))
    assert version.networks == [0]


@pytest.mark.parametrize(
    ("before", "taken"),
    [
        (None, b""),
        (b"measured ", b"measured "),
        (b"foreign device's", b""),
        (b"torn", b""),
    ],
)
def test_a_timing_cache_is_read_where_it_fits_and_kept_after_the_build(
    version_10: Version,
    small: Path,
    tmp_path: Path,
    before: bytes | None,
    taken: bytes,
) -> None:
    cache = tmp_path / "new folder" / "a.cache"
    if before is not None:
        cache.parent.mkdir()
        cache.write_bytes(before)
    version_10.builder(timing_cache=cache).build(small, tmp_path / "a.engine", batches=(1, 4))
    assert version_10.caches == [taken]
    assert cache.read_bytes() == taken + b"measured "


def test_a_timing_cache_that_cannot_be_kept_costs_no_engine(
    version_10: Version, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    builder = version_10.builder(timing_cache=tmp_path / "file" / "a.cache")
    builder.build(small, tmp_path / "a.engine", batches=(1, 4))
    assert (tmp_path / "a.engine").is_file()


@pytest.mark.parametrize(
    ("reason", "error_type", "last"),
    [
        ("[E] OutOfMemory (no further information)", ResourceError, "Lower export.max_batch"),
        ("Cuda failure: out of memory", ResourceError, "Lower export.max_batch"),
        ("Target GPU SM 87 is not supported by this release.", SetupError, "`kdedge doctor`"),
        (None, SetupError, "`kdedge doctor`"),
    ],
)
def test_a_build_that_gives_nothing_is_told_with_tensorrts_reason(
    version_10: Version,
    small: Path,
    tmp_path: Path,
    reason: str | None,
    error_type: type[Exception],
    last: str,
) -> None:
    def fail(log: Any) -> None:
        if reason is not None:
            log.log(tensorrt_rtx.ILogger.ERROR, reason)

    version_10.instead = fail
    with pytest.raises(error_type) as caught:
        version_10.builder().build(small, tmp_path / "a.engine", batches=(1, 4))
    assert str(caught.value).startswith(
        f"TensorRT 10.3.0 could not build {small}.\n  {reason or 'It gave no reason.'}\n  {last}"
    )
    assert list(tmp_path.iterdir()) == [small]


def test_a_builder_that_does_not_start_is_told(
    version_10: Version, small: Path, tmp_path: Path
) -> None:
    def refuse(log: Any) -> Any:
        log.log(tensorrt_rtx.ILogger.ERROR, "CUDA initialization failure with error: 35.")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    version_10.module.Builder = refuse
    with pytest.raises(SetupError, match=r"cannot start to build .*\n  CUDA init.* error: 35"):
        version_10.builder().build(small, tmp_path / "a.engine", batches=(1, 4))
