"""A GPU that is not there: kdedge's and torch's CUDA branches run, and waits for it are counted.

A tensor on it holds its values on the CPU and has the dispatch keys of CUDA, so that autocast, the
gradient scaler, autograd and the optimizers treat it as one. What a GPU refuses is refused: mixed
devices, NumPy, a generator of the CPU. What it cannot show is whatever its kernels compute.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import DefaultDeviceType

aten = torch.ops.aten
GPU = torch.device("cuda:0")
MEMORY_BYTES = 8 << 30
PEAK_BYTES = 1 << 30

# Autograd asks C++ for the GPU's streams, and a torch without CUDA has nothing that answers
_CPP = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
const c10::Device gpu(c10::DeviceType::CUDA, 0);
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return gpu; }
  c10::Device exchangeDevice(c10::Device) const override { return gpu; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, gpu);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
};
struct Hooks final : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  long versionRuntimeCuDNN() const override { return 0; }  // asked by attention
};
extern "C" void install(bool there) {
  static const Guard guard;
  static const Hooks hooks;
  const auto cuda = static_cast<size_t>(c10::DeviceType::CUDA);
  c10::impl::device_guard_impl_registry[cuda] = there ? &guard : nullptr;
  // torch's own object gets the functions of this one, or its own again; neither has values
  void*& functions = *(void**)&at::detail::getCUDAHooks();
  static void* const own = functions;
  functions = there ? *(void**)&hooks : own;
}
"""
# Their result, or its size, is needed on the host
_READS = {
    *("_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_consecutive", "unique_dim", "repeat_interleave"),
}
_COPIES = {"_to_copy", "copy_", "_copy_from", "set_"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class GpuTensor(Tensor):
    """A tensor on the GPU.

    Attributes:
        gpu: where it is.
        values: its values, on the CPU; views share their memory.
    """

    gpu: SimulatedGpu
    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, gpu: SimulatedGpu, values: Tensor) -> GpuTensor:
        made: GpuTensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=GPU,
        )
        made.gpu, made.values = gpu, values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu = next(x.gpu for x in _tensors((args, kwargs)) if isinstance(x, GpuTensor))
        return gpu.compute(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.values})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = GpuTensor(self.gpu, self.values.clone()).requires_grad_(self.requires_grad)
        copied.__dict__ |= {k: v for k, v in vars(self).items() if k not in vars(copied)}
        return memo.setdefault(id(self), copied)

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()


class SimulatedGpu(TorchDispatchMode):
    """The GPU, and what the host does with it.

    Attributes:
        waits: number of times that the host waits for it: (line of kdedge, operation) -> count.
        pageable: copies to it from memory that is not pinned, alike.
        generator: of its random numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.pageable: Counter[tuple[str, str]] = Counter()
        self.generator = torch.Generator()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation on the CPU values, if a GPU would run it."""
        tensors = _tensors((args, kwargs))
        is_from_gpu = any(isinstance(x, GpuTensor) for x in tensors)
        target = kwargs.get("device")
        if not is_from_gpu and (target is None or torch.device(target).type != "cuda"):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        is_to_gpu = is_from_gpu if target is None else torch.device(target).type == "cuda"
        if name in _COPIES - {"_to_copy"}:
            is_to_gpu = isinstance(args[0], GpuTensor)
            is_from_gpu = isinstance(args[1], GpuTensor)
        elif name not in _COPIES:
            _check_devices(func, name, args, tensors)
        self._count(name, args, kwargs, is_from_gpu=is_from_gpu, is_to_gpu=is_to_gpu)
        wrappers = {id(x.values): x for x in tensors if isinstance(x, GpuTensor)}
        own_args, own_kwargs = args, kwargs
        args, kwargs = _changed(lambda x: x.values, (args, kwargs), GpuTensor)
        if target is not None:
            kwargs["device"] = torch.device(target if not is_to_gpu else "cpu")
        with self._own_generator(func, args, kwargs) if is_to_gpu else contextlib.nullcontext():
            out = _in_float32(func, args, kwargs) if name in _PRODUCTS else func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags and is_to_gpu:
            with _shapes_alone():  # of the wrapper, too
                func(*own_args, **own_kwargs)
        if not is_to_gpu:
            return out
        return _changed(lambda x: wrappers[id(x)] if id(x) in wrappers else GpuTensor(self, x), out)

    def _count(
        self, name: str, args: Any, kwargs: Any, *, is_from_gpu: bool, is_to_gpu: bool
    ) -> None:
        is_masked = name in _INDEXING and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in _COPIES and is_from_gpu != is_to_gpu:
            source = args[1] if name != "_to_copy" else args[0]
            if is_to_gpu and not source.is_pinned():
                self.pageable[_place(), name] += 1
            if not kwargs.get("non_blocking"):
                self.waits[_place(), name] += 1
        elif is_from_gpu and (name in _READS or is_masked):
            self.waits[_place(), name] += 1

    @contextlib.contextmanager
    def _own_generator(self, func: Any, args: Any, kwargs: Any) -> Iterator[None]:
        """Context in which random numbers are the GPU's."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        if any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values())):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(before)


@contextlib.contextmanager
def _shapes_alone() -> Iterator[None]:
    """Context in which an operation changes what a tensor says of itself, and no values."""
    with no_dispatch():
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            yield
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _tensors(x: Any) -> list[Tensor]:
    """Those among an operation's arguments; torch's own functions for trees take far longer."""
    if isinstance(x, (list, tuple, dict)):
        return [y for part in (x.values() if isinstance(x, dict) else x) for y in _tensors(part)]
    return [x] if isinstance(x, Tensor) else []


def _changed(change: Callable[[Any], Any], x: Any, tensor_type: type = Tensor) -> Any:
    """Arguments or results of an operation, with each tensor of a type changed."""
    if isinstance(x, (list, tuple)):
        return type(x)([_changed(change, part, tensor_type) for part in x])
    if isinstance(x, dict):
        return {name: _changed(change, part, tensor_type) for name, part in x.items()}
    return change(x) if isinstance(x, tensor_type) else x


def _in_float32(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs a product of half precision as a GPU does, and faster than a CPU's own: summed in float.

    bfloat16 is fast on a CPU and summed likewise.
    """
    if all(x.dtype != torch.float16 for x in _tensors(args)):
        return func(*args, **kwargs)
    args, kwargs = _changed(Tensor.float, (args, kwargs))
    return _changed(Tensor.half, func(*args, **kwargs))


def _check_devices(func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    """Refuses what a GPU refuses: all but numbers, and indices, must be on it."""
    on_cpu = [x for x in tensors if not isinstance(x, GpuTensor)]
    if name in _INDEXING and isinstance(args[0], GpuTensor):
        on_cpu = [x for x in args[2:] if isinstance(x, Tensor) and not isinstance(x, GpuTensor)]
    takes_numbers = torch.Tag.pointwise in func.tags or name.startswith(("_foreach_", "_fused_"))
    is_written = func._schema.is_mutable and not isinstance(tensors[0], GpuTensor)
    if takes_numbers and (not is_written or name.startswith("_f")):
        on_cpu = [x for x in on_cpu if x.ndim]
    if on_cpu:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices,"
            f" cuda:0 and cpu! ({func})"
        )


def _place() -> str:
    """The line of kdedge that asked for it."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        _, inside, file = frame.f_code.co_filename.rpartition("/kdedge/")
        if inside:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class _Event:
    """An event of a GPU whose work is done at once."""

    def __init__(self, **_: Any) -> None:
        self._at_s = 0.0

    def record(self) -> None:
        self._at_s = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other._at_s - self._at_s)


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    pinned = tensor.clone()
    pinned.untyped_storage().is_pinned_here = True
    return pinned


def _is_pinned(tensor: Tensor, *_: Any) -> bool:
    return hasattr(tensor.untyped_storage(), "is_pinned_here")


def build_guard(made_once: Callable[..., Path]) -> Callable[[bool], None]:
    """Compiles what C++ asks; skips where that, or a private part of torch, is not as expected."""
    root = Path(torch.__file__).parent
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-x", "c++", "-", "-o", "guard.so"]
    command += [f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    how: dict[str, Any] = {"input": _CPP, "text": True, "check": True, "capture_output": True}
    try:
        folder = made_once("guard", lambda folder: subprocess.run(command, cwd=folder, **how))
        install: Callable[[bool], None] = ctypes.CDLL(str(folder / "guard.so")).install
        with simulated_gpu(install):
            torch.nn.Linear(1, 1).to(GPU)(torch.ones(1, device=GPU)).backward()
    except (OSError, subprocess.CalledProcessError, AttributeError) as error:
        pytest.skip(f"no simulated GPU with torch {torch.__version__}: {error}")
    return install


@contextlib.contextmanager
def simulated_gpu(install: Callable[[bool], None]) -> Iterator[SimulatedGpu]:
    """Context in which torch finds one GPU, an Ampere, and no other."""
    gpu = SimulatedGpu()
    properties = SimpleNamespace(name="A GPU", total_memory=MEMORY_BYTES, major=8, minor=6)
    answers: dict[str, Any] = {
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
        **dict.fromkeys(("_lazy_init", "init", "synchronize", "empty_cache", "set_device")),
        "is_current_stream_capturing": False,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_name": properties.name,
        "get_device_capability": (8, 6),
        **dict.fromkeys(("memory_allocated", "memory_reserved"), 0),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), PEAK_BYTES),
        "mem_get_info": (MEMORY_BYTES, MEMORY_BYTES),
        "reset_peak_memory_stats": None,
    }
    with contextlib.ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        for name, answer in answers.items():
            patched.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        patched.setattr(torch.cuda, "Event", _Event)
        patched.setattr(torch.cuda, "get_rng_state", lambda *_: gpu.generator.get_state())
        patched.setattr(torch.cuda, "set_rng_state", lambda new, *_: gpu.generator.set_state(new))
        patched.setattr(torch.cuda, "manual_seed_all", gpu.generator.manual_seed)
        patched.setattr(torch.accelerator, "is_available", lambda **_: True)
        # Whose autocast a recomputed chunk has; torch looks it up once in a process
        patched.setattr(DefaultDeviceType, "_default_device_type", "cuda")
        patched.setattr(Tensor, "pin_memory", _pin)
        patched.setattr(Tensor, "is_pinned", _is_pinned)
        patched.setattr(torch.nn.Module, "_apply", _keeping_parameters(torch.nn.Module._apply))
        for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            types = sys.modules[module]._foreach_supported_types
            types.append(GpuTensor)
            stack.callback(types.remove, GpuTensor)
        # So that the copy in torch.tensor(..., device="cuda") is seen
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        install(True)
        stack.callback(install, False)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(gpu)
        yield gpu


def _keeping_parameters(apply: Any) -> Any:
    """Module.to that keeps the parameters' identity, although their type changes."""

    def apply_swapping(module: Any, *arguments: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            swaps = "get_swap_module_params_on_conversion"
            patched.setattr(torch.__future__, swaps, lambda: True)
            return apply(module, *arguments, **options)

    return apply_swapping
