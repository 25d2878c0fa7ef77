"""The moving average of what is trained, and learning rates that fall from layer to layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run as toy
from pydantic import ValidationError
from torch import Tensor

from kdedge.config.optim_spec import OptimSettings
from kdedge.distributed import SINGLE_PROCESS
from kdedge.errors import RecipeError
from kdedge.training.loop.step import Stepper


def slow_averages(settings: OptimSettings) -> list[dict[str, Tensor]]:
    """The average after each epoch of a plain loop, in float64."""
    toy.seed_everything(1)
    averages = [{name: x.double() for name, x in toy.weights_of(toy.ToyMethod()).items()}]

    def average(method: Any, epoch: int, loss: float) -> None:
        n_done = len(averages)
        decay = min(0.8, (1 + n_done) / (10 + n_done))
        own = toy.weights_of(method)
        averages.append(
            {name: decay * x + (1 - decay) * own[name].double() for name, x in averages[-1].items()}
        )

    toy.train_plainly(settings, average)
    return averages[toy.N_STEPS :: toy.N_STEPS]


def assert_is(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        if "num_batches" not in name:
            torch.testing.assert_close(actual[name].double(), value, atol=1e-6, rtol=1e-5)


def test_the_moving_average_of_parameters_and_statistics_is_kept(tmp_path: Path) -> None:
    settings = toy.make_settings(ema_decay=0.8)
    toy.seed_everything(1)
    method = toy.ToyMethod()
    result = toy.train_toy(toy.make_run(tmp_path), method, settings=settings)
    assert result.kept == "moving average"
    assert_is(toy.weights_of(method), slow_averages(settings)[-1])


def test_the_moving_average_is_validated_and_training_goes_on_with_its_own(tmp_path: Path) -> None:
    settings = toy.make_settings(ema_decay=0.8, selection="validation")
    toy.seed_everything(1)
    method, seen, scores = toy.ToyMethod(), [], iter([40.0, 60.0, 50.0])

    def validate() -> float:
        seen.append(toy.weights_of(method))
        return next(scores)

    result = toy.train_toy(toy.make_run(tmp_path), method, settings=settings, validate=validate)
    assert (result.kept, result.best_epoch) == ("epoch", 2)
    for validated, expected in zip(seen, slow_averages(settings), strict=True):
        assert_is(validated, expected)
    toy.assert_same(toy.weights_of(method), seen[1])


def test_a_method_that_averages_itself_refuses_a_moving_average(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"itself averages its trained"):
        toy.train_toy(
            toy.make_run(tmp_path),
            toy.ToyMethod(average=True),
            settings=toy.make_settings(ema_decay=0.9),
        )


@pytest.mark.parametrize("key", ["ema_decay", "layer_decay"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5])
def test_decays_lie_between_0_and_1(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        OptimSettings(**{key: value})


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_each_layer_has_the_next_ones_learning_rate_times_the_decay(algorithm: Any) -> None:
    method = toy.ToyMethod(layers={"1.weight": 2, "1.bias": 2, "4.weight": 1})
    settings = toy.make_settings(layer_decay=0.5, algorithm=algorithm)
    stepper = Stepper(method, settings, torch.device("cpu"), SINGLE_PROCESS)
    toy.seed_everything(1)
    method.module.train()
    stepper.take(toy.draw_batch(1, 0), lr=0.25, place="a step")
    names = {id(p): name for name, p in method.module.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in stepper.optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates == {
        **dict.fromkeys(names.values(), 0.25),
        "1.weight": 0.0625,
        "1.bias": 0.0625,
        "4.weight": 0.125,
    }


def test_layer_decay_without_layers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"optim\.layer_decay is 0\.75, but no layer"):
        toy.train_toy(
            toy.make_run(tmp_path), toy.ToyMethod(), settings=toy.make_settings(layer_decay=0.75)
        )
