"""Accuracy of a finished run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.api.recipe import Overrides, set_texts
from kdedge.errors import ResourceError
from kdedge.results import EvalResult, UnlabeledResult
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import add_evaluation, add_unlabeled, has_samples
from kdedge.setup.packages import need_training_packages


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of a run.

    Attributes:
        run: the run.
        result: its accuracies, or its measurements without labels.
        written: files that the run did not have before.
    """

    run: RunFolder
    result: EvalResult | UnlabeledResult
    written: list[Path]


def evaluate(
    run: Any = None,
    *,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
) -> EvalResult | UnlabeledResult:
    """Evaluates a finished run on its test images, or on others.

    The result is added to a run without one, such as an imported run. Existing files stay, and with
    `overrides` nothing is written.

    Args:
        run: a `Run`, its folder, `name/NN`, or a recipe's name for its newest finished run; None
            for the newest finished student.
        overrides: keys of the recipe with other values, such as `{"data.test.folder": "new"}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        Accuracies in percent: all classes, base, novel, harmonic mean, per class. If the recipe has
        no test images, measurements on unlabeled images: agreement with the teacher,
        confidence, how often each class is predicted.

    Raises:
        RecipeError: no such run, or its recipe has neither test nor unlabeled images.
        DataError: images or the run's files cannot be read.
        SetupError: torch, weights or the device is missing.
    """
    found = find_run(run_argument(run), Path(root))
    return make_evaluation(found, Path(root), device, set_texts(overrides)).result


def make_evaluation(
    run: RunFolder, root: Path, device: str | None, overrides: Sequence[str]
) -> Evaluated:
    """Evaluates a run, and adds the result to a run without one unless keys are overridden."""
    need_training_packages("Measuring accuracy")
    from kdedge.runs.evaluate import evaluate_run, judge_run
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace

    workspace = Workspace(root, choose_device(device))
    result: EvalResult | UnlabeledResult
    unlabeled = judge_run(run, workspace, overrides=overrides)
    if unlabeled is not None:
        result, add = unlabeled, functools.partial(add_unlabeled, run, unlabeled)
    else:
        result, details = evaluate_run(
            run,
            workspace,
            overrides=overrides,
            with_samples=not overrides and not has_samples(run),
        )
        add = functools.partial(add_evaluation, run, result, details)
    written: list[Path] = []
    if not overrides:
        try:
            written = add()
        except ResourceError as error:  # return the result all the same
            logging.getLogger(__name__).warning("%s", error)
    return Evaluated(run, result, written)


def run_argument(run: Any) -> str | None:
    """The path of a `Run` or an artifact, or the name of a run."""
    return None if run is None else str(getattr(run, "path", run))
