"""Chooses the file of an artifact to put on a device."""

from __future__ import annotations

from typing import NamedTuple

from kdedge.inference.choose import candidates
from kdedge.records.speed import Measurement, SpeedResult
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.cpu_choice import readable_choices
from kdedge.targets.registry import list_targets


class FileToShip(NamedTuple):
    """The file to put on a device.

    Attributes:
        file: the file.
        time: measured time of a call; None if it was not measured.
        machine: the machine that measured it.
    """

    file: ModelFile
    time: Measurement | None
    machine: str


def file_to_ship(artifact: Artifact, speed: SpeedResult | None) -> FileToShip | None:
    """The file to put on the device; None if every file missed its gate.

    It is the fastest file of the last `kdedge export --cpu`, or else of `kdedge bench`. If nothing
    was measured, it is the smallest ONNX file that is not for GPUs, or else the smallest file; not
    an INT8 file if there is another one, as INT8 is slower on some CPUs.
    """
    files = {file.name: file for file in artifact.files if file.gate != "missed"}
    for choice in sorted(readable_choices(artifact), key=lambda c: c.measured_at, reverse=True):
        if choice.file in files and choice.holds_for(files[choice.file]):
            return FileToShip(files[choice.file], choice.time, str(choice.machine))
    machine = "" if speed is None else str(speed.device["cpu"])
    fastest = None if speed is None else fastest_file(speed)
    if fastest is not None and fastest[0] in files:
        return FileToShip(files[fastest[0]], fastest[1], machine)
    onnx = [file for file in files.values() if file.target == "onnx" and file.device != "gpu"]
    if not files:
        return None
    smallest = min(onnx or files.values(), key=lambda f: (f.precision == "int8", f.n_bytes))
    rows = [] if speed is None else [row for row in speed.rows if row.model == smallest.name]
    return FileToShip(smallest, rows[0].alone(1) if rows else None, machine)


def predict_flags(artifact: Artifact, file: ModelFile) -> list[str] | None:
    """The `kdedge predict` options that select a file on any CPU; None if no backend runs it."""
    backend = {target.name: target.backend for target in list_targets()}.get(file.target)
    if backend is None:
        return None
    flags = ["--precision", file.precision]
    first = candidates(artifact, precision=file.precision, backend=None)[0]
    return flags if first == file else [*flags, "--backend", backend]


def fastest_file(speed: SpeedResult) -> tuple[str, Measurement] | None:
    """The fastest exported file for one image that did not miss its gate, and its times."""
    times = [
        (time.p50_ms, row.model, time)
        for row in speed.rows
        if (time := row.alone(1)) is not None
        and time.doubt is None
        and row.gate not in (None, "missed")
    ]
    return min(times, key=lambda timed: timed[:2])[1:] if times else None
