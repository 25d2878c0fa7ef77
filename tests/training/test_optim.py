"""Learning rates against the printed tables; the averaging sum against a slow one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdedge.config.optim_spec import OptimSettings
from kdedge.training.loop.optim import learning_rate, make_optimizer
from kdedge.training.loop.selection import ParameterAverage

# The reference code's rates, to the digits printed in its papers' companion notes
TABLES = {
    (20, 0.005): [1e-5, .005, .004969, .004878, .004728, .004523, .004268, .003969, .003635,
                  .003273, .002891, .0025, .002109, .001727, .001365, .001031, .000732, .000477,
                  .000272, .000122],
    (5, 0.0035): [1e-5, .0035, .003166, .002291, .001209],
    (2, 0.0026): [1e-5, .0026],
}  # fmt: skip


@pytest.mark.parametrize(("epochs", "lr"), TABLES)
def test_rates_equal_the_reference_tables(epochs: int, lr: float) -> None:
    settings = OptimSettings(epochs=epochs, lr=lr)
    rates = [round(learning_rate(settings, epoch=epoch), 6) for epoch in range(1, epochs + 1)]
    assert rates == TABLES[epochs, lr]


@pytest.mark.parametrize("n_warmup", [0, 1, 3])
def test_the_cosine_of_epochs_begins_after_the_warm_up(n_warmup: int) -> None:
    settings = OptimSettings(epochs=6, lr=0.1, warmup_epochs=n_warmup, warmup_lr=0.001)
    rates = [learning_rate(settings, epoch=epoch) for epoch in range(1, 7)]
    cosine = [0.05 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates == [0.001] * n_warmup + cosine[: 6 - n_warmup]


def test_a_constant_schedule_keeps_lr_after_the_warm_up() -> None:
    settings = OptimSettings(epochs=3, lr=0.1, schedule="constant")
    rates = [learning_rate(settings, epoch=epoch) for epoch in (1, 2, 3)]
    assert rates == [1e-5, 0.1, 0.1]


def test_sgd_couples_weight_decay_and_has_plain_momentum() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer(
        [parameter], OptimSettings(lr=0.1, momentum=0.5, weight_decay=0.25), {}
    )
    expected, velocity = 2.0, 0.0
    for _ in range(3):
        parameter.grad = torch.tensor([1.0])
        optimizer.step()
        velocity = 0.5 * velocity + 1.0 + 0.25 * expected
        expected -= 0.1 * velocity
    assert parameter.item() == pytest.approx(expected, rel=1e-6)


def test_adamw_takes_momentum_as_its_first_beta_and_decays_apart() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    settings = OptimSettings(algorithm="adamw", lr=0.1, momentum=0.8, weight_decay=0.25)
    optimizer = make_optimizer([parameter], settings, {})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    parameter.grad = torch.tensor([1.0])
    optimizer.step()
    assert parameter.item() == pytest.approx(2.0 * (1 - 0.1 * 0.25) - 0.1, rel=1e-6)


def test_an_average_equals_the_sum_in_exact_order_and_survives_a_stop() -> None:
    weights, ends = [0.2, 0.5, 0.3], torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    parameters = {"weight": nn.Parameter(torch.zeros(4))}
    average = ParameterAverage(weights)
    for epoch in (1, 2, 3):
        if epoch == 3:
            resumed = ParameterAverage(weights)
            resumed.load_state_dict(average.state_dict())
            average = resumed
        with torch.no_grad():
            parameters["weight"].copy_(ends[epoch - 1])
        average.add(parameters, epoch=epoch)
    average.copy_to(parameters)
    slow = [sum(w * float(end[i]) for w, end in zip(weights, ends, strict=True)) for i in range(4)]
    assert torch.equal(torch.tensor(slow), parameters["weight"].detach())


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_learned_scales_are_not_decayed(algorithm: Any) -> None:
    scale, weight = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.full((2,), 3.0))
    settings = OptimSettings(algorithm=algorithm, lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer([scale, weight], settings, {})
    (0 * scale + 0 * weight.sum()).backward()
    optimizer.step()
    assert float(scale.detach()) == 3.0
    assert float(weight.detach()[0]) < 3.0
