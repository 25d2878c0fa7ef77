"""Number formats of the forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdedge.errors import SetupError
from kdedge.training.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_products_run_in_the_named_format(name: str, dtype: torch.dtype) -> None:
    precision = Precision(name, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert precision.is_scaled == (name == "fp16")


def test_a_device_that_does_not_compute_in_the_format_is_a_setup_error() -> None:
    # torch's device without memory stands for one that autocast does not know
    with pytest.raises(SetupError, match="precision: fp32"):
        Precision("bf16", torch.device("meta"))


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_clipping_sees_gradients_without_the_scale(max_norm: float | None) -> None:
    precision = Precision("fp16", CPU)
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    precision.backward((parameter.square() / 2).sum())
    norm = precision.clip(optimizer, [parameter], max_norm=max_norm)
    assert float(norm) == 5.0
    expected = torch.tensor([3.0, 4.0]) * (1.0 if max_norm is None else 0.1)
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=0)


def test_the_scale_of_a_stopped_run_goes_on() -> None:
    precision = Precision("fp16", CPU)
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    precision.backward((parameter * float("inf")).sum())
    precision.clip(optimizer, [parameter], max_norm=None)
    precision.step(optimizer)
    assert parameter.item() == 1.0
    other = Precision("fp16", CPU)
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == precision.state_dict()
    assert other.state_dict()["scale"] == 32768.0


def test_without_scaling_there_is_no_state() -> None:
    precision = Precision("fp32", CPU)
    assert precision.state_dict() == {}
    precision.load_state_dict({})
