"""Calibration error and "none of these" of an artifact's files, on all test images of its run.

    python benchmarks/scores.py RUN ARTIFACT [--files NAME ...] [--set KEY=VALUE ...]

Prints Markdown, a row for each file that runs here: expected calibration error with and without the
temperature, and the percentage of test images that keep their class: of all of them; of the class
that keeps the least and of the one that keeps the most; and the same for those that the file
answers rightly. It prints the share for images of the pool that the limits were not fitted to, too,
which tells a test set that differs from the pool from a limit that is wrong. With --set, test
images and pool are others than the run's; the pool has to be that of the export.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdedge.config.load import parse_overrides
from kdedge.data.images import spread
from kdedge.deploy.calibrate import read_pixels
from kdedge.deploy.known_images import choose_known_images
from kdedge.evaluation.accuracy import calibration_error_percent
from kdedge.inference.classify import Classifier
from kdedge.inference.results import Prediction
from kdedge.runs.find import find_run
from kdedge.runs.model import RunModel, load_run
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.backend import to_input
from kdedge.setup.device import choose_device
from kdedge.setup.images import Images
from kdedge.setup.workspace import Workspace

MOST_OF_POOL = 5000
FILES = ("model.onnx", "model.int8.onnx", "model.int8-cpu.onnx")
HEADS = (
    *("file", "right %", "ECE before", "ECE after"),
    *("keep their class %", "by class", "right ones", "by class", "others of the pool"),
)

Array = np.ndarray


def pixels_of(trained: RunModel, images: Images) -> Array:
    """[N, S, S, 3], after resize and crop."""
    return read_pixels(images.source, images.indices, trained.preprocess)


def rest_of_pool(trained: RunModel, share_percent: float) -> Images | None:
    """Images of the pool that have no part in the limits and are not among the test images."""
    pool, test = trained.images("unlabeled"), trained.images("test")
    if pool is None or test is None:
        return None
    apart = frozenset(test.digests[index] for index in test.indices)
    known = choose_known_images(trained, pool, f"{share_percent:g}%", apart_from=apart)
    assert known is not None
    used = apart | known.digests
    free = [index for index in pool.indices if pool.digests[index] not in used]
    return pool.only([free[i] for i in spread(len(free), MOST_OF_POOL)])


def is_known(classifier: Classifier, outputs: Array) -> Array:
    """Which images keep their class, [N]."""
    results = classifier.results([""] * len(outputs), outputs, top=1)
    return np.array([isinstance(one, Prediction) and not one.is_none for one in results])


def row_of(
    classifier: Classifier, test: Array, labels: Array, rest: Array | None, temperature: float
) -> list[str]:
    """The cells of a file."""

    def run(pixels: Array) -> Array:
        return classifier.outputs(to_graph(classifier, pixels), max_batch=32)

    outputs = run(test)
    logits = classifier.as_logits(outputs)
    has_label = labels >= 0
    truth = torch.from_numpy(labels[has_label])
    after = torch.from_numpy(logits[has_label])
    errors = [calibration_error_percent(after * t, truth) for t in (temperature, 1.0)]
    cells = [f"{100 * (after.argmax(1) == truth).double().mean():.1f}"]
    cells += [f"{error:.2f}" for error in errors]
    if not classifier.tells_none:
        return cells
    kept = is_known(classifier, outputs)
    is_right = logits.argmax(axis=1) == labels
    for chosen in (has_label, is_right):
        own = [kept[chosen & (labels == c)] for c in np.unique(labels[has_label])]
        by_class = [100 * one.mean() for one in own if len(one)]
        cells += [f"{100 * kept[chosen].mean():.2f}", f"{min(by_class):.0f} to {max(by_class):.0f}"]
    cells += [] if rest is None else [f"{100 * is_known(classifier, run(rest)).mean():.2f}"]
    return cells


def to_graph(classifier: Classifier, pixels: Array) -> Array:
    """[N, S, S, 3] -> [N, 3, S, S], as the file takes them."""
    return to_input(pixels, classifier.artifact.pixels)


def main() -> None:
    """Prints a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--files", nargs="+", default=FILES)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    artifact = load_artifact(arguments.artifact)
    found = find_run(str(arguments.run), arguments.run.parent)
    workspace = Workspace(found.root, choose_device("cpu"))
    trained = load_run(found, workspace, overrides=parse_overrides(arguments.set))
    test = trained.images("test")
    assert test is not None
    labels = np.array([-1 if c is None else c for c in trained.labels_of(test)])
    pixels = pixels_of(trained, test)
    none = artifact.none_of_these
    rest = None if none is None else rest_of_pool(trained, none.share_percent)
    rest_pixels = None if rest is None else pixels_of(trained, rest)
    temperature = 1.0 if artifact.temperature is None else artifact.temperature.value
    n_rest = 0 if rest is None else len(rest.indices)
    print(f"{len(pixels)} test images, {n_rest} others of the pool, temperature {temperature:.4g}")
    print(f"| {' | '.join(HEADS)} |")
    print(f"|---|{'---:|' * (len(HEADS) - 1)}")
    for name in arguments.files:
        classifier: Any = Classifier.load_named(artifact.path / name, n_threads=1)
        cells = row_of(classifier, pixels, labels, rest_pixels, temperature)
        classifier.backend.close()
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
