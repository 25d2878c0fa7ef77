"""Checkpoints: what goes in comes out, damage is noticed, two are kept."""

from __future__ import annotations

import dataclasses
import errno
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kdedge.errors import DataError, ResourceError
from kdedge.training.loop.checkpoint import (
    TrainingState,
    capture_rng,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    restore_rng,
    rng_kept,
    save_checkpoint,
)


def _state(epoch: int = 3, step: int = 120, **others: Any) -> TrainingState:
    weight = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    values: dict[str, Any] = {
        "module": {"weight": weight, "n": torch.tensor(7), "half": weight.to(torch.bfloat16)},
        "optimizer": {
            "state": {0: {"momentum_buffer": weight, "none": None}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
        },
        "scaler": {},
        "rng": capture_rng(torch.device("cpu")),
        "average": {"weight": weight.double() / 3},
        "best": {"score": None, "module": {"empty": torch.empty(0)}},
        "record": {"loss_sum": 0.1 + 0.2},
        **others,
    }
    return TrainingState(epoch=epoch, step=step, **values)


def _assert_equal(expected: Any, actual: Any) -> None:
    assert type(expected) is type(actual)
    if isinstance(expected, torch.Tensor):
        assert expected.dtype == actual.dtype
        assert torch.equal(expected, actual)
    elif isinstance(expected, dict):
        assert list(expected) == list(actual)
        for key in expected:
            _assert_equal(expected[key], actual[key])
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(actual)
        for one, other in zip(expected, actual, strict=True):
            _assert_equal(one, other)
    else:
        assert expected == actual


def test_a_loaded_state_equals_the_saved_one(tmp_path: Path) -> None:
    state = _state()
    path = save_checkpoint(tmp_path, state)
    assert path.name == "e03-s00120.safetensors"
    loaded = load_checkpoint(path)
    for entry in dataclasses.fields(state):
        _assert_equal(getattr(state, entry.name), getattr(loaded, entry.name))


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=_VALUES)
def test_any_nested_value_survives(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("state")
    loaded = load_checkpoint(save_checkpoint(folder, _state(record={"value": value})))
    _assert_equal(value, loaded.record["value"])


def test_only_the_two_furthest_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".e09-s00001.safetensors.abc").write_bytes(b"what a kill left")
    (tmp_path / "notes.txt").write_text("not ours")
    for epoch, step in ((2, 5), (9, 99999), (9, 100000), (100, 0)):
        save_checkpoint(tmp_path, _state(epoch, step))
    expected = ["e100-s00000.safetensors", "e09-s100000.safetensors"]
    assert [path.name for path in list_checkpoints(tmp_path)] == expected
    assert {path.name for path in tmp_path.iterdir()} == {*expected, "notes.txt"}


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_changed_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    path = save_checkpoint(tmp_path_factory.mktemp("state"), _state())
    data = bytearray(path.read_bytes())
    position = int(where * len(data))
    data[position] ^= 1 << bit
    path.write_bytes(data)
    try:
        loaded = load_checkpoint(path)
    except DataError:
        return
    # Bits of the file's own layout (a space for a tab between keys) carry nothing of the state
    for entry in dataclasses.fields(loaded):
        _assert_equal(getattr(_state(rng=loaded.rng), entry.name), getattr(loaded, entry.name))


@pytest.mark.parametrize("n_bytes", [0, 1, 8, 200, -1])
def test_a_cut_off_file_is_damaged(tmp_path: Path, n_bytes: int) -> None:
    path = save_checkpoint(tmp_path, _state())
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError):
        load_checkpoint(path)


def test_a_foreign_safetensors_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "e01-s00001.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(DataError, match="do not match their SHA-256"):
        load_checkpoint(path)


def test_a_damaged_checkpoint_is_an_error_that_says_what_is_before_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _state(1, 5))
    path = save_checkpoint(tmp_path, _state(1, 9))
    path.write_bytes(path.read_bytes()[:-3])
    for _ in range(2):
        with pytest.raises(DataError, match=f"{path} .*\n.* on from the checkpoint before it"):
            load_newest(tmp_path)
    path.unlink()
    state = load_newest(tmp_path)
    assert (state.epoch, state.step) == (1, 5)
    (tmp_path / "e01-s00005.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="on from the start"):
        load_newest(tmp_path)


def test_what_a_kill_while_saving_left_behind_is_deleted_when_the_run_goes_on(
    tmp_path: Path,
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, _state(step=step))
    third = save_checkpoint(tmp_path / "..", _state(step=3))
    third.rename(tmp_path / third.name)
    (tmp_path / ".e03-s00004.safetensors.x1y2").write_bytes(b"cut off")
    assert load_newest(tmp_path).step == 3
    assert {path.name for path in tmp_path.iterdir()} == {
        "e03-s00002.safetensors",
        "e03-s00003.safetensors",
    }


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "nowhere") is None


def test_a_full_disk_leaves_the_checkpoints_that_were_there(small_disk: Any) -> None:
    folder = small_disk(512)
    save_checkpoint(folder, _state(1, 1))
    before = save_checkpoint(folder, _state(1, 2))
    with pytest.raises(ResourceError, match="disk is full") as caught:
        save_checkpoint(folder, _state(1, 3, module={"big": torch.zeros(200_000)}))
    assert caught.value.exit_code == 7
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert len(list(folder.iterdir())) == 2
    assert load_checkpoint(before).step == 2


def test_generators_go_on_where_they_were() -> None:
    np.random.randn()  # draws two, and keeps one for the next call
    state = capture_rng(torch.device("cpu"))
    expected = (random.random(), np.random.randn(), torch.rand(3))
    restore_rng(state, torch.device("cpu"))
    actual = (random.random(), np.random.randn(), torch.rand(3))
    _assert_equal(expected, actual)


def test_draws_within_rng_kept_leave_no_trace() -> None:
    state = capture_rng(torch.device("cpu"))
    with rng_kept(torch.device("cpu")):
        random.random()
        np.random.rand()
        torch.rand(1)
    _assert_equal(state, capture_rng(torch.device("cpu")))
