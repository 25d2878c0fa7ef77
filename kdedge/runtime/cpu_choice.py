"""The fastest file of an artifact on a CPU, as `kdedge export --cpu` measured it.

`cpu_choice.json` in the artifact has one choice for each machine on which files were measured. A
choice is valid on machines with the same processor and number of cores, for the measured file.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field

from kdedge.errors import DataError, KdedgeError, SetupError
from kdedge.files import write_json
from kdedge.messages import first_line
from kdedge.records.record import Percent, Positive, PositiveCount, Record, Sha256, read_record
from kdedge.records.speed import Measurement
from kdedge.records.tables import Table, Tabled, decimals, digits, images_text
from kdedge.runtime.artifact import Artifact, ModelFile, Precision
from kdedge.runtime.machine import cpu_instructions, cpu_model, usable_cores

CPU_CHOICE = "cpu_choice.json"
CHOICES_FORMAT = 1


@dataclass(frozen=True)
class CpuMachine(Record):
    """The facts of a machine on which the fastest file depends.

    Attributes:
        cpu: the processor's name, as it reports it.
        instructions: result of `cpu_instructions`, in which cloud machines of one name can differ.
        cores: number of cores that the process may use.
    """

    cpu: str
    instructions: tuple[str, ...]
    cores: PositiveCount

    @classmethod
    def this(cls) -> CpuMachine:
        """Returns the facts of this machine."""
        return cls(cpu_model(), cpu_instructions(), usable_cores())

    def __str__(self) -> str:
        instructions = f" ({', '.join(self.instructions)})" if self.instructions else ""
        return f"{self.cpu}{instructions}, {self.cores} cores"


@dataclass(frozen=True)
class TimedFile(Record):
    """The measurement of a candidate for the fastest file.

    Attributes:
        file: the file's name.
        precision: the file's precision.
        runtime: the runtime and its version; None if the file could not be loaded.
        agreement_percent: equal top-1 classes on the smoke set, on this machine; None if unknown.
        time: times of calls, in turns with the other files; ratios compare with the first
            candidate. None if the file could not run.
        speedup: speed relative to the first candidate, by the quickest tenth of the calls, which
            other programs disturb least. It decides. None if there is no time.
        out: why the file cannot be chosen, in words; None if it can.
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
    """The fastest file on one machine, and the files it was compared with; prints as a table.

    Attributes:
        machine: the machine.
        file: name of the fastest file.
        sha256: SHA-256 of the fastest file.
        batch: images per call.
        candidates: all files that were measured or failed.
        not_tried: name of a target and precision that was not tried -> the reason.
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
        return "\n\n".join([self.table.as_markdown(), *self.notes])

    @property
    def table(self) -> Table:
        """The table that it prints."""
        header = ["file", "runtime", "agreement", "ms", "speedup", "result"]
        rows = [
            [x.file, x.runtime or "-", decimals(x.agreement_percent), *self.outcome(x)]
            for x in self.candidates
        ]
        return Table("", header, rows, align="l")

    def outcome(self, timed: TimedFile) -> list[str]:
        """The cells of a candidate's row that say how fast it is, and whether it is chosen."""
        ms = None if timed.time is None else timed.time.p50_ms
        result = "chosen" if timed.file == self.file else timed.out or ""
        return [digits(ms), decimals(timed.speedup), result]

    @property
    def notes(self) -> list[str]:
        """What the columns of `table` mean, and the remarks."""
        columns = (
            f"{images_text(self.batch)} per call, in turns; agreement with the float32 model on the"
            " sample images, percent; ms of the median call; speedup over the first row by the"
            " quickest tenth of the calls, which other programs disturb least; it decides. On"
            f" {self.machine}."
        )
        return [columns, *self.remarks]

    @property
    def remarks(self) -> list[str]:
        """Lines about files that were not tried, and times in doubt."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.not_tried.items():
            by_reason.setdefault(reason, []).append(name)
        remarks = [f"Not tried: {', '.join(names)}: {why}" for why, names in by_reason.items()]
        doubts = [c.time.doubt for c in self.candidates if c.time is not None and c.time.doubt]
        if doubts:
            doubt = doubts[0]
            if self.time is not None and self.time.doubt:
                doubt = self.time.doubt
            remarks.append(f"In doubt: {doubt}. Measure again on a quiet machine.")
        return remarks


@dataclass(frozen=True)
class _Choices(Record):
    """The content of `cpu_choice.json`."""

    format: Annotated[int, Field(ge=1, le=CHOICES_FORMAT)]
    choices: tuple[CpuChoice, ...]


def read_choices(artifact: Artifact) -> tuple[CpuChoice, ...]:
    """The choices of all machines; empty if nothing was measured.

    Raises:
        DataError: the record is missing, or has changed since it was written.
        SetupError: a newer kdedge wrote it.
    """
    if CPU_CHOICE not in artifact.others:
        return ()
    remedy = f"Measure again with: kdedge export {shlex.quote(str(artifact.path))} --cpu"
    return read_record(_Choices, artifact.checked(CPU_CHOICE), remedy=remedy).choices


def readable_choices(artifact: Artifact) -> tuple[CpuChoice, ...]:
    """The choices of all machines; empty if the record cannot be read."""
    try:
        return read_choices(artifact)
    except (DataError, SetupError):
        return ()


def choice_here(choices: Sequence[CpuChoice]) -> CpuChoice | None:
    """The choice for a machine like this one; None if there is none."""
    machine = CpuMachine.this()
    return next((choice for choice in choices if choice.machine == machine), None)


def keep_choice(artifact: Artifact, choice: CpuChoice) -> Artifact:
    """Writes a choice, which replaces an earlier one of the same machine.

    A damaged record is replaced, too. Returns the artifact, which is saved.

    Raises:
        ResourceError: the folder cannot be written.
        SetupError: a newer kdedge wrote the record.
    """
    try:
        choices = read_choices(artifact)
    except DataError:
        choices = ()
    others = [other for other in choices if other.machine != choice.machine]
    record = _Choices(CHOICES_FORMAT, (*others, choice)).to_dict()
    write_json(artifact.path / CPU_CHOICE, record)
    artifact = artifact.with_others(CPU_CHOICE)
    artifact.save()
    return artifact


class MeasuredChoice(NamedTuple):
    """What is known about the fastest file; both are None if nothing was measured.

    Attributes:
        choice: None if no choice can be read, or if every chosen file was built again.
        problem: why the choice does not hold on this machine; None if it does.
    """

    choice: CpuChoice | None
    problem: str | None


def measured_choice(artifact: Artifact) -> MeasuredChoice:
    """The choice for a machine like this one, or else the newest choice of another machine."""
    try:
        choices = read_choices(artifact)
    except KdedgeError as error:
        return MeasuredChoice(None, first_line(error))
    own = choice_here(choices)
    if own is not None:
        if any(map(own.holds_for, artifact.files)):
            return MeasuredChoice(own, None)
        problem = f"{own.file} was built again after it was measured"
    else:
        machines = "; ".join(str(other.machine) for other in choices)
        problem = (
            f"The fastest file was measured on another machine ({machines}), not on"
            f" {CpuMachine.this()}"
        )
    valid = [choice for choice in choices if any(map(choice.holds_for, artifact.files))]
    newest = max(valid, key=lambda choice: choice.measured_at, default=None)
    return MeasuredChoice(newest, problem if choices else None)
