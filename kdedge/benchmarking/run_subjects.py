"""The rows of a run: its model, its teacher, plain CLIP and the methods it is compared with.

Speed and work depend on the architecture and the protocol alone, so a method that was never trained
here has them too; an accuracy is there only where a run measured it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdedge.benchmarking.subject import Subject
from kdedge.benchmarking.torch_models import (
    LoadedTorch,
    TorchModel,
    baseline_models,
    own_model,
    teacher_model,
    title,
    zero_shot,
)
from kdedge.clip.architecture import why_no_prompts
from kdedge.clip.backbone import Backbone
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.data.images import spread
from kdedge.errors import KdedgeError, RecipeError
from kdedge.methods.registry import list_methods, load_method
from kdedge.results import EvalResult, ParityResult
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.image_lists import warn_of_changes
from kdedge.runs.model import RunModel, load_run
from kdedge.runs.results import read_details, read_evaluation
from kdedge.setup.method import choose_method, has_class_vectors
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.speed_results import Accuracy
from kdedge.training.baseline import with_baseline

log = logging.getLogger(__name__)


def run_subjects(
    run: RunFolder,
    workspace: Workspace,
    *,
    against: Sequence[str],
    compared: ParityResult | None = None,
) -> tuple[list[Subject], dict[str, str]]:
    """The rows of a finished run, by PyTorch, and what is missing and why.

    Args:
        run: a student's, a teacher's or a baseline's.
        workspace: its folder of runs has the others' accuracies.
        against: methods on the student's backbone to compare with.
        compared: of a file of the run: the models' accuracies on its images stand beside it.

    Raises:
        RecipeError: the run is not finished or has no class vectors, or a method is unknown or
            learns from a teacher.
        DataError: the run's files do not belong together.
    """
    for name in against:
        _check_method(name)
    _check_has_class_vectors(run)
    trained = load_run(run, workspace)
    _compare_test_images(trained)
    recipe = trained.loaded.recipe
    rows: list[Subject] = []
    left_out: dict[str, str] = {}

    def add(model: TorchModel, known: _Known) -> None:
        rows.append(_subject(recipe.name, model, known, workspace.device))

    why = why_no_prompts(trained.backbone.visual)
    if why is not None:
        left_out[folded_name(run)] = f"its image encoder {why}, which kdedge does not export"
    if isinstance(trained.backbone, Backbone):
        plain = zero_shot(trained.backbone, len(trained.class_names))
        add(plain, _known(run, "zeroshot", compared))
    else:
        left_out[title("zeroshot")] = f"{trained.backbone.name} has no text encoder that runs here"
    baselines = {} if recipe.student is None else newest_baselines(workspace.root, recipe.name)
    for name in against if recipe.student is not None else ():
        found = baselines.get(name)
        loaded = trained.loaded if found is None else load_recipe(found.recipe)
        known = _Known() if found is None else _known(found, "baseline", compared)
        try:
            models = _baseline(name, loaded, trained)
        except KdedgeError as error:
            left_out[title(name)] = str(error).splitlines()[0]
            continue
        for model in models:
            add(model, known)
    if run.kind == "student":
        teacher = _teacher(run, trained, left_out)
        if teacher is not None:
            folder, model = teacher
            kept = _first_teacher(run)  # on the student's test images
            of, key = (folder, folder.kind) if kept is None else (run, kept)
            add(model, _known(of, key, compared))
    add(own_model(trained), _own(_known(run, run.kind, compared), compared))
    return rows, left_out


def _compare_test_images(trained: RunModel) -> None:
    """Says where the accuracies of the run are of other test images than there are now."""
    try:
        lists = {"test": trained.images("test")}
    except KdedgeError as error:
        log.warning(
            "The accuracies of %s are of test images that cannot be read now: %s",
            *(trained.run.name, str(error).partition("\n")[0]),
        )
        return
    warn_of_changes(trained.run, trained.loaded, lists, trained.setup.classes.names)


def folded_name(run: RunFolder) -> str:
    """What a run's exported files are called where they are left out together."""
    return f"{run.name} folded"


def _check_has_class_vectors(run: RunFolder) -> None:
    """Refuses a run whose model stands beside another run's and not by itself."""
    choice = choose_method(load_recipe(run.recipe), run.kind)
    if not has_class_vectors(choice):
        raise RecipeError(
            f"{run.path} is a run of {choice.name}, which"
            f" {choice.module.Method.why_no_class_vectors}: it is measured beside another run.\n"
            f"  Name that one: kdedge bench RUN --against {choice.name}"
        )


def _check_method(name: str) -> None:
    module = load_method(name)
    if module.METHOD.needs_teacher:
        able = [known for known in list_methods() if not load_method(known).METHOD.needs_teacher]
        raise RecipeError(
            f"--against {name}: it learns from a teacher, and is measured by its own run.\n"
            f"  Compare with one of: {', '.join(able)}."
        )


def _baseline(name: str, loaded: LoadedRecipe, trained: RunModel) -> list[TorchModel]:
    """A method on the student's backbone, as it starts training."""
    spec = loaded.recipe.baseline
    if spec is not None and spec.method not in (None, name):  # another method's settings
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"baseline": None}))
    loaded = with_baseline(loaded, name)
    classes = replace(trained.setup.classes, names=trained.class_names)
    # Of a student that has no texts this says so
    setup = set_up_role(loaded, "baseline", trained.setup.workspace, classes=classes)
    return baseline_models(setup, setup.build())


def _teacher(
    run: RunFolder, trained: RunModel, left_out: dict[str, str]
) -> tuple[RunFolder, TorchModel] | None:
    """The teacher that taught a student, where its run and its weights are still there."""
    name = run.read_provenance().teacher_run
    try:
        if name is None:
            raise RecipeError("the teacher is no run")
        folder = RunFolder.open(run.root / str(name))
        if folder.kind != "teacher":
            raise RecipeError(f"the teacher is a {folder.kind}; name its run beside this one")
        teacher = load_run(folder, trained.setup.workspace, names=trained.class_names)
        return folder, teacher_model(teacher)
    except KdedgeError as error:
        left_out["teacher"] = str(error).splitlines()[0]
        return None


def _first_teacher(run: RunFolder) -> str | None:
    """What a student's evaluation calls its teacher, or the first of several; None if nothing."""
    several = run.read_provenance().has_several_teachers
    names = [n for n in _evaluation(run) if n.startswith("teacher 1: " if several else "teacher")]
    return names[0] if names else None


def newest_baselines(root: Path, recipe: str) -> dict[str, RunFolder]:
    """The newest finished run of each baseline of a recipe's name."""
    found = [
        (str(record.finished_at), str(record.method), run)
        for run, record in runs_in(root)
        if run.kind == "baseline" and run.path.parent.name == recipe and record.is_finished
    ]
    return {method: run for _, method, run in sorted(found, key=lambda entry: entry[0])}


@dataclass(frozen=True)
class _Known:
    """What is known of a model's accuracy, as `ModelFacts` has it."""

    accuracy: Accuracy | None = None
    on_compared: Accuracy | None = None


def _evaluation(run: RunFolder) -> dict[str, EvalResult]:
    try:
        return read_evaluation(run)
    except KdedgeError as error:
        log.warning("%s", error)
        return {}


def _known(run: RunFolder, key: str, compared: ParityResult | None) -> _Known:
    """What a run's evaluation says of one of its models."""
    result = _evaluation(run).get(key)
    if result is None:
        return _Known()
    accuracy = Accuracy(
        base=result.base,
        novel=result.novel,
        harmonic_mean=result.harmonic_mean,
        all=result.all,
        agreement=None,
        source=run.name,
        n_images=result.n_images,
        images_hash=result.images_hash,
    )
    test = None if compared is None else compared.test_set
    if compared is None or test is None or test.images_hash != result.images_hash:
        return _Known(accuracy)
    with contextlib.suppress(KdedgeError):  # damaged: it is not needed
        details = read_details(run).get(key)
        if details is not None and details.right is not None:
            right = [details.right[i] for i in spread(test.n_images, compared.n_images)]
            return _Known(accuracy, _on(compared, 100 * right.count("1") / len(right), run.name))
    return _Known(accuracy)


def _own(known: _Known, compared: ParityResult | None) -> _Known:
    """With the run's own accuracy that its export measured."""
    if compared is None or compared.reference_accuracy_percent is None:
        return known
    percent = compared.reference_accuracy_percent
    return replace(known, on_compared=_on(compared, percent, compared.images))


def _on(compared: ParityResult, percent: float, source: str) -> Accuracy:
    """An accuracy on the images of a comparison."""
    return Accuracy(
        None, None, None, percent, None, source, compared.n_labeled, compared.images_hash
    )


def _subject(source: str, model: TorchModel, known: _Known, device: torch.device) -> Subject:
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
        accuracy=known.accuracy,
        on_compared=known.on_compared,
        gate=None,
        load=load,
    )
