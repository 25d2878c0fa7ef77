"""What a run writes while it trains."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kdedge.errors import ResourceError
from kdedge.training.loop.loggers import MetricsLog


def _open(folder: Path, *, step: int = 0, n_bytes: int = 0, n_steps: int = 100) -> MetricsLog:
    file = folder / "metrics.jsonl"
    return MetricsLog(file, folder, n_bytes=n_bytes, step=step, n_steps=n_steps, what="training")


def _step(log: MetricsLog, step: int, *, is_last: bool = False, **values: Any) -> None:
    given = {"epoch": 1, "n_images": 8, **values}
    figures = {"lr": 0.1, "loss": given.pop("loss", 2.0), **given.pop("scalars", {})}
    log.step(step=step, is_last=is_last, figures=figures, **given)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_20th_step_and_the_last_of_an_epoch_are_written(tmp_path: Path) -> None:
    with _open(tmp_path) as log:
        for step in range(1, 46):
            _step(log, step, is_last=step == 45, scalars={"kd": torch.tensor(0.5)})
        log.epoch(epoch=1, step=45, figures={"loss": 1.5})
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines] == [20, 40, 45, 45]
    assert lines[0].pop("images_per_second") > 0
    assert lines[0] == {"epoch": 1, "step": 20, "lr": 0.1, "loss": 2.0, "kd": 0.5}
    assert lines[3] == {"kind": "epoch", "epoch": 1, "step": 45, "loss": 1.5}


def test_the_speed_is_that_of_the_steps_and_of_nothing_between_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with _open(tmp_path) as log:
        now = 2.0
        _step(log, 20, is_last=True)
        now = 100.0
        log.epoch(epoch=1, step=20, figures={})
        now = 104.0
        _step(log, 40, epoch=2)
    speeds = [line.get("images_per_second") for line in _lines(tmp_path)]
    assert speeds == [4.0, None, 2.0]


def test_a_scalar_is_read_only_where_it_is_written(tmp_path: Path) -> None:
    class Scalar:
        def __float__(self) -> float:
            raise AssertionError("read")

    with _open(tmp_path) as log:
        _step(log, 19, scalars={"kd": Scalar()})
        with pytest.raises(AssertionError, match="read"):
            _step(log, 20, scalars={"kd": Scalar()})


def test_a_figure_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with _open(tmp_path) as log:
        _step(log, 20, scalars={"grad_norm": torch.tensor(float("inf"))})
    assert _lines(tmp_path)[0]["grad_norm"] is None


@pytest.mark.parametrize("torn", [b"", b'{"epoch": 1, "st'])
def test_lines_beyond_the_checkpoint_and_torn_ones_are_dropped(tmp_path: Path, torn: bytes) -> None:
    with _open(tmp_path) as log:
        _step(log, 20)
        log.epoch(epoch=1, step=20, figures={})
        n_bytes = (tmp_path / "metrics.jsonl").stat().st_size
        _step(log, 40, epoch=2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    with _open(tmp_path, step=20, n_bytes=n_bytes) as log:
        _step(log, 40, epoch=2, loss=3.0)
    assert [(line["step"], line.get("loss")) for line in _lines(tmp_path)] == [
        (20, 2.0),
        (20, None),
        (40, 3.0),
    ]


def test_a_log_that_is_shorter_than_at_the_checkpoint_gets_no_filling(tmp_path: Path) -> None:
    with _open(tmp_path, step=20, n_bytes=10_000) as log:
        _step(log, 40)
    assert [line["step"] for line in _lines(tmp_path)] == [40]


def test_tensorboard_reads_the_events_and_hides_what_was_resumed_over(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with _open(tmp_path) as log:
        for step, loss in ((20, 1.0), (39, 2.0), (40, 2.0), (41, 9.0), (60, 9.0)):
            _step(log, step, loss=loss, is_last=True)
    time.sleep(0.01)
    with _open(tmp_path, step=40) as log:
        _step(log, 60, loss=3.0)
        log.epoch(epoch=1, step=60, figures={"loss": 2.5})
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(20, 1.0), (39, 2.0), (40, 2.0), (60, 3.0)]
    assert [(e.step, e.value) for e in events.Scalars("epoch/loss")] == [(60, 2.5)]


def _fill_and_go_on(folder: Path, log: MetricsLog) -> None:
    (folder / "filler").write_bytes(b"x" * shutil.disk_usage(folder).free)
    for step in range(20, 200_000, 20):
        _step(log, step)


def test_a_full_disk_is_a_resource_error(small_disk: Any) -> None:
    folder = small_disk(64)
    with pytest.raises(ResourceError, match="disk is full"), _open(folder) as log:
        _fill_and_go_on(folder, log)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_log_that_cannot_be_closed_is_an_error_and_hides_none(tmp_path: Path) -> None:
    def lose(log: MetricsLog, error: Exception | None = None) -> None:
        """Takes the open file away, as a network disk that is gone does."""
        _step(log, 20)
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if link.readlink() == tmp_path / "metrics.jsonl":
                    os.close(int(link.name))
        if error is not None:
            raise error

    with pytest.raises(ResourceError, match=r"metrics\.jsonl"), _open(tmp_path) as log:
        lose(log)
    time.sleep(0.01)
    with pytest.raises(KeyError), _open(tmp_path) as log:
        lose(log, KeyError())


def test_progress_names_the_epoch_and_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    caplog.set_level("INFO", "kdedge")
    with _open(tmp_path, step=10, n_steps=100) as log:
        for step in range(11, 14):
            now[0] += 10
            _step(log, step)
    assert caplog.messages == ["training: 13 of 100, ETA 0:14:30, 0.8 images/s, epoch 1, loss 2"]
