"""CUDA: one probe for GPUs, and a runtime library that suits the driver."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import pytest

from kdedge.errors import BackendUnavailable, SetupError
from kdedge.runtime.cuda import Gpu, find_gpu, find_gpus, open_cuda


def test_the_driver_names_the_gpus(cudart: Any) -> None:
    cudart.n_gpus = 2
    assert find_gpus() == (Gpu("Orin", "8.7", 8, 1 << 30, "0000:65:00.0"),) * 2
    assert find_gpu() == Gpu("Orin", "8.7", 8, 1 << 30, "0000:65:00.0")


@pytest.mark.parametrize(
    ("system", "library"), [("Linux", "libcuda.so.1"), ("Windows", "nvcuda.dll")]
)
def test_the_driver_has_another_name_on_windows(
    host_gpu: Any, cuda_libraries: Any, monkeypatch: pytest.MonkeyPatch, system: str, library: str
) -> None:
    names = []

    def find(name: str) -> Any:
        names.append(name)
        return host_gpu.HostCudart()

    cuda_libraries(find)
    monkeypatch.setattr(platform, "system", lambda: system)
    find_gpu()
    assert names == [library]


@pytest.mark.parametrize(
    ("n_gpus", "codes"), [(1, {"cuInit": 100}), (1, {"cuDeviceGetCount": 100}), (0, {})]
)
@pytest.mark.parametrize("look", [find_gpu, open_cuda])
def test_a_driver_without_a_gpu_is_none_for_this_process(
    cudart: Any, n_gpus: int, codes: dict[str, int], look: Callable[[], Any]
) -> None:
    cudart.n_gpus, cudart.fails = n_gpus, codes
    with pytest.raises(BackendUnavailable) as caught:
        look()
    assert str(caught.value) == (
        "The NVIDIA driver has no GPU for this process.\n"
        "  `nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them."
    )


def test_a_driver_that_fails_is_told_with_its_first_error(cudart: Any) -> None:
    cudart.fails = {"cuInit": 3, "cuDeviceGet": 101}
    with pytest.raises(SetupError, match="The NVIDIA driver fails with error 3") as caught:
        find_gpu()
    assert not isinstance(caught.value, BackendUnavailable)


@pytest.mark.parametrize("look", [find_gpu, open_cuda])
def test_a_missing_driver_is_told_with_what_a_container_needs(
    monkeypatch: pytest.MonkeyPatch, no_gpu: None, look: Callable[[], Any]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(BackendUnavailable) as caught:
        look()
    assert str(caught.value) == (
        "There is no NVIDIA driver on this machine: libcuda.so.1 cannot be loaded.\n"
        "  In a container, start it with `--gpus all`, or `--runtime nvidia` on a Jetson."
    )


def libraries(host_gpu: Any, codes: dict[str, int]) -> Callable[[str], Any]:
    """A driver, and the runtime libraries of these names that fail with these codes."""

    def find(name: str) -> Any:
        library = host_gpu.HostCudart()
        if "libcudart" in name:
            if name not in codes:
                raise OSError(f"{name}: cannot open shared object file")
            library.fails = {"cudaGetDevice": codes[name]} if codes[name] else {}
        return library

    return find


@pytest.mark.parametrize(
    "codes", [{"libcudart.so.13": 35, "libcudart.so.12": 0}, {"libcudart.so.12": 0}]
)
def test_a_library_that_is_missing_or_newer_than_the_driver_is_passed_over(
    host_gpu: Any, cuda_libraries: Any, codes: dict[str, int]
) -> None:
    cuda_libraries(libraries(host_gpu, codes))
    cuda = open_cuda()
    assert cuda.gpu.name == "Orin"
    assert cuda.new_stream() == 77


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ({"libcudart.so.13": 35, "libcudart.so.12": 36}, "cudaGetDevice failed with error 35"),
        ({}, r"\(libcudart\), which TensorRT needs, is not found.*\n.*pip install nvidia"),
    ],
)
def test_where_no_library_works_the_first_error_or_the_line_that_installs_one_is_told(
    host_gpu: Any, cuda_libraries: Any, codes: dict[str, int], said: str
) -> None:
    cuda_libraries(libraries(host_gpu, codes))
    with pytest.raises(SetupError, match=said):
        open_cuda()


def test_the_time_of_work_is_that_between_two_events(cudart: Any) -> None:
    cuda = open_cuda()
    stream, n_events = cuda.new_stream(), []

    def work() -> None:
        time.sleep(0.01)
        n_events.append(len(cudart.events))

    assert cuda.elapsed_ms(work, stream) >= 10
    assert n_events == [2]
    assert cudart.events == {}
