"""Accuracy of a finished run."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from kdedge.api.arguments import need_training_packages
from kdedge.config.load import Overrides, load_recipe
from kdedge.errors import ResourceError
from kdedge.records.evaluation import EvalResult, UnlabeledResult
from kdedge.runs.find import RunOrArtifact, find_run, named_artifact
from kdedge.runs.folder import runs_folder
from kdedge.runs.results import add_evaluation, add_unlabeled, is_evaluated
from kdedge.runtime.process import torch_as_before

log = logging.getLogger(__name__)


def evaluate(
    run: RunOrArtifact | None = None,
    *,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
) -> EvalResult | UnlabeledResult:
    """Evaluates a finished run on its test images, or on others.

    The result is written to the run if it has none yet, such as an imported run. With `overrides`
    nothing is written, unless they name the first test images of a run that had none.

    Args:
        run: a `Run`, its folder, `name/NN`, or a recipe's name for its newest finished student;
            None for the newest finished student, or any finished run if there is no student.
        overrides: keys of the recipe with other values, such as `{"data.test": {"folder": "new"}}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        An `EvalResult`, whose accuracies are in percent: all classes, base, novel, harmonic mean,
        per class. If the recipe has no test images, an `UnlabeledResult` of its unlabeled images:
        agreement with the teacher, confidence, how often each class is predicted.

    Raises:
        RecipeError: no such run, or its recipe has neither test nor unlabeled images.
        DataError: images or the run's files cannot be read.
        SetupError: torch, weights or the device is missing.

    Examples:
        >>> result = kdedge.evaluate("line3", overrides={"data.test": {"folder": "labeled"}})
        >>> if isinstance(result, kdedge.EvalResult):
        ...     print(result.all, result.per_class)
    """
    root = runs_folder(root, run)
    folder = find_run(run, root)
    artifact = named_artifact(run, root)
    if artifact is not None:
        log.warning(
            f"{artifact} is an artifact. This measures the model of its run, before the export and"
            f" with all classes.\n  How its files differ: kdedge show {shlex.quote(str(artifact))}"
        )
    need_training_packages("Measuring accuracy")
    from kdedge.runs.measure import evaluate_run
    from kdedge.runs.model import run_workspace

    with torch_as_before():
        workspace = run_workspace(folder, device)
        is_new = not is_evaluated(folder)
        adds_test = is_new and load_recipe(folder.recipe).recipe.data.test is None
        is_written = not overrides or (
            adds_test and all(key.startswith("data.test") for key in overrides)
        )
        measured = evaluate_run(
            folder, workspace, overrides=overrides, with_samples=is_written and is_new
        )
    if is_written:
        try:
            if isinstance(measured, UnlabeledResult):
                written = add_unlabeled(folder, measured)
            else:
                written = add_evaluation(folder, measured)
            for path in written:
                log.info(f"Wrote {path}")
        except ResourceError as error:  # return the result all the same
            log.warning("%s", error)
    return measured if isinstance(measured, UnlabeledResult) else measured.result
