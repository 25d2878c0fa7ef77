"""Which score tells best that an image shows none of the classes, for a float and an INT8 file.

    python benchmarks/none_of_these.py ARTIFACT --pool DIR --known DIR --other NAME=DIR
        --names FILE --run RUN

ARTIFACT has open classes, so that its files give features, and an INT8 file. Images of --pool,
whose labels are not read, fit Gaussians (one half of them) and limits for 95 % (the other half).
--known and --other are test images, of the classes and of others. --names has class names that are
in none of the sets: text negatives, which RUN's teacher encodes.

Prints Markdown: AUROC of known against other images; FPR, the percentage of other images above the
score that 95 % of the known ones reach; and the percentage of known images above the limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdedge.deploy.known_images import fit_gaussians, fit_limit
from kdedge.runs.find import find_run
from kdedge.runs.model import load_run
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.backend import run_batches, softmax
from kdedge.runtime.open_classes import load_matrix
from kdedge.runtime.preprocess import decode_image, resize_and_crop
from kdedge.setup.device import choose_device
from kdedge.setup.workspace import Workspace
from kdedge.targets.onnx import run as onnx_run

Array = np.ndarray
Score = Callable[[Array, Array], Array]
"""Features [N, D], logits [N, C] -> scores [N], higher for known images."""

FILES = {"float": "model.onnx", "INT8": "model.int8-cpu.onnx"}


def pixels_of(folder: Path, artifact: Artifact, n_images: int) -> Array:
    """Evenly spaced images of a folder, [N, S, S, 3]."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    chosen = paths[:: max(1, len(paths) // n_images)][:n_images]
    images = [decode_image(path.read_bytes()) for path in chosen]
    return np.stack([np.asarray(resize_and_crop(image, artifact.preprocess)) for image in images])


def features_of(artifact: Artifact, file: str, pixels: Array) -> Array:
    """Unit-length features of one of the files, [N, D]."""
    backend: Any = onnx_run.load(artifact.checked(file))
    parts = [
        run_batches(backend, pixels[i : i + 32], pixels=artifact.pixels, max_batch=32)
        for i in range(0, len(pixels), 32)
    ]
    backend.close()
    return np.concatenate(parts)


def log_sum(logits: Array) -> Array:
    """Logarithm of the sum of exponentials of each row."""
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))


def scores(features: Array, logits: Array, negatives: Array) -> dict[str, Score]:
    """The candidates; some are fitted to features [N, D] and logits [N, C] of the pool."""
    answers = logits.argmax(axis=1)
    of_features, of_logits = fit_gaussians(features, answers), fit_gaussians(logits, answers)
    return {
        "maximum softmax": lambda f, z: softmax(z).max(axis=1),
        "maximum logit": lambda f, z: z.max(axis=1),
        "energy": lambda f, z: log_sum(z),
        "text negatives, softmax": lambda f, z: log_sum(z) - log_sum(f @ negatives.T),
        "text negatives, maximum": lambda f, z: z.max(axis=1) - (f @ negatives.T).max(axis=1),
        "Mahalanobis of logits": lambda f, z: of_logits.scores(z),
        "Mahalanobis of features": lambda f, z: of_features.scores(f),
    }


def auroc(known: Array, other: Array) -> float:
    """How often a known image's score is above another's; equal ones count half."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, known, "left") + np.searchsorted(ordered, known, "right")
    return float(below.mean() / (2 * len(other)))


def coverage(pool: Array, known: Array) -> float:
    """Share of known images that reach the limit of 95 % of the pool, in percent."""
    limit = fit_limit(pool.astype(np.float64), 95.0)
    assert limit is not None
    return float(100 * (known >= limit.limit).mean())


def text_negatives(artifact: Artifact, names: Path, run: Path) -> Array:
    """Class vectors of other names, times the scale of the artifact's own, [M, D]."""
    found = find_run(str(run), run.parent)
    others = [line for line in names.read_text().splitlines() if line not in artifact.class_names]
    model = load_run(found, Workspace(found.root, choose_device("cpu")), names=others)
    assert artifact.open_classes is not None
    return artifact.open_classes.scale * model.vectors.vectors.numpy()


def main() -> None:
    """Prints a row for each score and file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--known", type=Path, required=True)
    parser.add_argument("--other", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--names", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    artifact = load_artifact(arguments.artifact)
    matrix = load_matrix(artifact)
    negatives = text_negatives(artifact, arguments.names, arguments.run)
    others = dict(one.split("=", 1) for one in arguments.other)
    places = {"pool": (arguments.pool, 2000), "known": (arguments.known, arguments.images)}
    places |= {name: (Path(place), arguments.images) for name, place in others.items()}
    pixels = {name: pixels_of(*place[:1], artifact, place[1]) for name, place in places.items()}
    print(f"{ {name: len(one) for name, one in pixels.items()} }\n")
    heads = [f"{name}: AUROC | FPR" for name in others]
    print(f"| score | file | {' | '.join(heads)} | coverage |")
    print(f"|---|---|{'---:|' * (2 * len(others) + 1)}")
    for kind, file in FILES.items():
        features = {name: features_of(artifact, file, one) for name, one in pixels.items()}
        logits = {name: one @ matrix.T for name, one in features.items()}
        fit, held_out = (features["pool"][start::2] for start in (0, 1))
        for name, score in scores(fit, fit @ matrix.T, negatives).items():
            known = score(features["known"], logits["known"])
            limit = np.quantile(known, 0.05)
            cells = []
            for other in others:
                found = score(features[other], logits[other])
                cells += [f"{auroc(known, found):.3f}", f"{100 * (found >= limit).mean():.1f}"]
            kept = coverage(score(held_out, held_out @ matrix.T), known)
            print(f"| {name} | {kind} | {' | '.join(cells)} | {kept:.1f} |")


if __name__ == "__main__":
    main()
