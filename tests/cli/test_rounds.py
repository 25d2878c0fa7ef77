"""Rounds of FPL, IFPL and GRIP: what each is trained on, and from where it starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdedge.config.load import load_recipe, parse_overrides
from kdedge.data.pseudo_labels import most_probable
from kdedge.paper.rounds import Rounds, pool_probabilities
from kdedge.runs.folder import RunFolder
from kdedge.setup.workspace import Workspace
from kdedge.training.job import Job, zero_shot_model
from kdedge.training.teacher import baseline_job, with_baseline

pytestmark = pytest.mark.usefixtures("project")

Run = Callable[..., Any]
NOVEL = (2, 3)
NAMES = ("cat", "dog", "red fox", "school bus")
OPTIM = "baseline.optim={epochs: 2, batch_size: 4, warmup_epochs: 0}"
PER_CLASS = 4


def settings_of(variant: str) -> str:
    """Of two rounds, with CoOp as the learner: nothing but its context differs between rounds."""
    of_rounds = f"variant: {variant}, rounds: 2, per_class: {PER_CLASS}"
    return f"baseline.settings={{{of_rounds}, coop: {{n_ctx: 3}}}}"


def job_of(variant: str) -> Job:
    loaded = load_recipe("r.yaml", parse_overrides([settings_of(variant), OPTIM]))
    workspace = Workspace(Path("runs"), torch.device("cpu"))
    return baseline_job(with_baseline(loaded, "pseudo_label"), workspace)


def rounds_of(job: Job) -> Rounds:
    own_training = job.setup.settings.own_training
    assert isinstance(own_training, Rounds)
    return own_training


def chosen_by(model: Any, job: Job) -> list[tuple[str, str]]:
    """Image and class of the novel classes' most probable images."""
    pool = job.unlabeled
    probabilities = pool_probabilities(model, pool)
    chosen = most_probable(probabilities, PER_CLASS, classes=NOVEL)
    items = [pool.source.items[pool.indices[one.row]] for one in chosen]
    return [(item.key, NAMES[one.label]) for item, one in zip(items, chosen, strict=True)]


def written(file: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return [(line["image"], line["class"]) for line in lines]


@pytest.fixture
def ifpl(kdedge: Run, project: Path) -> Path:
    """A finished run of two rounds."""
    options = ("--set", settings_of("ifpl"), "--set", OPTIM)
    kdedge("train", "r.yaml", "--method", "pseudo_label", *options).succeeds()
    return project / "runs/tiny/01"


def test_zero_shot_clip_labels_the_first_round_and_that_rounds_model_the_second(
    ifpl: Path, project: Path
) -> None:
    job = job_of("fpl")
    assert written(ifpl / "rounds/01/pseudo_labels.jsonl") == chosen_by(zero_shot_model(job), job)
    run = RunFolder.create(project / "again", "x", role="baseline", recipe_text="", provenance={})
    rounds_of(job).train(job, run, validate=None)
    second = written(ifpl / "rounds/02/pseudo_labels.jsonl")
    assert second == chosen_by(job.model(), job)
    assert second != chosen_by(zero_shot_model(job), job)


def test_a_round_starts_from_the_first_values_and_depends_on_its_pseudo_labels_alone(
    ifpl: Path, project: Path
) -> None:
    run = RunFolder.create(project / "again", "x", role="baseline", recipe_text="", provenance={})
    shutil.copy(ifpl / "rounds/02/pseudo_labels.jsonl", run.round_folder(1).path)
    job = job_of("fpl")
    rounds_of(job).train(job, run, validate=None)
    trained = load_file(ifpl / "baseline.safetensors")
    assert trained.keys() == job.method.module.state_dict().keys()
    for name, value in job.method.module.state_dict().items():
        assert torch.equal(value, trained[name])


def test_pseudo_labeled_images_weigh_together_as_much_as_the_labeled_ones() -> None:
    job = job_of("fpl")
    given = {0: 2, 5: 3, 7: 3}
    both = rounds_of(job).job_of_round(job, given)
    assert both.weights is not None
    assert (len(job.labels), len(both.labels)) == (8, 11)
    first = len(job.labeled.source.items)
    assert {i - first: label for i, label in both.labels.items() if i >= first} == given
    batch = [*list(job.labels)[:2], first, first + 5, first + 7]
    # CE(labeled) + 8 / 3 CE(pseudo-labeled), each the mean over its part of the batch
    expected = torch.tensor([1 / 2] * 2 + [8 / 3 / 3] * 3)
    torch.testing.assert_close(both.weights(batch), expected)
