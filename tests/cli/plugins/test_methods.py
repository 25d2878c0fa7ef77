"""A method from an installed package that learns from labeled and unlabeled images at once."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

TOY = '''
"""Toy FixMatch: CoOp that also learns its own confident predictions on unlabeled images."""

import torch
from torch.nn import functional as F
from kdedge.config.optim_spec import OptimSettings
from kdedge.paper.methods import coop
from kdedge.methods.base import StepOutput
from kdedge.methods.registry import Declaration, DataNeeds

METHOD = Declaration(
    label="Toy FixMatch",
    paper="arXiv:2001.07685",
    data_needs=DataNeeds(labels=True, unlabeled_images=True, novel_class_names=True),
    optim=OptimSettings(lr=0.01),
)
Settings = coop.Settings


class Method(coop.Method):
    def training_step(self, batch):
        assert batch.labels is None
        assert batch.labeled.labels is not None
        labeled = super().training_step(batch.labeled)
        logits = self.class_logits(self.training_features(batch.images))
        own, target = logits.softmax(dim=-1).max(dim=-1)
        loss = (F.cross_entropy(logits, target, reduction="none") * (own > 0.3)).mean()
        counts = {
            "n_labeled": torch.tensor(float(batch.labeled.n_images)),
            "n_unlabeled": torch.tensor(float(batch.n_images)),
        }
        return StepOutput(labeled.loss + loss, {**labeled.scalars, **counts})
'''
RECIPE = """\
name: toy
classes: [a, b, c]
data: {unlabeled: {folder: images}, labeled: {folder: images, shots: 3}}
student: {backbone: kdedge-demo-student, weights: builtin}
optim: {epochs: 3, batch_size: 8, labeled_batch_size: 5, warmup_epochs: 0, n_workers: 0}
"""
TRAIN = "train r.yaml --method toy"


@pytest.fixture
def outside(install: Callable[..., Any]) -> Any:
    package = install({"outside_method": TOY}, {"kdedge.methods": {"toy": "outside_method"}})
    (package.cwd / "r.yaml").write_text(RECIPE)
    return package


def test_it_trains_on_both_and_goes_on_bit_for_bit_after_an_interruption(outside: Any) -> None:
    code, _, err = outside.run(TRAIN)[0]
    assert code == 0, err
    full = outside.cwd / "runs/toy/01"
    lines = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("kind") != "epoch"]
    assert {(line["n_labeled"], line["n_unlabeled"]) for line in steps} == {(5, 8)}
    record = json.loads((full / "provenance.json").read_text())
    assert {"labeled_list", "unlabeled_list"} <= record["hashes"].keys()

    # Killed as soon as there is a checkpoint, which is written after almost every step
    often = f"{TRAIN} --set optim.checkpoint_every_s=0.001 --runs others"
    process = outside.start(*often.split())
    checkpoints = outside.cwd / "others/toy/01/checkpoints"
    while not (checkpoints.is_dir() and any(checkpoints.glob("*.safetensors"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    code, _, err = outside.run(f"{often} --resume")[0]
    assert code == 0, err
    assert "resuming where it stopped" in err
    weights = full / "baseline.safetensors"
    assert (outside.cwd / "others/toy/01" / weights.name).read_bytes() == weights.read_bytes()


def test_check_schema_and_methods_know_it(outside: Any) -> None:
    recipe = RECIPE.replace("student: {", "teacher: {method: toy, ")
    (outside.cwd / "r.yaml").write_text(recipe)
    methods, schema, check = outside.run("methods --json", "schema", "check r.yaml")
    assert (methods.code, methods.err) == (0, "")
    assert json.loads(methods.out)["toy"] == {
        "label": "Toy FixMatch",
        "paper": "arXiv:2001.07685",
        "about": "Toy FixMatch: CoOp that also learns its own confident predictions on unlabeled"
        " images.",
        "labels": True,
        "unlabeled_images": True,
        "novel_class_names": True,
    }
    assert (schema.code, schema.err) == (0, "")
    assert "settings of the method toy" in schema.out
    assert check.code == 0, check.err


def test_one_that_extends_ridge_is_solved(install: Callable[..., Any]) -> None:
    source = "from kdedge.methods.registry import *\nfrom kdedge.methods.ridge import *\n"
    source += "METHOD = Declaration('own', 'arXiv:0', data_needs=DataNeeds(labels=True))\n"
    package = install({"outside_method": source}, {"kdedge.methods": {"toy": "outside_method"}})
    (package.cwd / "r.yaml").write_text(RECIPE)
    ((code, _, err),) = package.run(TRAIN)
    assert (code, err[:13]) == (0, "toy: right on"), err


IN_TWO_ROUNDS = '''
"""Toy rounds: CoOp, trained twice, with half of the labels in the first round."""

from dataclasses import replace

from kdedge.methods.base import OwnTraining
from kdedge.paper.methods.coop import METHOD, Method
from kdedge.paper.methods.coop import Settings as CoOpSettings
from kdedge.training.loop.train import train


class TwoRounds(OwnTraining):
    n_rounds = 2

    def train(self, job, run, *, validate):
        for number, round_job in enumerate([self.trial(job), job], start=1):
            result = train(
                job.method,
                round_job.batches,
                round_job.n_steps,
                settings=job.setup.optim,
                run=run.round_folder(number),
                validate=validate,
                device=job.setup.device,
            )
        return {"training": result.model_dump()}

    def trial(self, job):
        labeled = job.labeled
        half = labeled.only(labeled.indices[::2])
        return replace(job, labeled=half)


class Settings(CoOpSettings):
    @property
    def own_training(self):
        return TwoRounds()
'''


def test_one_with_its_own_training_has_a_folder_and_an_estimate_of_each_round(
    install: Callable[..., Any],
) -> None:
    package = install(
        {"outside_method": IN_TWO_ROUNDS}, {"kdedge.methods": {"toy": "outside_method"}}
    )
    recipe = RECIPE.replace("student: {", "teacher: {method: toy, ")
    (package.cwd / "r.yaml").write_text(recipe.replace("batch_size: 8", "batch_size: 4"))
    check, teach = package.run("check r.yaml", "teach r.yaml")
    assert check.code == 0, check.err
    assert "2 rounds of about 3 epochs" in check.out
    assert teach.code == 0, teach.err
    rounds = package.cwd / "runs/toy/01/rounds"
    metrics = [(rounds / name / "metrics.jsonl").read_text() for name in ("01", "02")]
    n_steps = [json.loads(text.splitlines()[-1])["step"] for text in metrics]
    assert n_steps == [3 * 1, 3 * 2]  # of three epochs with five and nine images


def test_one_that_declares_nothing_says_what_to_declare(install: Callable[..., Any]) -> None:
    source = "class Settings: pass\nclass Method: pass\n"
    package = install({"outside_method": source}, {"kdedge.methods": {"toy": "outside_method"}})
    (package.cwd / "r.yaml").write_text(RECIPE)
    train, methods = package.run(TRAIN, "methods")
    assert train.code == 4
    assert 'The method "toy" from outside_method lacks METHOD.' in train.err
    declaration = (
        'METHOD = Declaration(label="...", paper="arXiv:...", data_needs=DataNeeds(labels=True))'
    )
    assert declaration in train.err
    assert methods.code == 0
    assert re.search(r"^toy +\?", methods.out, re.MULTILINE)
    assert "toy cannot be loaded; only the names are listed.\n" in methods.err
    assert declaration in methods.err


STUDENT = '''
"""Toy student: PromptKD, and cross-entropy on labeled images beside the teacher."""

import torch
from torch.nn import functional as F
from kdedge.methods import promptkd
from kdedge.methods.base import StepOutput
from kdedge.methods.registry import Declaration, DataNeeds

METHOD = Declaration(
    label="Toy student",
    paper="arXiv:2403.02781",
    student_data_needs=DataNeeds(labels=True, unlabeled_images=True, novel_class_names=True),
)
Settings = promptkd.Settings


class Method(promptkd.Method):
    def training_step(self, batch):
        stored = batch.teacher_features  # None in the trial step before the store is filled
        assert stored is None or len(stored) == batch.n_images
        step = super().training_step(batch)
        features = self.image_features(batch.labeled.images)
        logits = self.scale * features @ self.student_vectors().T
        loss = F.cross_entropy(logits, batch.labeled.labels)
        return StepOutput(step.loss + loss, {
            **step.scalars,
            "labeled_loss": loss.detach(),
            "n_stored": torch.tensor(0.0 if stored is None else len(stored)),
        })
'''


def test_a_student_learns_from_labels_beside_its_teachers_stored_features(
    install: Callable[..., Any],
) -> None:
    package = install({"outside_student": STUDENT}, {"kdedge.methods": {"toy": "outside_student"}})
    recipe = RECIPE.replace("student: {", "student: {method: toy, views: 1, ")
    recipe = recipe.replace("builtin}", "builtin, settings: {prompt_depth: 1}}")
    recipe += "teacher: {method: zeroshot, backbone: kdedge-demo-student, weights: builtin}\n"
    (package.cwd / "r.yaml").write_text(recipe)
    (done,) = package.run("distill r.yaml")
    assert done.code == 0, done.err
    run = package.cwd / "runs/toy/02"
    step = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert "labeled_loss" in step
    assert step["n_stored"] == 8
    hashes = json.loads((run / "provenance.json").read_text())["hashes"]
    assert {"labeled_list", "unlabeled_list", "teacher_store"} <= hashes.keys()
