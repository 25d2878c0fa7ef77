"""Measures the machine's limits: its fastest matrix product and its fastest copy.

The best installed library counts: the products of NumPy, PyTorch and ONNX Runtime differ by a third
on one CPU. Shares thus refer to what the machine can reach, not to a data sheet.
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
    """The amount of work to measure the peaks with.

    Attributes:
        side: rows and columns of the CPU's matrices.
        gpu_side: rows and columns of the GPU's matrices.
        copy_bytes: bytes of a copy.
        seconds: time for which each product and copy is repeated; at least two calls.
    """

    side: int = 2048
    gpu_side: int = 8192
    copy_bytes: int = 1 << 28
    seconds: float = 0.4


def measure_peaks(
    *, n_threads: int | None = None, gpu: bool = False, effort: Effort = Effort()
) -> dict[str, Any]:
    """Returns the highest measured rates, as plain values.

    Args:
        n_threads: CPU threads; None for each library's default.
        gpu: whether to also measure torch's CUDA device, if there is one.
        effort: amount of work.

    Returns:
        For `CPU` and, if measured, `GPU`: `gmacs_per_second` by precision with the library that
        reached it (`by`), and `copy_bytes_per_second`, which counts reads and writes.
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
    """Seconds of the quickest call; repeats for the given time, at least twice."""
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
    with contextlib.suppress(ImportError):  # not installed: measure without it
        yield from _onnxruntime_products(a, n_threads)


def _onnxruntime_products(
    a: np.ndarray[Any, Any], n_threads: int | None
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Products with a constant, as in a model: ONNX Runtime packs constants once."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads or number_of_threads() or 0
    integers = (a * 40).clip(-127, 127).astype(np.int8)
    kinds = {
        "fp32": ("MatMul", onnx.TensorProto.FLOAT, a, a),
        # Its fastest INT8 product on a CPU is unsigned by signed bytes
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
    """Empty if torch is not installed or has no CUDA; engines run on a GPU without it."""
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
