"""The fastest file of an artifact on a CPU, as `kdedge export --cpu` measured it.

`cpu_choice.json` in the artifact has one choice for each machine that measured. A choice holds on
machines of the same processor and number of cores, and for the file that was measured.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kdedge.errors import DataError, KdedgeError, SetupError, first_line
from kdedge.files import write_json
from kdedge.records.record import (
    Percent,
    Positive,
    PositiveCount,
    Record,
    Sha256,
    read_record,
)
from kdedge.records.speed import Measurement
from kdedge.records.tables import Table, Tabled, images_text, markdown_table
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.machine import cpu_instructions, cpu_model, usable_cores

CPU_CHOICE = "cpu_choice.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CpuMachine(Record):
    """What decides which file is the fastest.

    Attributes:
        cpu: the processor's own name.
        instructions: what `cpu_instructions` gives; cloud machines share names and differ in these.
        cores: cores that the process may use.
    """

    cpu: str
    instructions: tuple[str, ...]
    cores: PositiveCount

    @classmethod
    def this(cls) -> CpuMachine:
        """This machine."""
        return cls(cpu_model(), cpu_instructions(), usable_cores())

    def __str__(self) -> str:
        known = f" ({', '.join(self.instructions)})" if self.instructions else ""
        return f"{self.cpu}{known}, {self.cores} cores"


@dataclass(frozen=True)
class TimedFile(Record):
    """A file that may be the fastest, as it was measured.

    Attributes:
        file: the file's name.
        precision: its precision.
        runtime: the runtime and its version; None if it could not be loaded.
        agreement_percent: equal top-1 classes on the smoke set, on this machine; None if unknown.
        time: one call, in turns with the others; ratios are to the first candidate. None if it
            could not run.
        speedup: how many times as fast as the first candidate, by the quickest tenth of the calls,
            which other programs disturb least; it decides. None if there is no time.
        out: why it cannot be chosen, in words; None if it can.
    """

    file: str
    precision: Precision
    runtime: str | None
    agreement_percent: Percent | None
    time: Measurement | None
    speedup: Positive | None
    out: str | None


@dataclass(frozen=True)
class CpuChoice(Record, Tabled):
    """The fastest file on one machine, and what it was compared with; prints as a table.

    Attributes:
        machine: the machine.
        file: name of the file.
        sha256: SHA-256 of the file.
        batch: images per call.
        candidates: all that were measured, or failed.
        not_tried: why a target's precision was not tried, by their names.
        measured_at: date and time, ISO 8601.
    """

    machine: CpuMachine
    file: str
    sha256: Sha256
    batch: PositiveCount
    candidates: tuple[TimedFile, ...]
    not_tried: dict[str, str]
    measured_at: str

    @property
    def time(self) -> Measurement | None:
        """The chosen file's time."""
        return next(timed for timed in self.candidates if timed.file == self.file).time

    def holds_for(self, entry: ModelFile) -> bool:
        """Whether an artifact's file is the one that was measured."""
        return (entry.name, entry.sha256) == (self.file, self.sha256)

    def as_markdown(self) -> str:
        """The table and its notes, in Markdown."""
        return "\n\n".join([markdown_table(*self.table, align="l"), *self.notes])

    @property
    def table(self) -> Table:
        """Header and cells of the table that it prints."""
        header = ["file", "runtime", "agreement", "ms", "speedup", "result"]
        return header, [self._row(candidate) for candidate in self.candidates]

    def _row(self, timed: TimedFile) -> list[str]:
        cells = [timed.file, timed.runtime or "-"]
        cells.append("-" if timed.agreement_percent is None else f"{timed.agreement_percent:.2f}")
        time = timed.time
        cells += ["-", "-"] if time is None else [f"{time.p50_ms:.3g}", f"{timed.speedup:.2f}"]
        return [*cells, "chosen" if timed.file == self.file else timed.out or ""]

    @property
    def notes(self) -> list[str]:
        """How it was measured, what was not tried, and which times are in doubt."""
        notes = [
            f"{images_text(self.batch)} per call, in turns; agreement with the float32 model on the"
            " sample images, percent; ms of the median call; speedup over the first row by the"
            " quickest tenth of the calls, which other programs disturb least; it decides. On"
            f" {self.machine}."
        ]
        whats_of: dict[str, list[str]] = {}
        for what, why in self.not_tried.items():
            whats_of.setdefault(why, []).append(what)
        notes += [f"Not tried: {', '.join(whats)}: {why}" for why, whats in whats_of.items()]
        doubts = {c.time.doubt for c in self.candidates if c.time is not None} - {None}
        if doubts:
            notes.append(f"In doubt: {min(map(str, doubts))}. Measure again on a quiet machine.")
        return notes


@dataclass(frozen=True)
class _Choices(Record):
    """The file's content."""

    format: Annotated[int, Field(ge=1, le=FORMAT_VERSION)]
    choices: tuple[CpuChoice, ...]


def read_choices(artifact: Artifact) -> tuple[CpuChoice, ...]:
    """The choices of all machines that measured; empty if none did.

    Raises:
        DataError: the record is missing, or has changed since it was written.
        SetupError: a newer kdedge wrote it.
    """
    if CPU_CHOICE not in artifact.others:
        return ()
    remedy = f"Measure again with: kdedge export {shlex.quote(str(artifact.path))} --cpu"
    return read_record(_Choices, artifact.checked(CPU_CHOICE), remedy=remedy).choices


def readable_choices(artifact: Artifact) -> tuple[CpuChoice, ...]:
    """The choices of all machines that measured; empty if the record cannot be read."""
    try:
        return read_choices(artifact)
    except (DataError, SetupError):
        return ()


def choice_here(choices: Sequence[CpuChoice]) -> CpuChoice | None:
    """The choice of a machine like this; None if there is none."""
    machine = CpuMachine.this()
    return next((choice for choice in choices if choice.machine == machine), None)


def keep_choice(artifact: Artifact, choice: CpuChoice) -> Artifact:
    """Writes a choice, instead of an earlier one of the same machine; returns the artifact, saved.

    A record that is damaged is replaced.

    Raises:
        ResourceError: the folder cannot be written.
        SetupError: a newer kdedge wrote the record.
    """
    try:
        known = read_choices(artifact)
    except DataError:
        known = ()
    others = [other for other in known if other.machine != choice.machine]
    record = _Choices(FORMAT_VERSION, (*others, choice)).to_dict()
    write_json(artifact.path / CPU_CHOICE, record)
    artifact = artifact.with_others(CPU_CHOICE)
    artifact.save()
    return artifact


def preferred_file(artifact: Artifact) -> tuple[str | None, str | None]:
    """The file that was measured as the fastest on a machine like this.

    Returns:
        Its name, or why there is none, in words. Both are None if nothing was measured.
    """
    try:
        choices = read_choices(artifact)
    except KdedgeError as error:
        return None, first_line(error)
    if not choices:
        return None, None
    choice = choice_here(choices)
    if choice is None:
        elsewhere = "; ".join(str(other.machine) for other in choices)
        return None, (
            f"The fastest file was measured on another machine ({elsewhere}), not on"
            f" {CpuMachine.this()}"
        )
    if not any(map(choice.holds_for, artifact.files)):
        return None, f"{choice.file} was built again after it was measured"
    return choice.file, None
