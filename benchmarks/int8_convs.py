"""A CNN's INT8 files on a CPU: latency against its float32 file, in ONNX Runtime and OpenVINO.

    python benchmarks/int8_convs.py MODEL [--size 224] [--threads 1] [--rounds 10]

MODEL is one of timm's, with random weights and 100 classes. One image a call, all in one process,
interleaved. A ratio is that of each round's two smallest times: of the rounds, the median and the
quartiles. The difference is the largest one of the logits, in percent of the largest logit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from kdedge.fold import fold
from kdedge.methods.protocol import ImagePath
from kdedge.runtime.machine import cpu_model
from kdedge.runtime.preprocess import Preprocess
from kdedge.targets.onnx import run as onnxruntime
from kdedge.targets.onnx.quantize import to_int8, to_int8_cpu
from kdedge.targets.onnx.trace import write_onnx
from kdedge.targets.openvino import run as openvino

sys.path.insert(0, str(Path(__file__).parent))
from interleaved import interleaved
from open_classes import by_round

N_CLASSES = 100


def write_files(name: str, size: int, folder: Path) -> None:
    """Writes the float32 file and both INT8 files."""
    torch.manual_seed(0)
    encoder: Any = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    vectors = torch.nn.functional.normalize(torch.randn(N_CLASSES, encoder.num_features), dim=-1)
    preprocess = Preprocess(size, (0.5,) * 3, (0.25,) * 3)
    model = fold(ImagePath(encoder), vectors, scale=20.0, preprocess=preprocess)
    images = np.random.default_rng(0).random((8, 3, size, size), dtype=np.float32)
    write_onnx(model, folder / "model.onnx", size_px=size, max_batch=4)
    to_int8_cpu(folder / "model.onnx", folder / "model.int8-cpu.onnx", calibration=images)
    to_int8(folder / "model.onnx", folder / "model.int8.onnx", calibration=images)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    size = arguments.size
    image = np.random.default_rng(1).random((1, 3, size, size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(arguments.model, size, folder)
        loaded = {
            f"{file}, {runtime.NAME}": runtime.load(folder / file, n_threads=arguments.threads)
            for runtime in (onnxruntime, openvino)
            for file in ("model.onnx", "model.int8-cpu.onnx", "model.int8.onnx")
        }
    calls = {key: lambda one=one: one.run(image) for key, one in loaded.items()}
    times = interleaved(calls, arguments.rounds)
    first = next(iter(calls))
    expected = calls[first]()
    print("| file | ms | ratio (quartiles) | difference % |\n|---|---:|---:|---:|")
    for key, call in calls.items():
        low, middle, high = statistics.quantiles(by_round(times[first], times[key]), n=4)
        difference = 100 * np.abs(call() - expected).max() / np.abs(expected).max()
        cells = [key, f"{statistics.median(times[key]):.3g}"]
        cells += [f"{middle:.2f} ({low:.2f}-{high:.2f})", f"{difference:.1f}"]
        print(f"| {' | '.join(cells)} |")
    print(f"\n{arguments.model}, {size} pixels, {cpu_model()}, {arguments.threads} threads")


if __name__ == "__main__":
    main()
