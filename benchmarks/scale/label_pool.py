"""Labels a big pool of images by a trained model, over machines with Ray Data or in one process.

The same `Labeler` runs in both: Ray reads the files, hands batches to as many copies of it as there
are GPUs (or `--copies`), puts a failed one's work elsewhere, and writes Parquet; one process writes
the same rows as JSON lines. A row has the image's path, the class that the model names, its
probability, or why the image could not be read.

    pip install 'ray[data]'
    python benchmarks/scale/label_pool.py RUN IMAGES --output labels [--copies 8] [--gpu]
    python benchmarks/scale/label_pool.py RUN IMAGES --output labels.jsonl --one-process
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Rows = dict[str, Any]
"""Column -> its values, as Ray Data hands batches over."""


class Labeler:
    """Names the class of images.

    Args:
        run: folder of a finished run.
        device: where the model runs.
        n_threads: of the CPU.
    """

    def __init__(self, run: str, device: str, n_threads: int) -> None:
        import torch

        from kdedge.runs.folder import RunFolder
        from kdedge.runs.model import load_run
        from kdedge.setup.workspace import Workspace

        torch.set_num_threads(n_threads)
        folder = RunFolder.open(Path(run))
        self._model = load_run(folder, Workspace(folder.root, torch.device(device)))

    def __call__(self, batch: Rows) -> Rows:
        """`path` and `bytes` of images -> `path`, `class`, `probability` and `error`."""
        import torch

        from kdedge.runtime.preprocess import UnusableImage, preprocess_image

        paths = [str(path) for path in batch["path"]]
        labels = [("", float("nan"), "")] * len(paths)
        images, positions = [], []
        for position, data in enumerate(batch["bytes"]):
            try:
                images.append(preprocess_image(data, self._model.preprocess))
                positions.append(position)
            except UnusableImage as error:
                labels[position] = ("", float("nan"), error.reason)
        if images:
            stacked = torch.from_numpy(np.stack(images)).to(self._model.device)
            best = self._model.logits(stacked).softmax(dim=-1).max(dim=-1)
            for position, label, probability in zip(
                positions, best.indices.tolist(), best.values.tolist(), strict=True
            ):
                labels[position] = (self._model.class_names[label], probability, "")
        names, probabilities, errors = map(list, zip(*labels, strict=True))
        return {"path": paths, "class": names, "probability": probabilities, "error": errors}


def with_ray(arguments: argparse.Namespace) -> None:
    """Labels by Ray Data into Parquet files."""
    import ray

    device = "cuda" if arguments.gpu else "cpu"
    pool = ray.data.read_binary_files(str(arguments.images.resolve()), include_paths=True)
    labeled = pool.map_batches(
        Labeler,
        fn_constructor_args=(str(arguments.run.resolve()), device, 1),
        batch_size=arguments.batch,
        concurrency=arguments.copies,
        num_gpus=1 if arguments.gpu else 0,
    )
    labeled.write_parquet(str(arguments.output.resolve()))


def in_one_process(arguments: argparse.Namespace) -> None:
    """Labels here, into JSON lines."""
    labeler = Labeler(str(arguments.run), "cuda" if arguments.gpu else "cpu", 1)
    with arguments.output.open("x", encoding="utf-8") as file:
        for batch in batches(arguments.images, arguments.batch):
            labeled = labeler(batch)
            for values in zip(*labeled.values(), strict=True):
                row = dict(zip(labeled, values, strict=True))
                if row["error"]:
                    row["probability"] = None  # JSON has no NaN
                file.write(json.dumps(row) + "\n")


def batches(folder: Path, size: int) -> Iterator[Rows]:
    """Paths and bytes of a folder's files."""
    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    for start in range(0, len(files), size):
        chunk = files[start : start + size]
        yield {
            "path": [str(path) for path in chunk],
            "bytes": [path.read_bytes() for path in chunk],
        }


def main() -> None:
    """Labels and says how fast."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="one a copy")
    parser.add_argument("--one-process", action="store_true", help="without Ray")
    arguments = parser.parse_args()
    if not arguments.images.is_dir():
        parser.error(f"{arguments.images} is not a folder.")
    began = time.perf_counter()
    (in_one_process if arguments.one_process else with_ray)(arguments)
    print(f"{arguments.output}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
