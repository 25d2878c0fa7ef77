"""The rows of a run: its model, its teacher, plain CLIP, and methods to compare with.

Speed and work depend only on the architecture and the protocol, so even untrained methods have
them; accuracies come from finished runs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kdedge.benchmarking.timing import Subject
from kdedge.benchmarking.torch_models import (
    LoadedTorch,
    TorchModel,
    baseline_models,
    own_model,
    title,
    zero_shot,
)
from kdedge.clip.backbone import Backbone
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.errors import KdedgeError, RecipeError, first_line
from kdedge.methods.registry import list_methods, load_method
from kdedge.records.evaluation import EvalResult
from kdedge.records.speed import Accuracy
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run, warn_of_other_test_images
from kdedge.runs.results import read_evaluation
from kdedge.setup.method import choose_method, has_class_vectors
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.training.teach import with_baseline

log = logging.getLogger(__name__)


def run_subjects(
    run: RunFolder, workspace: Workspace, *, against: Sequence[str]
) -> tuple[list[Subject], dict[str, str]]:
    """Returns the rows of a finished run in PyTorch, and what is left out and why.

    Args:
        run: run of a student, a teacher or a baseline.
        workspace: its folder of runs has the accuracies of other models.
        against: methods on the student's backbone to compare with.

    Raises:
        RecipeError: the run is not finished or has no class vectors, or a method is unknown or
            learns from a teacher.
        DataError: the run's files do not match.
    """
    for name in against:
        _check_method(name)
    _check_has_class_vectors(run)
    trained = load_run(run, workspace)
    try:
        warn_of_other_test_images(trained, trained.images("test"))
    except KdedgeError as error:
        log.warning(
            "The accuracies of %s were measured on test images that cannot be read now: %s",
            *(run.name, first_line(error)),
        )
    recipe = trained.loaded.recipe
    rows: list[Subject] = []
    left_out: dict[str, str] = {}

    def add(model: TorchModel, run: RunFolder | None, key: str) -> None:
        result = None if run is None else _evaluation(run).get(key)
        accuracy = None if run is None or result is None else Accuracy.of_run(result, run.name)
        rows.append(_subject(recipe.name, model, accuracy, workspace.device))

    if isinstance(trained.backbone, Backbone):
        add(zero_shot(trained.backbone, len(trained.class_names)), run, "zeroshot")
    else:
        left_out[title("zeroshot")] = f"{trained.backbone.name} has no text encoder that runs here"
    baselines = {} if recipe.student is None else newest_baselines(workspace.root, recipe.name)
    for name in against if recipe.student is not None else ():
        baseline = baselines.get(name)
        loaded = trained.loaded if baseline is None else load_recipe(baseline.recipe)
        try:
            models = _baseline(name, loaded, trained)
        except KdedgeError as error:
            left_out[title(name)] = first_line(error)
            continue
        for model in models:
            add(model, baseline, "baseline")
    if run.kind == "student":
        teacher = _teacher(run, trained, left_out)
        if teacher is not None:
            folder, model = teacher
            is_kept = "teacher" in _evaluation(run)  # on the student's test images
            add(model, *((run, "teacher") if is_kept else (folder, folder.kind)))
    add(own_model(trained), run, run.kind)
    return rows, left_out


def folded_name(run: RunFolder) -> str:
    """The name of a run's exported files, when all are left out."""
    return f"{run.name} folded"


def _check_has_class_vectors(run: RunFolder) -> None:
    """Refuses a run without class vectors, which can only be measured next to another run."""
    choice = choose_method(load_recipe(run.recipe), run.kind)
    if not has_class_vectors(choice):
        raise RecipeError(
            f"{run.path} is a run of {choice.name}, which"
            f" {choice.module.Method.why_no_class_vectors}: it can only be measured next to"
            " another run.\n"
            f"  Name another run: kdedge bench RUN --against {choice.name}"
        )


def _check_method(name: str) -> None:
    module = load_method(name)
    if module.METHOD.needs_teacher:
        able = [known for known in list_methods() if not load_method(known).METHOD.needs_teacher]
        raise RecipeError(
            f"--against {name}: it learns from a teacher; name its own run instead.\n"
            f"  Or compare with one of: {', '.join(able)}."
        )


def _baseline(name: str, loaded: LoadedRecipe, trained: RunModel) -> list[TorchModel]:
    """A method on the student's backbone, before training."""
    spec = loaded.recipe.baseline
    if spec is not None and spec.method not in (None, name):  # another method's settings
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"baseline": None}))
    loaded = with_baseline(loaded, name)
    classes = replace(trained.setup.classes, names=trained.class_names)
    # Raises for a student without text encoder
    setup = set_up_role(loaded, "baseline", trained.setup.workspace, classes=classes)
    return baseline_models(setup, setup.build())


def _teacher(
    run: RunFolder, trained: RunModel, left_out: dict[str, str]
) -> tuple[RunFolder, TorchModel] | None:
    """The teacher of a student; None if its run or its weights are missing."""
    name = run.read_provenance().teacher_run
    try:
        if name is None:
            raise RecipeError("the teacher is not a run")
        folder = RunFolder.open(run.root / str(name))
        if folder.kind != "teacher":
            raise RecipeError(f"the teacher is a {folder.kind}; name its run next to this one")
        teacher = load_run(folder, trained.setup.workspace, names=trained.class_names)
        model = own_model(teacher)
        return folder, replace(model, name=f"teacher, {model.name}")
    except KdedgeError as error:
        left_out["teacher"] = first_line(error)
        return None


def newest_baselines(root: Path, recipe: str) -> dict[str, RunFolder]:
    """The newest finished run of each baseline of a recipe's name."""
    finished = [
        (str(record.finished_at), str(record.method), run)
        for run, record in runs_in(root)
        if run.kind == "baseline" and run.path.parent.name == recipe and record.is_finished
    ]
    return {method: run for _, method, run in sorted(finished, key=lambda entry: entry[0])}


def _evaluation(run: RunFolder) -> dict[str, EvalResult]:
    try:
        return read_evaluation(run)
    except KdedgeError as error:
        log.warning("%s", error)
        return {}


def _subject(
    source: str, model: TorchModel, accuracy: Accuracy | None, device: torch.device
) -> Subject:
    n_parameters = sum(tensor.numel() for tensor in model.holds)

    @contextlib.contextmanager
    def load() -> Iterator[LoadedTorch]:
        yield LoadedTorch(model.logits, model.backbone.preprocess.size_px, device, n_parameters)

    return Subject(
        source=source,
        model=model.name,
        protocol=model.protocol,
        precision="fp32",
        n_parameters=n_parameters,
        n_bytes=None,
        gmacs_image=model.gmacs_image,
        gmacs_call=model.gmacs_call,
        accuracy=accuracy,
        gate=None,
        load=load,
    )
