"""Accuracy of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdedge.api.recipe import Overrides, set_texts
from kdedge.results import EvalResult
from kdedge.runs.find import find_run


def evaluate(
    run: Any = None,
    *,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
) -> EvalResult:
    """Measures a finished run on its test images, or on others.

    Args:
        run: a `Run`, its folder, `name/NN`, or a recipe's name for its newest finished run; None
            for the newest finished student.
        overrides: keys of the recipe with other values, such as `{"data.test.folder": "new"}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` where there is one.

    Returns:
        Accuracies in percent: all classes, base, novel, harmonic mean, per class.

    Raises:
        RecipeError: there is no such run, or its recipe has no test images.
        DataError: images or the run's files cannot be read.
        SetupError: torch, weights or the device are missing.
    """
    from kdedge.runs.evaluate import evaluate_run
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace

    found = find_run(run_argument(run), Path(root))
    workspace = Workspace(Path(root), choose_device(device))
    return evaluate_run(found, workspace, overrides=set_texts(overrides))[0]


def run_argument(run: Any) -> str | None:
    """What names a run: a `Run` and an artifact have a path."""
    return None if run is None else str(getattr(run, "path", run))
