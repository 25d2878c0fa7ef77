"""Which GPU a command computes on, with torch's view of GPUs that are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdedge.errors import SetupError
from kdedge.runtime.process import torch_as_before
from kdedge.setup.workspace import parse_device, set_up_device
from kdedge.training.loop import precision


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two GPUs; gives the devices that were made torch's current one."""
    current: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize(
    ("name", "current"),
    [(None, "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_the_chosen_gpu_is_torchs_current_one(
    two_gpus: list[Any], name: str | None, current: str
) -> None:
    assert parse_device(name) == parse_device(torch.device(current)) == torch.device(current)
    assert two_gpus == []
    assert set_up_device(name) == torch.device(current)
    assert two_gpus == [torch.device(current)]


def test_a_gpu_that_is_not_there_is_a_matter_of_the_machine(two_gpus: list[Any]) -> None:
    expected = r'device="cuda:7": there is no such GPU(?s:.)*cuda:0 \(GPU 0\), cuda:1 \(GPU 1\)'
    with pytest.raises(SetupError, match=expected):
        set_up_device("cuda:7")
    assert two_gpus == []


def test_bf16_that_a_gpu_only_emulates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turing and Volta compute it in float32: slower than fp32 itself."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(SetupError, match=r"optim\.precision is bf16"):
        precision.MixedPrecision("bf16", torch.device("cuda:0"))


def test_after_a_call_torchs_gpu_and_tf32_are_as_before(
    two_gpus: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with torch_as_before():
        set_up_device("cuda:1")
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    assert two_gpus == [torch.device("cuda:1"), 0]


def test_an_outer_calls_settings_hold_until_it_ends(two_gpus: list[Any]) -> None:
    before = torch.backends.cudnn.allow_tf32
    with torch_as_before():
        set_up_device("cpu")
        with pytest.raises(ValueError, match="inner"), torch_as_before():
            raise ValueError("inner")
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    assert two_gpus == []
