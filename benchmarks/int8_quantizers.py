"""Ways to make an INT8 file of a student's run, each against the unfused float32 model.

    pip install nvidia-modelopt
    python benchmarks/int8_quantizers.py RUN [--images 500] [--threads 2] [--output FILE.json]

Ranges come from unlabeled images, as many as the run's recipe says and chosen as `kdedge export`
does; figures come from evenly spaced test images, one a call. Agreement is the share of images with
the same top-1 as the unfused float32 model, distance the mean total variation between the two
softmaxes. Latency is a median on this CPU, all files in one process and in turns; the ratio is
float32's latency by the file's. Ours for TensorRT have an FP16 remainder, which a CPU runs with
casts: their ratio says nothing of a GPU. ModelOpt's is made with a float32 one, since ONNX Runtime
up to 1.29 does not round where FP16 is quantized.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from interleaved import interleaved
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

from kdedge.data.images import spread
from kdedge.deploy.calibrate import choose_calibration_images
from kdedge.deploy.pixels import PixelArray, read_pixels
from kdedge.evaluation.agreement import compare
from kdedge.fold import fold
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.runtime.batches import run_batches, to_input
from kdedge.runtime.preprocess import normalize
from kdedge.setup.workspace import Workspace
from kdedge.targets.onnx import run as backend
from kdedge.targets.onnx import trace as onnx_target
from kdedge.targets.onnx.graph import load_graph, weight_matmuls
from kdedge.targets.onnx.half import to_fp16
from kdedge.targets.onnx.quantize import to_int8, to_int8_cpu

Make = Callable[[Path, Path, npt.NDArray[Any]], None]


class Reader:
    """Hands calibration images to ModelOpt and to ONNX Runtime's quantizer, eight at a time."""

    def __init__(self, images: npt.NDArray[Any]) -> None:
        self._runs = [{"images": images[at : at + 8]} for at in range(0, len(images), 8)]
        self.rewind()

    def rewind(self) -> None:
        """Starts over."""
        self._rest = iter(self._runs)

    def get_first(self) -> dict[str, npt.NDArray[Any]]:
        """The first run of images."""
        return self._runs[0]

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next run of images, or None after the last."""
        return next(self._rest, None)


def ours(source: Path, output: Path, images: npt.NDArray[Any], *,
         make: Callable[..., None] = to_int8, smoothed: bool = True, **options: Any,
         ) -> None:  # fmt: skip
    """What `kdedge export` writes, `model.int8.onnx` or `model.int8-cpu.onnx`."""
    with nullcontext() if smoothed else patch("kdedge.targets.onnx.quantize.smooth"):
        make(source, output, calibration=images, **options)


def modelopt(source: Path, output: Path, images: npt.NDArray[Any]) -> None:
    """ModelOpt with its own placement of Q/DQ; ranges by the largest value, as ours."""
    from modelopt.onnx.quantization import quantize

    with redirect_stdout(io.StringIO()):
        quantize(str(source), output_path=str(output), quantize_mode="int8",
                 calibration_data_reader=Reader(images), calibration_method="max",
                 calibration_eps=["cpu"], high_precision_dtype="fp32", log_level="ERROR",
                 )  # fmt: skip


def ort_static(
    source: Path, output: Path, images: npt.NDArray[Any], *, everything: bool = True
) -> None:
    """ONNX Runtime's static quantizer, as TensorRT wants it: QDQ, symmetric, signed."""
    int8 = QuantType.QInt8
    names = None if everything else [node.name for node in weight_matmuls(load_graph(source))]
    quantize_static(source, output, Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=int8, weight_type=int8, nodes_to_quantize=names,
                    extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
                    )  # fmt: skip


def ort_dynamic(source: Path, output: Path, _: npt.NDArray[Any]) -> None:
    """ONNX Runtime's dynamic quantizer, matrix products alone."""
    types = ["MatMul", "Gemm"]
    quantize_dynamic(source, output, op_types_to_quantize=types, per_channel=True,
                     weight_type=QuantType.QInt8)  # fmt: skip


KEYS = ("agreement_percent", "accuracy_percent", "mean_softmax_distance")
FLOAT32 = "float32"
# In this order: ModelOpt replaces parts of ONNX Runtime's quantizer in the process
FILES: dict[str, Make] = {
    "fp16": lambda source, output, images: to_fp16(source, output, images=images),
    "ONNX Runtime static": ort_static,
    "ONNX Runtime static, linear layers alone": partial(ort_static, everything=False),
    "ONNX Runtime dynamic": ort_dynamic,
    "ours for CPUs": partial(ours, make=to_int8_cpu),
    "ours for CPUs, not smoothed": partial(ours, make=to_int8_cpu, smoothed=False),
    "ours for TensorRT, before the search": ours,
    "ours for TensorRT, not smoothed": partial(ours, smoothed=False),
    "ModelOpt's own placement": modelopt,
}


class TestImages(NamedTuple):
    """What the files are compared on; `logits` are the unfused float32 model's, [N, C]."""

    pixels: PixelArray
    logits: npt.NDArray[np.float32]
    keys: list[str]
    labels: list[int | None]


@torch.no_grad()
def read_test_images(trained: RunModel, n_images: int) -> TestImages:
    """Evenly spaced test images and what the unfused model answers."""
    test, preprocess = trained.images("test"), trained.preprocess
    assert test is not None, "the run's recipe has no test images"
    test = test.only([test.indices[i] for i in spread(len(test.indices), n_images)])
    pixels = read_pixels(test.source, test.indices, preprocess)
    batch = torch.from_numpy(np.stack([normalize(image, preprocess) for image in pixels]))
    logits = trained.scale * trained.forward_features(batch) @ trained.vectors.vectors.T
    keys = [test.source.items[index].key for index in test.indices]
    return TestImages(pixels, logits.numpy(), keys, trained.labels_of(test))


def calibration_images(trained: RunModel, onnx_path: Path) -> npt.NDArray[Any]:
    """[N, 3, S, S]: unlabeled images none of which is a test image."""
    pool, test = trained.images("unlabeled"), trained.images("test")
    assert pool is not None, "the run's recipe has no unlabeled images"
    assert test is not None
    left_out = set(test.digests.values())
    session = backend.load(onnx_path)
    chosen = choose_calibration_images(
        pool.source,
        {i: pool.digests[i] for i in pool.indices if pool.digests[i] not in left_out},
        n_images=trained.loaded.recipe.export.calibration_images,
        seed=trained.loaded.recipe.seed,
        predict=partial(run_batches, session, pixels="float", max_batch=32),
        preprocess=trained.preprocess,
    )
    return to_input(chosen.pixels, "float")


def latencies(
    files: dict[str, Path], image: npt.NDArray[Any], *, n_threads: int, n_rounds: int
) -> dict[str, float]:
    """Median milliseconds of each file."""
    sessions = {name: backend.load(path, n_threads=n_threads) for name, path in files.items()}
    calls = {name: partial(session.run, image) for name, session in sessions.items()}
    taken = interleaved(calls, n_rounds)
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(run: Path, n_images: int, *, n_threads: int, n_rounds: int) -> dict[str, Any]:
    """Makes every file and gives the table's rows."""
    torch.set_num_threads(n_threads)
    folder = RunFolder.open(run)
    trained = load_run(folder, Workspace(folder.root, torch.device("cpu")))
    path, vectors = trained.image_path(), trained.vectors.vectors
    preprocess = trained.preprocess
    model = fold(path, vectors, scale=trained.scale, preprocess=preprocess)
    test = read_test_images(trained, n_images)
    with tempfile.TemporaryDirectory() as folder:
        files = {FLOAT32: Path(folder) / "float32.onnx"}
        onnx_target.write_onnx(model, files[FLOAT32], size_px=preprocess.size_px)
        images = calibration_images(trained, files[FLOAT32])
        for number, (name, make) in enumerate(FILES.items()):
            files[name] = Path(folder) / f"{number}.onnx"
            make(files[FLOAT32], files[name], images)
        rows = {name: _compare(path, test, trained, n_threads) for name, path in files.items()}
        image = to_input(test.pixels[:1], "float")
        times = latencies(files, image, n_threads=n_threads, n_rounds=n_rounds)
    for name, row in rows.items():
        row |= {"latency_ms": times[name], "ratio": times[FLOAT32] / times[name]}
    return {"run": trained.run.name, "n_images": len(test.keys), "n_calibration": len(images),
            "threads": n_threads, "onnxruntime": onnxruntime.__version__, "rows": rows}  # fmt: skip


def _compare(path: Path, test: TestImages, trained: RunModel, n_threads: int) -> dict[str, Any]:
    session = backend.load(path, n_threads=n_threads)
    logits = run_batches(session, test.pixels, pixels="float", max_batch=1)
    found = compare(test.logits, logits, keys=test.keys, labels=test.labels, images="test",
                    class_names=trained.class_names, runtime=session.describe())  # fmt: skip
    return {key: getattr(found, key) for key in KEYS} | {"megabytes": path.stat().st_size / 1e6}


def show(result: dict[str, Any]) -> None:
    """Prints the table as Markdown."""
    print(f"{result['run']}: {result['n_images']} test images,")
    print(f"{result['n_calibration']} images for ranges, {result['threads']} threads,")
    print(f"ONNX Runtime {result['onnxruntime']}\n")
    print("| file | agreement % | accuracy % | distance | MB | ms | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    digits = (1, 1, 4, 2, 2, 2)
    for name, row in result["rows"].items():
        cells = [
            "-" if value is None else f"{value:.{n}f}"
            for value, n in zip(row.values(), digits, strict=True)
        ]
        print(f"| {' | '.join([name, *cells])} |")


def main() -> None:
    """Measures a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result = measure(given.run, given.images, n_threads=given.threads, n_rounds=given.rounds)
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
