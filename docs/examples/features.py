"""Image features of a folder of images, by a teacher, a student or a baseline: one row an image.

Run it with `python features.py RUN IMAGES OUTPUT.npz`; it needs torch and the run. RUN is a run
folder, `name/NN`, or a recipe's name for its newest finished student.
"""

import sys
from pathlib import Path

import numpy as np

from kdedge.data.loader import evaluation_batches
from kdedge.runs.find import find_run
from kdedge.runs.model import load_run
from kdedge.setup.workspace import Workspace, set_up_device


def main(run: str, images: str, output: str, root: str = "runs") -> None:
    """Writes `features` [N, D], float32, unit length, and `paths` [N] into a NumPy file."""
    workspace = Workspace(Path(root), set_up_device(None))
    place = {"folder": Path(images).resolve(), "hold_out": 0, "include_test": True}
    overrides = {"data.unlabeled": place}
    model = load_run(find_run(run, workspace.root), workspace, overrides=overrides)
    found = model.images("unlabeled")
    batches = evaluation_batches(
        found.source,
        found.indices,
        preprocess=model.preprocess,
        batch_size=32,
        device=model.device,
    )
    rows = [model.forward_features(pixels).cpu().numpy() for pixels, _ in batches]
    paths = [found.source.items[index].key for index in found.indices]
    np.savez(output, features=np.concatenate(rows), paths=paths)


if __name__ == "__main__":
    main(*sys.argv[1:])
