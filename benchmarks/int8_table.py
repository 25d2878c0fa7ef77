"""What each way to eight bits costs a student: agreement, accuracy, size, speed, layers in FP16.

    pip install 'nvidia-modelopt[onnx]'       # for --modelopt
    python benchmarks/int8_table.py RUN [--planted]
        [--set KEY=VALUE ...] [--modelopt] [--images 5000] [--threads 1] [--rounds 10]
        [--output FILE.json]

Ranges come from unlabeled images and candidates of the search are chosen on others, as `kdedge
export` does; figures come from evenly spaced test images, or from unlabeled ones that nothing else
uses where the recipe has no test images. Agreement is the share of images with the top-1 of RUN's
unfolded float32 model. Layers in FP16 are those that INT8 quantizes by default and here does not.
Latency is a median on this CPU, one image a call, all files in one process and in turns; the ratio
is float32's latency by the file's. Q/DQ files are meant for GPUs.

--planted plants outliers in RUN's image encoder first (`planted_outliers.py`).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from interleaved import interleaved
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from planted_outliers import plant
from torch import nn

from kdedge.builders.onnx.insert import find_sites
from kdedge.builders.onnx.quantize import to_int8, to_int8_cpu
from kdedge.builders.onnx.trace import write_onnx
from kdedge.config.load import parse_overrides
from kdedge.data.images import spread
from kdedge.deploy.export import N_HELD_OUT
from kdedge.deploy.int8_images import choose_calibration_images
from kdedge.deploy.pixels import PixelArray, read_pixels
from kdedge.fold import FoldedModel, FoldRequest, fold
from kdedge.loading.decoding import normalizer
from kdedge.progress import progress
from kdedge.quantization.search import search
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.runtime.backend import run_batches, to_input
from kdedge.setup.workspace import Workspace
from kdedge.targets.onnx import run as backend
from kdedge.targets.onnx.graph import load_graph
from kdedge.targets.onnx.half import to_fp16

FLOAT32 = "float32"
BATCH = 32
Images = npt.NDArray[Any]


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


def modelopt(source: Path, output: Path, images: npt.NDArray[Any]) -> None:
    """ModelOpt with its own placement of Q/DQ; ranges by the largest value, as ours."""
    from modelopt.onnx.quantization import quantize

    with redirect_stdout(io.StringIO()):
        quantize(str(source), output_path=str(output), quantize_mode="int8",
                 calibration_data_reader=Reader(images), calibration_method="max",
                 calibration_eps=["cpu"], high_precision_dtype="fp32", log_level="ERROR",
                 )  # fmt: skip


def ort_static(source: Path, output: Path, images: npt.NDArray[Any]) -> None:
    """ONNX Runtime's static quantizer, as TensorRT wants it: QDQ, symmetric, signed."""
    int8 = QuantType.QInt8
    quantize_static(source, output, Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=int8, weight_type=int8,
                    extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
                    )  # fmt: skip


RECIPES: dict[str, Callable[[Path, Path, Images], None]] = {
    "FP16": lambda source, output, images: to_fp16(source, output, images=images),
    "ONNX Runtime static": ort_static,
    "ModelOpt's own placement": modelopt,  # replaces parts of ONNX Runtime's quantizer
}
GATES = {"search, gate 98": 98.0, "search, gate 99": 99.0}


class Table:
    """A student, the images that its files are made with and compared on, and the rows so far.

    Attributes:
        rows: by the file's name.
    """

    def __init__(self, trained: RunModel, folder: Path, n_images: int) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._trained, self._folder = trained, folder
        self._files: dict[str, Path] = {}
        self.model = folded(trained)
        self.source = folder / "float32.onnx"
        write_onnx(self.model, self.source, size_px=trained.preprocess.size_px)
        self._choose_images(n_images)
        self._expected = unfolded_logits(trained, self._pixels)
        self.add(FLOAT32, self.source)

    def _choose_images(self, n_images: int) -> None:
        """Images for ranges, to choose by, and to compare on: no content is in two of them."""
        trained = self._trained
        pool, test = trained.images.load("unlabeled"), trained.images.load("test")
        assert pool is not None, "the run's recipe has no unlabeled images"
        compared = pool if test is None else test
        compared = compared.only(
            [compared.indices[i] for i in spread(len(compared.indices), n_images)]
        )
        digests = {compared.digests[index] for index in compared.indices}
        chosen = choose_calibration_images(
            pool.source,
            {i: pool.digests[i] for i in pool.indices if pool.digests[i] not in digests},
            n_images=trained.recipe.export.calibration_images + N_HELD_OUT,
            seed=trained.recipe.seed,
            predict=partial(run_batches, backend.load(self.source), max_batch=BATCH),
            preprocess=trained.preprocess,
        )
        ranges, held_out = chosen.hold_out(N_HELD_OUT, trained.recipe.export.calibration_images)
        self.ranges, self.held_out = (to_input(s.pixels, "float") for s in (ranges, held_out))
        self._pixels = read_pixels(compared.source, compared.indices, trained.preprocess)
        self._labels = np.array(
            [-1 if label is None else label for label in trained.labels_of(compared)]
        )

    def add(self, name: str, path: Path, **facts: Any) -> None:
        """Compares a file."""
        session = backend.load(path)
        logits = run_batches(session, self._pixels, max_batch=BATCH)
        self._files[name] = path
        self.rows[name] = {
            **self._compared(logits),
            "megabytes": path.stat().st_size / 1e6,
            **facts,
        }
        print(f"{name}: {self.rows[name]}", flush=True)

    def add_recipe(self, name: str) -> None:
        """Makes a file by a recipe without a search."""
        path = self._folder / f"{len(self._files)}.onnx"
        RECIPES[name](self.source, path, self.ranges)
        self.add(name, path)

    def add_search(self, name: str, gate_percent: float, minutes: float) -> None:
        """Makes a file by `kdedge export`'s search."""
        began = time.monotonic()
        best, record = search(
            self.model, find_sites(load_graph(self.source), self.model),
            torch.from_numpy(self.ranges), torch.from_numpy(self.held_out),
            target_percent=(gate_percent + 100) / 2,
            enough_percent=gate_percent + (100 - gate_percent) / 4, minutes=minutes,
        )  # fmt: skip
        seconds = time.monotonic() - began
        path = self._write(best.model, partial(to_int8, layers=best.layers))
        facts = {"in_float": len(record["in_float"]), "ended": record["ended"],
                 "n_layers": len(record["layers"])}  # fmt: skip
        self.add(name, path, search_seconds=seconds, **facts)
        self.add(f"{name}, file for CPUs", self._write(best.exact, to_int8_cpu))

    def _write(self, model: nn.Module, make: Callable[..., None]) -> Path:
        traced = self._folder / "traced.onnx"
        path = self._folder / f"{len(self._files)}.onnx"
        write_onnx(model, traced, size_px=self._trained.preprocess.size_px)
        make(traced, path, calibration=self.ranges)
        return path

    def _compared(self, logits: npt.NDArray[np.float32]) -> dict[str, float | None]:
        top, expected = logits.argmax(axis=1), self._expected.argmax(axis=1)
        known = self._labels >= 0
        row: dict[str, float | None] = {"agreement": 100 * float((top == expected).mean())}
        row["accuracy"] = row["drop"] = None
        if known.any():
            right = [100 * float((t == self._labels)[known].mean()) for t in (expected, top)]
            row |= {"accuracy": right[1], "drop": right[0] - right[1]}
        return row

    def time_files(self, n_threads: int, n_rounds: int) -> None:
        """Median milliseconds of every file, one image a call."""
        image = to_input(self._pixels[:1], "float")
        sessions = {n: backend.load(path, n_threads=n_threads) for n, path in self._files.items()}
        calls = {name: partial(session.run, image) for name, session in sessions.items()}
        taken = interleaved(calls, n_rounds)
        for name, times in taken.items():
            self.rows[name]["ms"] = statistics.median(times)
            self.rows[name]["ratio"] = statistics.median(taken[FLOAT32]) / self.rows[name]["ms"]


def open_run(run: Path, overrides: Sequence[str] = ()) -> RunModel:
    """A finished run on the CPU."""
    folder = RunFolder.open(run)
    return load_run(
        folder, Workspace(folder.root, torch.device("cpu")), overrides=parse_overrides(overrides)
    )


def folded(trained: RunModel) -> FoldedModel:
    """Its folded model."""
    vectors, preprocess = trained.class_vectors().cpu(), trained.preprocess
    request = FoldRequest(vectors, scale=trained.scale, preprocess=preprocess)
    return fold(trained.method.image_modules(), request)


@torch.no_grad()
def unfolded_logits(trained: RunModel, pixels: PixelArray) -> npt.NDArray[np.float32]:
    """[N, C], of the model as it was trained."""
    parts, vectors = [], trained.class_vectors().cpu()
    with progress("reference", len(pixels), unit="images") as advance:
        for start in range(0, len(pixels), BATCH):
            some = pixels[start : start + BATCH]
            batch = normalizer(trained.preprocess, torch.device("cpu"))(torch.from_numpy(some))
            parts.append(trained.scale * trained.forward_features(batch) @ vectors.T)
            advance(start + len(some))
    return torch.cat(parts).numpy()


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Makes every file and gives the table's rows."""
    torch.set_num_threads(given.threads)
    trained = open_run(given.run, given.set)
    if given.planted:
        visual = trained.method.image_modules().visual
        visual.load_state_dict(plant(visual.state_dict()))
    with tempfile.TemporaryDirectory() as folder:
        table = Table(trained, Path(folder), given.images)
        for name, gate in GATES.items():
            table.add_search(name, gate, given.minutes)
        for name in RECIPES:
            if RECIPES[name] is not modelopt or given.modelopt:
                table.add_recipe(name)
        table.time_files(given.threads, given.rounds)
        return {"run": trained.run.name, "planted": given.planted, "threads": given.threads,
                "n_images": given.images, "n_ranges": len(table.ranges),
                "n_held_out": len(table.held_out), "onnxruntime": onnxruntime.__version__,
                "rows": table.rows}  # fmt: skip


COLUMNS = {
    "agreement": 2,
    "drop": 2,
    "megabytes": 2,
    "ratio": 2,
    "in_float": 0,
    "search_seconds": 0,
}


def show(result: dict[str, Any]) -> None:
    """Prints the table as Markdown."""
    print(f"\n{json.dumps({key: value for key, value in result.items() if key != 'rows'})}\n")
    print("| way | agreement % | drop, points | MB | CPU ratio | layers in FP16 | search, s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in result["rows"].items():
        values = [row.get(key) for key in COLUMNS]
        cells = ["-" if value is None else f"{value:.{digits}f}"
                 for value, digits in zip(values, COLUMNS.values(), strict=True)]  # fmt: skip
        print(f"| {' | '.join([name, *cells])} |")


def main() -> None:
    """Measures a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="as kdedge has it")
    parser.add_argument("--modelopt", action="store_true", help="with a row of ModelOpt's")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10, help="time of each search")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result = measure(given)
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
