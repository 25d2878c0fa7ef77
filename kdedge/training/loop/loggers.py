"""Metrics of a running training: metrics.jsonl, TensorBoard events, and progress."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.errors import explain_os_error, explaining_writes
from kdedge.progress import progress, rate

_LOG_EVERY_STEPS = 20


class MetricsLog:
    """metrics.jsonl and TensorBoard events of one run, and its progress.

    The line of a step holds epoch, step (from 1, over all epochs), lr, loss, the method's own
    scalars and images_per_second. The line of an epoch has `"kind": "epoch"`. A value that is not
    finite is null.

    Args:
        path: metrics.jsonl.
        events_folder: folder of the TensorBoard events.
        n_bytes: size of the file at the run's last checkpoint, to which it is cut, since an
            interrupted run may have written more lines.
        step: number of steps that are finished already, over all epochs.
        n_steps: number of steps of all epochs, for progress.
        what: label of the progress, such as `training student`.
    """

    def __init__(
        self, path: Path, events_folder: Path, *, n_bytes: int, step: int, n_steps: int, what: str
    ) -> None:
        self._path = path
        with explaining_writes(path), contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("a", encoding="utf-8"))
            self._file.truncate(min(n_bytes, path.stat().st_size))
            self._events = _EventFile(events_folder, first_step=step + 1)
            stack.callback(self._events.close)
            self._advance = stack.enter_context(progress(what, n_steps, done=step))
            self._open = stack.pop_all()
        self._since = time.monotonic()
        self._n_images = 0
        self._speed = 0.0

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        try:
            self._open.close()
        except OSError as failure:
            # An error of the run itself matters more than an error while closing its log
            if error is None:
                raise explain_os_error(failure, self._path) from failure

    def step(
        self, *, epoch: int, step: int, figures: Mapping[str, Any], n_images: int, is_last: bool
    ) -> None:
        """Adds a step's metrics; writes them for every 20th step and the last one of an epoch.

        Args:
            epoch: number of the epoch, from 1.
            step: number of the step, from 1, over all epochs.
            figures: `lr`, `loss` and the method's scalars, as tensors or numbers. They are read
                only when they are written, since reading a tensor waits for the device.
            n_images: images in the batch.
            is_last: whether this is the last step of the epoch.
        """
        self._n_images += n_images
        now = time.monotonic()
        speed = self._n_images / max(now - self._since, 1e-9)
        is_written = is_last or step % _LOG_EVERY_STEPS == 0
        # The speed over the last written steps, since a speed over few steps would flicker
        shown = rate(self._speed or speed, "images")
        self._advance(step, f"{shown}, epoch {epoch}, loss {figures['loss']:.3g}")
        if not is_written:
            return
        self._since = now
        self._n_images = 0
        self._speed = speed
        values = {name: float(x) for name, x in figures.items()}
        self._write({"epoch": epoch, "step": step, **values, "images_per_second": speed})

    def epoch(self, *, epoch: int, step: int, figures: Mapping[str, float]) -> None:
        """Writes an epoch's metrics; speeds leave out the time since the last step."""
        self._write({"kind": "epoch", "epoch": epoch, "step": step, **figures})
        self._since = time.monotonic()
        self._n_images = 0

    def _write(self, line: dict[str, Any]) -> None:
        bad = [key for key, x in line.items() if isinstance(x, float) and not math.isfinite(x)]
        line |= dict.fromkeys(bad)
        with explaining_writes(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            self._events.write(line)


class _EventFile:
    """A TensorBoard event file, written without a thread.

    torch's SummaryWriter has its own thread, which prints a traceback when the disk is full.

    Args:
        folder: TensorBoard's log folder.
        first_step: step from which TensorBoard hides the events of earlier files.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        now = time.time_ns()
        path = folder / f"events.out.tfevents.{now // 10**9}.{now % 10**9:09d}"
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("xb"))
            self._records = RecordWriter(self._file)
            self._add(file_version="brain.Event:2")
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(session_log=start, step=first_step)
            stack.pop_all()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line of metrics.jsonl, with one TensorBoard scalar per key."""
        prefix = "epoch" if line.get("kind") == "epoch" else "train"
        values = [
            self._summary.Value(tag=f"{prefix}/{key}", simple_value=value)
            for key, value in line.items()
            if isinstance(value, float)
        ]
        self._add(summary=self._summary(value=values), step=line["step"])

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()
