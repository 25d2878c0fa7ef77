"""Number formats of the forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdedge.methods.base import Projector
from kdedge.training.loop.precision import MixedPrecision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp16-unscaled", torch.float16),
    ],
)
def test_products_run_in_the_named_format(name: str, dtype: torch.dtype) -> None:
    precision = MixedPrecision(name, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert precision.may_overflow == (name == "fp16")


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_clipping_sees_gradients_without_the_scale(max_norm: float | None) -> None:
    precision = MixedPrecision("fp16", CPU)
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    precision.backward((parameter.square() / 2).sum())
    assert float(precision.clip([parameter], max_norm=max_norm)) == 5.0
    expected = torch.tensor([3.0, 4.0]) * (1.0 if max_norm is None else 0.1)
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=0)


def test_the_scale_of_a_stopped_run_goes_on() -> None:
    precision = MixedPrecision("fp16", CPU)
    # Each is finite, but not the root of the sum of their squares
    parameter = nn.Parameter(torch.full((9,), 3e38))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for expected in (2.0**15, 2.0**14):
        parameter.grad = torch.full((9,), 3e38)
        norm = precision.clip([parameter], max_norm=None)
        assert norm.isinf()
        precision.step(optimizer, is_finite=bool(norm.isfinite()))
        assert precision.state_dict() == {"scale": expected, "n_finite": 0}
    assert parameter[0].item() == torch.tensor(3e38).item()
    other = MixedPrecision("fp16", CPU)
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == precision.state_dict()


def test_the_scale_doubles_after_two_thousand_steps_without_overflow() -> None:
    precision = MixedPrecision("fp16", CPU)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    precision.load_state_dict({"scale": 4.0, "n_finite": 1999})
    precision.step(optimizer, is_finite=True)
    assert precision.state_dict() == {"scale": 8.0, "n_finite": 2000}
    for scale in (4.0, 2.0, 1.0):
        assert precision.may_overflow
        precision.step(optimizer, is_finite=False)
        assert precision.state_dict() == {"scale": scale, "n_finite": 0}
    assert not precision.may_overflow  # so that a smaller scale could not help


class Trained(nn.Module):
    """Parameters that the public code keeps in half precision, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = Projector(3, 3, torch.Generator().manual_seed(1))
        self.classifier = nn.Linear(3, 3)
        self.context = nn.Parameter(torch.randn(2, 3))
        self.deep_context = nn.Parameter(torch.randn(2, 3))


LINEARS = ("projector.linear1", "projector.linear2")
HALVED = {"context", *(f"{name}.{part}" for name in LINEARS for part in ("weight", "bias"))}


def test_what_the_public_code_keeps_in_half_is_rounded_after_every_step() -> None:
    module = Trained()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    halved = [parameter for name, parameter in module.named_parameters() if name in HALVED]
    precision = MixedPrecision("fp16-unscaled", CPU, halved)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
    state: dict[str, torch.Tensor] = {}
    for step in range(3):
        slow = {}
        for name, parameter in module.named_parameters():
            is_half = name in HALVED
            value = parameter.detach().clone()
            if step == 0:
                assert torch.equal(value, before[name].half().float() if is_half else before[name])
            gradient = torch.full_like(value, 0.1) + 5e-4 * value
            momentum = gradient if step == 0 else 0.9 * state[name] + gradient
            value = value - 0.3 * momentum
            slow[name] = value.half().float() if is_half else value
            state[name] = momentum.half().float() if is_half else momentum
            parameter.grad = torch.full_like(parameter, 0.1)
        precision.step(optimizer, is_finite=True)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.detach(), slow[name], rtol=1e-6, atol=1e-7)
    assert precision.state_dict() == {}
