"""The machine's own limits: the fastest matrix product here, and the fastest copy.

The best of what is installed counts: NumPy's, PyTorch's and ONNX Runtime's products differ by a
third on one CPU. A share is of what can be reached here, not of a data sheet.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdedge.runtime.threads import number_of_threads


@dataclass(frozen=True)
class Effort:
    """How much work the peaks are measured with.

    Attributes:
        side: rows and columns of the CPU's matrices.
        gpu_side: of the GPU's.
        copy_bytes: bytes of a copy.
        seconds: how long each product and each copy is repeated, two calls at least.
    """

    side: int = 2048
    gpu_side: int = 8192
    copy_bytes: int = 1 << 28
    seconds: float = 0.4


def measure_peaks(
    *, n_threads: int | None = None, gpu: bool = False, effort: Effort = Effort()
) -> dict[str, Any]:
    """Returns the highest rates seen, as plain values.

    Args:
        n_threads: of the CPU; None for each library's own choice.
        gpu: whether to measure torch's CUDA device too, where torch is here and has one.
        effort: how much work.

    Returns:
        By kind of device, `CPU` and perhaps `GPU`: `gmacs_per_second` by precision with what
        reached it (`by`), and `copy_bytes_per_second`, a byte read and written counted as two.
    """
    cpu = _best(_cpu_products(effort.side, n_threads), effort.side, effort.seconds)
    source, target = np.ones(effort.copy_bytes, np.uint8), np.empty(effort.copy_bytes, np.uint8)
    seconds = _fastest(lambda: np.copyto(target, source), effort.seconds)
    peaks = {"CPU": cpu | {"copy_bytes_per_second": 2 * effort.copy_bytes / seconds}}
    return peaks | _gpu_peaks(effort) if gpu else peaks


def _best(
    products: Iterator[tuple[str, str, Callable[[], Any]]], side: int, seconds: float
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for precision, by, product in products:
        rate = side**3 / _fastest(product, seconds) / 1e9
        if rate > found.get(precision, {"rate": 0})["rate"]:
            found[precision] = {"rate": rate, "by": by}
    return {"gmacs_per_second": found}


def _fastest(work: Callable[[], Any], seconds: float) -> float:
    """Seconds of the quickest of some calls that take so long together, two at least."""
    work()
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < seconds:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _cpu_products(side: int, n_threads: int | None) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Square products as (precision, library, call)."""
    a = np.random.default_rng(0).standard_normal((side, side), np.float32)
    yield "fp32", f"NumPy {np.__version__}", lambda: a @ a
    if importlib.util.find_spec("torch") is not None:
        import torch

        b = torch.from_numpy(a)
        yield "fp32", f"PyTorch {torch.__version__}", lambda: b @ b
    with contextlib.suppress(ImportError):  # without either there is one library less
        yield from _onnxruntime_products(a, n_threads)


def _onnxruntime_products(
    a: np.ndarray[Any, Any], n_threads: int | None
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Products with a constant, as a model has them: ONNX Runtime packs constants once."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads or number_of_threads() or 0
    integers = (a * 40).clip(-127, 127).astype(np.int8)
    kinds = {
        "fp32": ("MatMul", onnx.TensorProto.FLOAT, a, a),
        # Its CPU has no faster product than of bytes without a sign by signed ones
        "int8": ("MatMulInteger", onnx.TensorProto.INT32, integers.view(np.uint8), integers),
    }
    for precision, (operator, output, left, right) in kinds.items():
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(operator, ["left", "right"], ["product"])],
            "product",
            [
                onnx.helper.make_tensor_value_info(
                    "left", onnx.helper.np_dtype_to_tensor_dtype(left.dtype), left.shape
                )
            ],
            [onnx.helper.make_tensor_value_info("product", output, left.shape)],
            [onnx.numpy_helper.from_array(right, "right")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
        model.ir_version = 8
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        run = functools.partial(session.run, None, {"left": left})
        yield precision, f"ONNX Runtime {ort.__version__}", run


def _gpu_peaks(effort: Effort) -> dict[str, Any]:
    """Nothing where torch is not installed or has no CUDA: engines run on a GPU without it."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    products = _gpu_products(effort.gpu_side)
    return {"GPU": _best(products, effort.gpu_side, effort.seconds) | _gpu_copy(effort)}


def _gpu_products(side: int) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    import torch

    def synchronized(product: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> None:
            product()
            torch.cuda.synchronize()

        return call

    by = f"PyTorch {torch.__version__}"
    a = torch.randn(side, side, device="cuda")
    yield "fp32", by, synchronized(lambda: a @ a)
    half = a.half()
    yield "fp16", by, synchronized(lambda: half @ half)
    integers = (a * 40).clamp(-127, 127).to(torch.int8)
    yield "int8", by, synchronized(lambda: torch._int_mm(integers, integers.T))


def _gpu_copy(effort: Effort) -> dict[str, float]:
    import torch

    source = torch.ones(effort.copy_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return {"copy_bytes_per_second": 2 * effort.copy_bytes / _fastest(copy, effort.seconds)}
