"""A step that finds no room: taken again in smaller parts, with the same result, and remembered."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run as toy

from kdedge.distributed import SINGLE_PROCESS
from kdedge.errors import RecipeError
from kdedge.training.loop.checkpoint import list_checkpoints, load_checkpoint
from kdedge.training.loop.step import Stepper

OUT_OF_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def narrow(room: int, **options: Any) -> Any:
    """A toy method that has room for so many images at a time; notes what it was asked to take."""

    class Narrow(toy.ToyMethod):
        def training_step(self, batch: Any) -> Any:
            output = super().training_step(batch)  # memory runs out after all has been drawn
            self.asked.append(batch.micro_batch)
            if (batch.micro_batch or len(batch.images)) > room:
                raise RuntimeError(OUT_OF_MEMORY)
            return output

    method = Narrow(**options)
    method.asked = []
    return method


def trained(folder: Path, method: Any, **settings: Any) -> dict[str, Any]:
    toy.seed_everything(1)
    toy.train_toy(toy.make_run(folder), method, settings=toy.make_settings(**settings))
    return toy.weights_of(method)


def test_learned_scales_have_the_rate_of_the_step_too() -> None:
    method = toy.ToyMethod()
    method.module.register_parameter("log_scale", torch.nn.Parameter(torch.tensor(0.0)))
    method.module.train()
    stepper = Stepper(method, toy.make_settings(), torch.device("cpu"), SINGLE_PROCESS)
    stepper.take(toy.draw_batch(1, 0), lr=0.125, place="a step")
    assert [group["lr"] for group in stepper.optimizer.param_groups] == [0.125, 0.125]


def test_without_room_a_step_is_taken_in_halves_until_it_fits_and_so_are_all_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(tmp_path / "whole", toy.ToyMethod())
    method = narrow(1)
    with caplog.at_level(logging.WARNING, "kdedge"):
        actual = trained(tmp_path / "narrow", method)
    assert method.asked == [None, 2, 1, *[1] * (3 * toy.N_STEPS - 1)]
    toy.assert_same(expected, actual)  # what was drawn and what batch norm saw in vain is undone
    assert [record.getMessage()[:58] for record in caplog.records] == [
        "Memory ran out with 4 images at a time. Continuing with 2,",
        "Memory ran out with 2 images at a time. Continuing with 1,",
    ]


def test_memory_that_runs_out_in_the_middle_of_an_epoch_is_remembered_by_the_run(
    tmp_path: Path,
) -> None:
    run = toy.make_run(tmp_path)
    method = narrow(4)
    plain_step, seen = method.training_step, []

    def step(batch: Any) -> Any:
        seen.append(batch.micro_batch)
        if len(seen) == 10 and batch.micro_batch is None:
            raise MemoryError
        if len(seen) == 13:
            raise InterruptedError
        return plain_step(batch)

    method.training_step = step
    with pytest.raises(InterruptedError):
        toy.train_toy(run, method, settings=toy.make_settings(checkpoint_every_s=1e-9))
    assert seen == [*[None] * 10, 2, 2, 2]
    assert load_checkpoint(list_checkpoints(run.checkpoints)[0]).record["micro_batch"] == 2
    again = narrow(4)
    toy.train_toy(run, again)
    assert set(again.asked) == {2}


def test_a_number_that_was_asked_for_is_not_changed(tmp_path: Path) -> None:
    method = narrow(2)
    trained(tmp_path / "fits", method, micro_batch=2)
    assert set(method.asked) == {2}
    with pytest.raises(RuntimeError, match="can't allocate"):
        trained(tmp_path / "too large", narrow(2), micro_batch=3)


@pytest.mark.parametrize(("can_split", "asked"), [(True, [None, 2, 1]), (False, [None])])
def test_no_room_for_one_image_or_a_batch_that_cannot_be_split_is_the_end(
    tmp_path: Path, can_split: bool, asked: list[int | None]
) -> None:
    method = narrow(0)
    method.can_split_batches = can_split
    with pytest.raises(RuntimeError, match="can't allocate"):
        trained(tmp_path, method)
    assert method.asked == asked


def test_other_errors_are_not_taken_for_a_lack_of_room(tmp_path: Path) -> None:
    method = toy.ToyMethod()
    seen = []

    def step(batch: Any) -> Any:
        seen.append(batch)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    method.training_step = step
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trained(tmp_path, method)
    assert len(seen) == 1


def test_a_batch_that_cannot_be_split_is_refused_a_micro_batch(tmp_path: Path) -> None:
    method = toy.ToyMethod()
    method.can_split_batches = False
    with pytest.raises(RecipeError, match=r"neither optim\.micro_batch nor several processes"):
        trained(tmp_path, method, micro_batch=2)
