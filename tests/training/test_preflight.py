"""What is known before a run: trial steps that leave no trace, time and memory."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from kdedge.config.load import load_recipe
from kdedge.data.sources import ImageSource, Item
from kdedge.errors import DivergedError
from kdedge.loading.batch import Batch
from kdedge.methods import promptsrc
from kdedge.methods.base import OwnTraining, StepOutput
from kdedge.runtime.machine import memory_bytes
from kdedge.setup.workspace import Workspace
from kdedge.training.evaluation_time import evaluation_seconds
from kdedge.training.job import Job
from kdedge.training.preflight import check, estimate_seconds, memory_finding, trial_steps
from kdedge.training.teacher import teacher_job

CPU = torch.device("cpu")
READ_S = 0.03
RECIPE = """\
name: tiny
classes: [dark, bright]
data: {labeled: {folder: images}}
teacher:
  weights: WEIGHTS
  settings: {prompt_depth_text: 2, prompt_depth_vision: 2, n_anchor_templates: 4}
optim: {epochs: 5, batch_size: 4, warmup_epochs: 0, lr: 0.5, n_workers: 0}
"""


def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "runs", CPU, is_read_only=True)


@pytest.fixture
def job(tmp_path: Path, tiny_weights: Path) -> Job:
    """A teacher that is to be trained for 5 epochs of 4 steps."""
    for number in range(16):
        file = tmp_path / "images" / ("dark", "bright")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("WEIGHTS", str(tiny_weights)))
    return teacher_job(load_recipe(tmp_path / "r.yaml"), workspace(tmp_path))


@dataclass(frozen=True)
class Slow:
    """A source on a slow disk."""

    source: ImageSource

    @property
    def items(self) -> Sequence[Item]:
        return self.source.items

    def read(self, i: int) -> bytes:
        time.sleep(READ_S)
        return self.source.read(i)


def slowed(job: Job) -> Job:
    images = dataclasses.replace(job.training_images, source=Slow(job.training_images.source))
    return dataclasses.replace(job, labeled=images, unlabeled=None)


def with_method(job: Job, method: type[promptsrc.Method]) -> Job:
    """A job of another method with the same settings."""
    module = ModuleType("own")
    vars(module).update(METHOD=promptsrc.METHOD, Settings=promptsrc.Settings, Method=method)
    return dataclasses.replace(job, setup=dataclasses.replace(job.setup, module=module))


def test_trial_steps_change_nothing_of_the_run_to_come(job: Job) -> None:
    module = job.method.module.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert len(trial_steps(job, 3)) == 3
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not module.training
    assert all(p.grad is None for p in job.method.trainable_parameters().values())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_trial_steps_move_the_weights_while_they_last(job: Job) -> None:
    losses = []
    first = next(job.batches(1, 0))

    class OfOneBatch(promptsrc.Method):
        def training_step(self, _: Batch) -> StepOutput:
            output = super().training_step(first)
            losses.append(float(output.loss.detach()))
            return output

    trial_steps(with_method(job, OfOneBatch), 2)
    assert losses[0] != losses[1]


def test_loading_the_images_is_part_of_a_trial_steps_time(job: Job) -> None:
    assert min(trial_steps(slowed(job), 3)) >= 4 * READ_S


def test_a_spent_budget_ends_the_trial_after_two_steps(job: Job) -> None:
    assert len(trial_steps(job, 4, budget_s=0.0)) == 2


def test_the_estimate_covers_the_loading_of_all_steps(job: Job) -> None:
    assert 5 * 16 * READ_S <= estimate_seconds(slowed(job)) < 5 * 16 * READ_S + 60


def test_what_the_first_steps_take_once_is_not_in_the_estimate(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, once = [0.0], [400.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class SlowAtFirst(promptsrc.Method):
        def training_step(self, batch: Batch) -> StepOutput:
            now[0] += once.pop() if once else 1.0
            return super().training_step(batch)

    assert estimate_seconds(with_method(job, SlowAtFirst)) == 5 * 4 * 1.0


def test_the_estimate_is_of_all_rounds(job: Job) -> None:
    class ThreeRounds(OwnTraining):
        n_rounds = 3

        def train(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise NotImplementedError

        def trial(self, job: Job) -> Job:
            return job

    class InRounds(promptsrc.Settings):
        own_training: ClassVar[OwnTraining] = ThreeRounds()

    setup = dataclasses.replace(job.setup, settings=InRounds(**job.setup.settings.model_dump()))
    assert estimate_seconds(dataclasses.replace(slowed(job), setup=setup)) >= 3 * 5 * 16 * READ_S


def test_the_time_of_all_is_that_of_teacher_store_and_student(
    job: Job, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = f"student: {{weights: {tiny_weights}, settings: {{prompt_depth: 2}}, views: 1}}\n"
    pool = "data: {unlabeled: {folder: images}, labeled"
    text = (tmp_path / "r.yaml").read_text().replace("data: {labeled", pool)
    (tmp_path / "r.yaml").write_text(text + student)
    long = {"teacher.optim.epochs": 100000, "teacher.optim.batch_size": 1}
    found = check(load_recipe(tmp_path / "r.yaml", long), workspace(tmp_path))
    timed = ("time", "store", "evaluation", "start")
    assert [one.what for one in found.findings if one.what.endswith(timed)] == [
        "teacher: time",
        "teacher: evaluation",
        "student: teacher store",
        "student: time",
        "student: evaluation",
        "start",
    ]
    assert found.seconds > 1000, "not the student's alone"
    first = load_recipe(tmp_path / "r.yaml", {"student.one_pass_first": True})
    whats = [one.what for one in check(first, workspace(tmp_path)).findings]
    assert (whats.count("student: time"), whats.count("student: weights")) == (2, 1)
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    once = check(load_recipe(tmp_path / "r.yaml", {"optim.epochs": 1}), workspace(tmp_path))
    parts = re.findall(r"about (\d+) s", " ".join(one.result for one in once.findings))
    assert (len(parts), sum(map(int, parts))) == (6, pytest.approx(once.seconds, abs=3))


def test_the_total_has_the_evaluation_of_every_model_on_the_test_images(job: Job) -> None:
    """The trained one and zero-shot CLIP; on labels these two and a ridge regression."""
    slow = slowed(job)
    with_test = dataclasses.replace(slow, test=slow.training_images)
    of_labels, of_all = evaluation_seconds(slow), evaluation_seconds(with_test)
    assert 3 * 16 * READ_S <= of_labels < 6 * 16 * READ_S
    assert 5 * 16 * READ_S <= of_all < 10 * 16 * READ_S


def test_an_epoch_that_validation_selects_is_evaluated_in_the_total(job: Job) -> None:
    slow = slowed(job)
    validated = dataclasses.replace(slow, validation=slow.training_images)
    more = evaluation_seconds(validated) - evaluation_seconds(slow)
    assert more >= 4 * 16 * READ_S, "one pass for each of five epochs"


def test_the_estimate_of_a_closed_form_covers_the_decoding(job: Job, tmp_path: Path) -> None:
    section = {"teacher.method": "ridge", "teacher.settings": {}}
    ridge = teacher_job(load_recipe(tmp_path / "r.yaml", section), workspace(tmp_path))
    assert estimate_seconds(slowed(ridge)) >= 16 * READ_S


def test_a_loss_that_is_not_finite_ends_the_trial_as_it_ends_a_run(job: Job) -> None:
    next(iter(job.method.trainable_parameters().values())).data.fill_(float("nan"))
    with pytest.raises(DivergedError) as caught:
        trial_steps(job, 3)
    text = str(caught.value)
    assert "The loss is nan: training diverged at trial step 1. Images: " in text
    assert ".png" in text
    assert "lower optim.lr (now 0.5)" in text


GIB = 2**30


def test_memory_on_the_cpu_is_that_of_this_process_and_this_machine() -> None:
    total = memory_bytes()
    assert total is not None
    found = memory_finding(CPU).result
    assert found.endswith(f" of {total / GIB:.1f} GiB at the peak")
    assert 0 < float(found.split()[0]) < total / GIB


@pytest.mark.parametrize(
    ("gib", "expected"),
    [(1, "1.0 GiB of 8.0 GiB at the peak on cuda"), (7.5, "on cuda, which is close to all of it")],
)
def test_memory_on_a_gpu_is_judged_by_what_this_process_can_have(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, gib: float, expected: str
) -> None:
    with gpu():
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: int(gib * GIB))
        assert expected in memory_finding(torch.device("cuda")).result
        monkeypatch.undo()
