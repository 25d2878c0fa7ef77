"""Real kills and signals: a run that was ended at any point ends with the same weights."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdedge.runs.folder import RunFolder

Start = Callable[..., Any]
SELECTED = {"average": True, "selection": "validation", "algorithm": "adamw", "lr": 0.02}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"average": True, "precision": "bf16"},
    "selected": SELECTED,
    "scaled": {"precision": "fp16"},
    "moving": {"ema_decay": 0.9, "selection": "validation"},
}


def _folder(root: Path) -> Path:
    return root / "toy" / "01"


def _run_to_the_end(start: Start, root: Path, **options: Any) -> None:
    process = start(root, **options)
    assert process.wait() == 0, process.stderr


def _wait_for_steps(process: Any, root: Path) -> None:
    """Waits until the process is in its steps: the event file is there before the first."""
    process.wait_until(lambda: any(_folder(root).glob("events*")))


def _assert_same_weights(expected: Path, actual: Path) -> None:
    one, other = (load_file(_folder(root) / "student.safetensors") for root in (expected, actual))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def _steps_logged(root: Path) -> list[tuple[str, int, int]]:
    lines = (_folder(root) / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    return [(value.get("kind", "step"), value["epoch"], value["step"]) for value in values]


@pytest.mark.parametrize(
    ("kind", "every_s"),
    [
        # 1e-9: at each step, so that most kills come while a checkpoint is written
        ("selected", 1e-9),
        pytest.param("selected", 0.03, marks=pytest.mark.slow),
        *(pytest.param(kind, 1e-9, marks=pytest.mark.slow) for kind in KINDS if kind != "selected"),
    ],
)
def test_a_run_killed_at_any_step_ends_with_the_same_weights(
    tmp_path: Path, start_toy: Start, kind: str, every_s: float
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _run_to_the_end(start_toy, whole, **KINDS[kind])
    options = {**KINDS[kind], "checkpoint_every_s": every_s, "step_s": 0.04}
    chance = random.Random(f"{kind} {every_s}")
    n_killed = 0
    for _ in range(3):
        process = start_toy(killed, **options)
        before = len(list(_folder(killed).glob("events*")))
        process.wait_until(lambda: len(list(_folder(killed).glob("events*"))) > before)  # noqa: B023
        time.sleep(chance.uniform(0, 0.25))
        process.send(signal.SIGKILL)
        assert process.wait() in {0, -signal.SIGKILL}, process.stderr
        n_killed += process.wait() != 0
    assert n_killed >= 2
    _run_to_the_end(start_toy, killed, **options)
    _assert_same_weights(whole, killed)
    assert _steps_logged(killed) == _steps_logged(whole)
    assert len(list((_folder(killed) / "checkpoints").iterdir())) == 2
    assert RunFolder.open(_folder(killed)).is_finished


def test_a_second_signal_kills_at_once(tmp_path: Path, start_toy: Start) -> None:
    process = start_toy(tmp_path, step_s=3600.0)
    _wait_for_steps(process, tmp_path)
    time.sleep(0.3)
    process.send(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    while process.poll() is None:  # two that come at once count as one
        process.send(signal.SIGINT)
        time.sleep(0.01)
    assert process.wait() == -signal.SIGINT
