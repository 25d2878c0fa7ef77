"""The training loop: what it computes, what it keeps, how it fails."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run as toy

from kdedge.errors import DataError, DivergedError, ResourceError
from kdedge.methods.base import StepOutput
from kdedge.training.loop.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    settings = toy.make_settings(clip_grad_norm=0.5)
    toy.seed_everything(1)
    method = toy.ToyMethod()
    result = toy.train_toy(toy.make_run(tmp_path), method, settings=settings)
    losses: list[float] = []
    plain = toy.train_plainly(settings, lambda method, epoch, loss: losses.append(loss))
    toy.assert_same(toy.weights_of(plain), toy.weights_of(method))
    assert result.final_loss == sum(losses[-toy.N_STEPS :]) / toy.N_STEPS
    assert (result.epochs, result.steps, result.kept) == (3, 21, "last")
    assert not method.module.training


def test_averaging_gives_the_weighted_sum_of_the_epochs_parameters(tmp_path: Path) -> None:
    toy.seed_everything(1)
    averaged = toy.ToyMethod(average=True)
    result = toy.train_toy(toy.make_run(tmp_path), averaged)
    ends: dict[int, Any] = {}
    toy.train_plainly(
        toy.make_settings(), lambda method, epoch, _: ends.update({epoch: toy.weights_of(method)})
    )
    for name, parameter in averaged.module.named_parameters():
        expected = sum(epoch / 6 * end[name].double() for epoch, end in ends.items())
        assert torch.equal(expected.float(), parameter.detach())
    assert result.kept == "averaged"


def _scores(values: list[float], seen: list[dict[str, Any]], method: Any) -> Any:
    remaining = iter(values)

    def validate() -> float:
        assert not torch.is_grad_enabled()
        assert not method.module.training
        torch.rand(3)
        seen.append(toy.weights_of(method))
        return next(remaining)

    return validate


@pytest.mark.parametrize("selection", ["validation", "test"])
def test_validation_keeps_the_first_of_two_equal_best_epochs(
    tmp_path: Path, selection: str
) -> None:
    method, seen = toy.ToyMethod(), []
    result = toy.train_toy(
        toy.make_run(tmp_path),
        method,
        settings=toy.make_settings(selection=selection),
        validate=_scores([40.0, 60.0, 60.0], seen, method),
    )
    kept = toy.weights_of(method)
    assert (result.kept, result.best_epoch, result.validation_percent) == ("epoch", 2, 60.0)
    toy.assert_same(seen[1], kept)
    assert not torch.equal(seen[2]["1.weight"], kept["1.weight"])


@pytest.mark.parametrize(("last_score", "kept"), [(61.0, "averaged"), (60.0, "epoch")])
def test_the_average_is_one_more_candidate_of_validation(
    tmp_path: Path, last_score: float, kept: str
) -> None:
    method, seen = toy.ToyMethod(average=True), []
    result = toy.train_toy(
        toy.make_run(tmp_path),
        method,
        settings=toy.make_settings(selection="validation"),
        validate=_scores([40.0, 60.0, 50.0, last_score], seen, method),
    )
    assert result.kept == kept
    toy.assert_same(seen[3 if kept == "averaged" else 1], toy.weights_of(method))


def test_validating_does_not_change_what_is_learned(tmp_path: Path) -> None:
    toy.seed_everything(1)
    plain = toy.ToyMethod()
    toy.train_toy(toy.make_run(tmp_path), plain)
    toy.seed_everything(1)
    method, seen = toy.ToyMethod(), []
    toy.train_toy(
        toy.make_run(tmp_path),
        method,
        settings=toy.make_settings(selection="validation"),
        validate=_scores([1.0, 2.0, 3.0], seen, method),
    )
    toy.assert_same(toy.weights_of(plain), toy.weights_of(method))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_place_images_and_remedies(
    tmp_path: Path, value: float
) -> None:
    def batches(epoch: int, first: int) -> Any:
        for step, batch in enumerate(toy.batches(epoch, first), first):
            if (epoch, step) == (2, 3):
                batch.images[0] = value
            yield batch

    run = toy.make_run(tmp_path)
    with pytest.raises(DivergedError) as caught:
        toy.train_toy(run, toy.ToyMethod(), batches=batches)
    text = str(caught.value)
    assert "epoch 2, step 4 of 7" in text
    assert "e2s3i0.jpg, e2s3i1.jpg" in text
    for remedy in ("lower optim.lr", "set optim.clip_grad_norm"):
        assert remedy in text
    state = load_checkpoint(list_checkpoints(run.checkpoints)[0])
    assert (state.epoch, state.step) == (2, 0)
    assert all(bool(tensor.isfinite().all()) for tensor in state.module.values())


def test_a_step_may_have_no_figures_but_its_loss(tmp_path: Path) -> None:
    class Bare(toy.ToyMethod):
        def training_step(self, batch: Any) -> StepOutput:
            return StepOutput(super().training_step(batch).loss)

    run = toy.make_run(tmp_path)
    toy.train_toy(run, Bare())
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {*lines[0]} == {"epoch", "step", "lr", "loss", "grad_norm", "images_per_second"}


def test_a_start_that_is_not_finite_is_said_before_any_step(tmp_path: Path) -> None:
    run, method = toy.make_run(tmp_path), toy.ToyMethod()
    next(method.module.parameters()).data.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"epoch 1, step 0 of 7\. Images: not named\."):
        toy.train_toy(run, method)
    assert list_checkpoints(run.checkpoints) == []


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path: Path) -> None:
    class Exploding(toy.ToyMethod):
        def training_step(self, batch: Any) -> Any:
            weight = self.module[1].weight
            # The square root's slope at zero is infinite, its value is not
            return toy.StepOutput((weight - weight.detach()).abs().sum().sqrt())

    run = toy.make_run(tmp_path)
    with pytest.raises(DivergedError, match="gradient"):
        toy.train_toy(run, Exploding())


def test_weights_that_overflow_are_never_saved(tmp_path: Path) -> None:
    class Growing(toy.ToyMethod):
        def training_step(self, batch: Any) -> Any:
            # Loss and gradient are zero; the weight decay below alone multiplies weights by -99
            return toy.StepOutput(self.module[1].weight[0, 0] * 0)

    run = toy.make_run(tmp_path)
    settings = toy.make_settings(
        checkpoint_every_s=1e-9, schedule="constant", lr=10.0, warmup_lr=10.0, weight_decay=10.0
    )
    with pytest.raises(DivergedError, match=r"weight|bias"):
        toy.train_toy(run, Growing(), settings=settings)
    found = list_checkpoints(run.checkpoints)
    assert len(found) == 2
    for path in found:
        state = load_checkpoint(path)
        assert all(bool(tensor.isfinite().all()) for tensor in state.module.values())


def test_weights_that_overflow_in_an_epochs_last_step_are_not_validated(tmp_path: Path) -> None:
    class Growing(toy.ToyMethod):
        def training_step(self, batch: Any) -> Any:
            self.seen.append(batch.keys)
            weight = self.module[1].weight
            if len(self.seen) == toy.N_STEPS:
                weight.data.fill_(3e38)  # ten times that, the decay, is more than float32 holds
            return toy.StepOutput(weight[0, 0] * 0)

    def validate() -> float:
        raise AssertionError("validated")

    settings = toy.make_settings(selection="validation", weight_decay=10.0)
    with pytest.raises(DivergedError, match=r"no longer finite: .* at epoch 1, step 7 of 7"):
        toy.train_toy(toy.make_run(tmp_path), Growing(), settings=settings, validate=validate)


def test_fp16_skips_a_step_whose_gradient_overflows_and_goes_on(tmp_path: Path) -> None:
    method = toy.ToyMethod()
    run = toy.make_run(tmp_path)
    settings = toy.make_settings(precision="fp16", epochs=1, warmup_epochs=0)
    before = toy.weights_of(method)

    plain_step = method.training_step

    def step(batch: Any) -> Any:
        output = plain_step(batch)
        if len(method.seen) == 2:
            assert torch.equal(before["1.weight"], method.module[1].weight)
        # 65536 times 1e35 is more than float32 holds
        return toy.StepOutput(output.loss * (1e35 if len(method.seen) == 1 else 1.0))

    method.training_step = step
    toy.train_toy(run, method, settings=settings)
    state = load_checkpoint(list_checkpoints(run.checkpoints)[0])
    assert state.scaler["scale"] == 32768.0
    assert not torch.equal(before["1.weight"], method.module[1].weight)


def test_fp16_whose_gradients_always_overflow_is_an_error(tmp_path: Path) -> None:
    method = toy.ToyMethod()
    plain_step = method.training_step
    method.training_step = lambda batch: toy.StepOutput(plain_step(batch).loss * 1e38)
    settings = toy.make_settings(precision="fp16")
    with pytest.raises(DivergedError, match=r"gradient's norm is (inf|nan): .* epoch 3, step 3"):
        toy.train_toy(toy.make_run(tmp_path), method, settings=settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_trained_weights_stay_float32_in_every_precision(tmp_path: Path, precision: str) -> None:
    method = toy.ToyMethod()
    settings = toy.make_settings(precision=precision, epochs=1)
    result = toy.train_toy(toy.make_run(tmp_path), method, settings=settings)
    assert {p.dtype for p in method.module.parameters()} == {torch.float32}
    assert math.isfinite(result.final_loss)


def test_a_trained_run_is_not_trained_again_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = toy.make_run(tmp_path)
    method = toy.ToyMethod(average=True)
    first = toy.train_toy(run, method)
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    again = toy.ToyMethod(average=True)
    with caplog.at_level(logging.INFO, "kdedge"):
        second = toy.train_toy(run, again)
    assert again.seen == []
    assert "nothing to do" in caplog.text
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == files
    assert (second.final_loss, second.kept) == (first.final_loss, first.kept)
    toy.assert_same(toy.weights_of(method), toy.weights_of(again))


def _stop_in_epoch_two(run: Any) -> None:
    with pytest.raises(InterruptedError):
        toy.train_toy(run, toy.ToyMethod(), batches=toy.interrupted_at((2, 0)))


def test_what_cannot_be_saved_is_known_before_the_first_step(tmp_path: Path) -> None:
    run = toy.make_run(tmp_path)
    with pytest.raises(InterruptedError):
        toy.train_toy(run, toy.ToyMethod(), batches=toy.interrupted_at((1, 0)))
    assert [path.stem for path in list_checkpoints(run.checkpoints)] == ["e01-s00000"]


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_resuming_accepts_settings_that_only_change_speed(
    tmp_path: Path, micro_batch: int | None
) -> None:
    run = toy.make_run(tmp_path)
    _stop_in_epoch_two(run)
    method = toy.ToyMethod()
    given = {} if micro_batch is None else {"micro_batch": micro_batch}
    settings = toy.make_settings(n_workers=2, checkpoint_every_s=5.0, **given)
    toy.train_toy(run, method, settings=settings)
    assert len(method.seen) == 2 * toy.N_STEPS


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"selection": "validation", "algorithm": "adamw"},
        {"precision": "fp16"},
        {"ema_decay": 0.8},
        {"ema_decay": 0.8, "selection": "validation"},
        {"layer_decay": 0.5},
    ],
)
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """In one process; `test_interruption.py` ends real ones."""
    settings = toy.make_settings(checkpoint_every_s=1e-9, **options)

    def go(run: Any, *, seed: int, stop_at: tuple[int, int] = (0, 0)) -> Any:
        batches = toy.interrupted_at(stop_at)
        toy.seed_everything(seed)
        is_averaged, layers = "ema_decay" not in options, {"1.weight": 2, "4.weight": 1}
        method = toy.ToyMethod(average=is_averaged, step_s=0.002, layers=layers)

        def validate() -> float:
            return float(toy.accuracy_of(method))

        result = toy.train_toy(run, method, settings=settings, batches=batches, validate=validate)
        return result, newest(run).scaler, toy.weights_of(method)

    def newest(run: Any) -> Any:
        return load_checkpoint(list_checkpoints(run.checkpoints)[0])

    whole, stopped = toy.make_run(tmp_path), toy.make_run(tmp_path)
    expected, scaler, weights = go(whole, seed=1)
    for seed, place in enumerate([(2, 3), (3, 4)], 1):
        with pytest.raises(InterruptedError):
            go(stopped, seed=seed, stop_at=place)
    seconds_before = newest(stopped).record["seconds"]
    actual, own_scaler, own_weights = go(stopped, seed=3)
    assert actual.seconds > seconds_before
    assert actual.model_copy(update={"seconds": expected.seconds}) == expected
    assert own_scaler == scaler
    toy.assert_same(weights, own_weights)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 1024)


def test_a_full_disk_ends_the_run_and_leaves_a_whole_checkpoint(
    tmp_path: Path, small_disk: Any
) -> None:
    disk = small_disk(256)
    run = toy.make_run(disk)
    method = toy.ToyMethod()

    def batches(epoch: int, first: int) -> Any:
        if epoch == 2:
            _fill(disk)
        return toy.batches(epoch, first)

    settings = toy.make_settings(checkpoint_every_s=1e-9)
    with pytest.raises(ResourceError, match="disk is full") as caught:
        toy.train_toy(run, method, settings=settings, batches=batches)
    assert caught.value.exit_code == 7
    state = load_checkpoint(list_checkpoints(run.checkpoints)[0])
    assert state.epoch == 2
    assert not list(run.checkpoints.glob(".*"))

    (disk / "filler").unlink()
    again = toy.ToyMethod()
    toy.train_toy(run, again, settings=settings)
    assert len(again.seen) >= toy.N_STEPS
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines if line.get("kind") == "epoch"] == [1, 2, 3]


@pytest.mark.parametrize("changes", [{name: {}} for name in ("module", "optimizer", "rng")])
def test_a_checkpoint_whose_content_does_not_fit_is_told(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = toy.make_run(tmp_path)
    toy.train_toy(run, toy.ToyMethod())
    newest = list_checkpoints(run.checkpoints)[0]
    state = replace(load_checkpoint(newest), **changes)
    newest.unlink()
    save_checkpoint(run.checkpoints, state)
    with pytest.raises(DataError, match="does not fit this run"):
        toy.train_toy(run, toy.ToyMethod())
