"""Which run a job goes on with, which teacher a recipe names, and how a run's end is recorded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from kdedge.config.load import load_recipe
from kdedge.data.images import Images
from kdedge.data.sources import Item
from kdedge.errors import Interrupted, RecipeError, Terminated
from kdedge.loading.batch import Batch
from kdedge.methods import promptsrc
from kdedge.methods.base import StepOutput
from kdedge.runs.find import newest_run
from kdedge.runs.folder import RunFolder
from kdedge.setup.workspace import Workspace
from kdedge.training.run_job import run_job
from kdedge.training.student import find_named_teacher
from kdedge.training.teacher import baseline_job, teacher_job


def create(root: Path, name: str) -> RunFolder:
    return RunFolder.create(
        root, name, role="teacher", recipe_text="name: x\n", provenance={"key": "k"}
    )


def test_of_several_interrupted_runs_the_one_that_began_last_goes_on(tmp_path: Path) -> None:
    create(tmp_path, "b")
    last = create(tmp_path, "a")
    assert newest_run(tmp_path, key="k", is_finished=False) == last


@pytest.mark.parametrize(("ended_by", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_signal_outside_of_training_ends_with_its_own_exit_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ended_by: type[BaseException], code: int
) -> None:
    caplog.set_level("INFO")

    class Ending:
        items = (Item("a.png", 0),)

        def read(self, i: int) -> bytes:
            raise ended_by

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: x\nclasses: [cat, dog]\ndata: {}\nbaseline: {method: zeroshot}\n"
        "student: {backbone: kdedge-demo-student, weights: builtin}\n"
    )
    workspace = Workspace(tmp_path / "runs", torch.device("cpu"))
    test = Images(Ending(), (0,), (), {0: "0" * 64})
    job = replace(baseline_job(load_recipe(recipe), workspace), test=test)
    with pytest.raises(Interrupted) as caught:
        run_job(job, resume=False)
    assert caught.value.exit_code == code
    assert "Make the same call with resume=True to go on" in str(caught.value)
    assert RunFolder(tmp_path / "runs/x/01", "baseline").read_provenance().status == "interrupted"
    with pytest.raises(Interrupted):
        run_job(job, resume=False)
    assert "was interrupted; add resume=True to continue it." in caplog.text


def test_the_error_of_a_step_is_told_where_the_run_cannot_note_it(
    tmp_path: Path, tiny_weights: Path
) -> None:
    for label in ("dark", "bright"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / label / "a.png")
    (tmp_path / "r.yaml").write_text(
        f"name: x\nclasses: [dark, bright]\ndata: {{labeled: {{folder: {tmp_path}}}}}\n"
        f"teacher: {{weights: {tiny_weights}, method: promptsrc,"
        " settings: {prompt_depth_text: 1, prompt_depth_vision: 1}}\n"
        "optim: {epochs: 1, batch_size: 2, warmup_epochs: 0, n_workers: 0}\n"
    )
    workspace = Workspace(tmp_path / "runs", torch.device("cpu"))
    job = teacher_job(load_recipe(tmp_path / "r.yaml"), workspace)

    class LosesTheDisk(promptsrc.Method):
        def training_step(self, batch: Batch) -> StepOutput:
            shutil.rmtree(tmp_path / "runs")
            raise KeyError("of the step")

    module = ModuleType("own")
    vars(module).update(METHOD=promptsrc.METHOD, Settings=promptsrc.Settings, Method=LosesTheDisk)
    job = replace(job, setup=replace(job.setup, module=module))
    with pytest.raises(KeyError, match="of the step"):
        run_job(job, resume=False)


def test_a_teacher_that_is_not_finished_teaches_nobody(tmp_path: Path) -> None:
    run = create(tmp_path, "a")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: x\nclasses: [cat, dog]\ndata: {{}}\nteacher: {{run: {run.path}}}\n"
        "student: {backbone: kdedge-demo-student, weights: builtin}\n"
    )
    with pytest.raises(RecipeError, match="is not a finished run"):
        find_named_teacher(load_recipe(recipe), Workspace(tmp_path, torch.device("cpu")))
