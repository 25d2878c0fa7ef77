"""What open classes cost: latency against the plain files, and the seconds of a swap.

Plain and open files run one image a call, in one process, interleaved; ratios are plain to open, so
that 0.98 is 2 % slower. The third ratio is robust on a busy machine: in each round, that of the two
smallest times; of the rounds, the median and the quartiles. A swap removes one class and adds it
again, in a copy of OPEN: the time is that of one of the two changes, with everything but the
teacher's encoding of the new names.

    python benchmarks/open_classes.py PLAIN OPEN [--threads 1] [--rounds 20]

PLAIN and OPEN are from `kdedge export RUN` and `kdedge export RUN --open-classes`, with the same
options besides.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kdedge.deploy.classes import NewClasses, change_classes
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact
from kdedge.runtime.backend import Backend
from kdedge.runtime.machine import cpu_model
from kdedge.runtime.open_classes import class_logits, load_matrix, with_classes
from kdedge.targets.registry import list_targets, load_run

sys.path.insert(0, str(Path(__file__).parent))
from interleaved import N_CALLS, interleaved

N_SWAPS = 5


def load(artifact: Artifact, file: ModelFile, n_threads: int) -> Backend:
    """One of an artifact's files, which gives logits."""
    targets = {target.name: target for target in list_targets()}
    path = artifact.checked(file.name)
    backend = load_run(targets[file.target]).load(path, n_threads=n_threads)
    return with_classes(artifact, backend)


def by_round(before: list[float], after: list[float]) -> list[float]:
    """Each round's ratio of the smallest times."""
    rounds = range(0, len(before), N_CALLS)
    return [min(before[i:][:N_CALLS]) / min(after[i:][:N_CALLS]) for i in rounds]


def swap_seconds(artifact: Artifact) -> list[float]:
    """Seconds of each change of a copy's classes."""
    folder = Path(tempfile.mkdtemp()) / "artifact"
    shutil.copytree(artifact.path, folder)
    assert artifact.open_classes is not None
    name = artifact.class_names[0]
    row = load_matrix(artifact)[:1] / np.float32(artifact.open_classes.scale)
    found = []
    for _ in range(N_SWAPS):
        for change in ({"removed": [name]}, {"added": NewClasses((name,), row, "0" * 64)}):
            began = time.perf_counter()
            change_classes(folder, **change)
            found.append(time.perf_counter() - began)
    shutil.rmtree(folder.parent)
    return found


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plain", type=Path)
    parser.add_argument("open", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    plain, opened = load_artifact(arguments.plain), load_artifact(arguments.open)
    if opened.open_classes is None or plain.open_classes is not None:
        raise SystemExit("Give a plain artifact first, and one with open classes second.")
    size = plain.preprocess.size_px
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    names = [file.name for file in plain.files if file.target in ("onnx", "openvino")]
    names = [name for name in names if name in {file.name for file in opened.files}]
    calls = {}
    for name in names:
        for kind, artifact in (("plain", plain), ("open", opened)):
            backend = load(artifact, artifact.file(name), arguments.threads)
            calls[f"{name} {kind}"] = lambda backend=backend: backend.run(image)
    matrix = load_matrix(opened)
    features = np.random.default_rng(0).normal(size=(1, matrix.shape[1])).astype(np.float32)
    calls["product"] = lambda: class_logits(features, matrix)
    times = interleaved(calls, arguments.rounds)
    print("| file | plain ms | open ms | ratio | ratio of minima | ratio by round (quartiles) |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in names:
        before, after = times[f"{name} plain"], times[f"{name} open"]
        medians = statistics.median(before), statistics.median(after)
        cells = [f"{value:.3g}" for value in medians]
        cells += [f"{medians[0] / medians[1]:.3f}", f"{min(before) / min(after):.3f}"]
        low, middle, high = statistics.quantiles(by_round(before, after), n=4)
        cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |")
    product = times["product"]
    print(
        f"\nProduct with a matrix of {list(matrix.shape)}: {statistics.median(product):.3g} ms"
        f" (smallest {min(product):.3g})."
    )
    swaps = swap_seconds(opened)
    print(f"A swap: {statistics.median(swaps):.3g} s ({min(swaps):.3g} to {max(swaps):.3g}).")
    print(f"{cpu_model()}, {arguments.threads} threads.")


if __name__ == "__main__":
    main()
