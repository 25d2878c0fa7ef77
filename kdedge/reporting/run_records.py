"""Reads the records of a run for a report; damaged records are left out, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open

from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.config.recipe import ModelSpec
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.files import check_regular, read_bytes
from kdedge.records.evaluation import LogitAdjustment
from kdedge.records.record import parse_record, read_record
from kdedge.reporting.model_records import ModelRecords, model_records, newest_speed
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Provenance
from kdedge.runs.results import read_logit_adjustment
from kdedge.runtime.cpu_choice import CpuChoice, readable_choices

_T = TypeVar("_T")


class _LogLine(BaseModel):
    """One line of metrics.jsonl; its other keys are numbers, or null if not finite."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, float | None]

    kind: Literal["epoch"] | None = None
    epoch: Annotated[int, Field(ge=0, le=10**12)] = 0
    step: Annotated[int, Field(ge=0, le=10**12)]


@dataclass(frozen=True)
class TrainingLog:
    """Metrics that a run wrote while it trained, in order.

    Attributes:
        steps: metrics of single steps: epoch, step, lr, loss and the method's own.
        epochs: metrics of epochs.
    """

    steps: tuple[Mapping[str, Any], ...] = ()
    epochs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunRecords(ModelRecords):
    """All records of a run: `ModelRecords` and others; empty or None if missing.

    Attributes:
        provenance: record of how the run was made.
        recipe: the resolved recipe.
        training: log of the training.
        logit_adjustment: the offsets that bring its classes into balance.
        references: accuracies of the teacher, zero-shot CLIP and ridge on the labeled images.
        speed_file: file of the newest speed measurement.
        problems: errors of damaged records, which are left out.
    """

    provenance: Provenance
    recipe: LoadedRecipe | None
    training: TrainingLog
    logit_adjustment: LogitAdjustment | None
    references: Mapping[str, float]
    speed_file: Path | None
    problems: tuple[str, ...]

    @cached_property
    def choices(self) -> tuple[CpuChoice, ...]:
        """The choices of the fastest file on CPUs, of all machines."""
        return () if self.artifact is None else readable_choices(self.artifact)

    def backbone(self, role: str) -> str | None:
        """The name of the teacher's or the student's backbone; a baseline uses the student's."""
        recipe = None if self.recipe is None else self.recipe.recipe
        spec: ModelSpec | None = getattr(
            recipe, "teacher" if role == "teacher" else "student", None
        )
        if spec is None:
            return None
        return spec.config.stem if spec.config is not None else spec.backbone

    @property
    def can_evaluate(self) -> bool:
        """Whether the recipe has test images; True if the recipe cannot be read."""
        return self.recipe is None or self.recipe.recipe.data.test is not None

    @property
    def missing(self) -> dict[str, list[str]]:
        """Name of each missing record -> the command that makes it; none if it is unfinished."""
        if not self.provenance.is_finished:
            return {}
        name = str(self.run.path)
        role = self.run.role
        artifact = self.artifact
        missing: dict[str, list[str]] = {}
        if self.can_evaluate and not (role in self.results and role in self.details):
            missing["accuracy and confusions"] = ["eval", name]
        data = None if self.recipe is None else self.recipe.recipe.data
        if self.unlabeled is None and data and data.test is None and data.unlabeled is not None:
            missing["agreement and predicted classes"] = ["eval", name]
        if artifact is None and role == "student":
            missing["exported files"] = ["export", name, "--cpu"]
        measuring = ["bench", name]
        is_timed = self.speed is not None
        if artifact is not None and not any(f.name.endswith(".engine") for f in artifact.files):
            measuring = ["export", str(artifact.path), "--cpu"]  # also chooses the file to ship
            is_timed |= bool(self.choices)
        if not is_timed and run_has_class_vectors(self.run):
            missing["speed"] = measuring
        return missing


def run_has_class_vectors(run: RunFolder) -> bool:
    """Whether a run's model has class vectors; `kdedge bench` times only models that have them."""
    try:
        check_regular(run.class_vectors)
        with safe_open(run.class_vectors, framework="numpy") as file:
            return all(0 not in file.get_slice(key).get_shape() for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):  # missing or damaged; `kdedge bench` reports it
        return True


def run_records(run: RunFolder) -> RunRecords:
    """Reads all records of a run; damaged ones are left out and reported in `problems`.

    Raises:
        DataError: provenance.json is damaged, which every run must have.
    """
    problems: list[str] = []

    def read(reader: Callable[..., _T], *arguments: Any) -> _T | None:
        try:
            return reader(*arguments)
        except (DataError, RecipeError, SetupError) as error:  # SetupError: of a newer kdedge
            problems.append(str(error))
            return None

    rounds = [p for p in run.path.glob("rounds/*/metrics.jsonl") if p.parent.name.isdecimal()]
    provenance = run.read_provenance()
    metrics = max(rounds, key=lambda path: int(path.parent.name), default=run.metrics)
    return RunRecords(
        **vars(model_records(run, read)),
        provenance=provenance,
        recipe=read(load_recipe, run.recipe),
        logit_adjustment=read(read_logit_adjustment, run),
        references=read(_read_references, run, provenance.teacher_run) or {},
        training=read(_read_training, metrics) or TrainingLog(),
        speed_file=newest_speed(run),
        problems=tuple(problems),
    )


def _read_references(run: RunFolder, teacher: str | None) -> Mapping[str, float]:
    """A teacher's accuracy and its references (`training/teacher_check.py`); empty if missing."""
    owner = run if teacher is None else RunFolder(run.root / teacher, "teacher")
    return read_record(dict[str, float], owner.references) if owner.references.exists() else {}


def _read_training(path: Path) -> TrainingLog:
    """Reads metrics.jsonl.

    Raises:
        DataError: a line is damaged.
    """
    if not path.exists():
        return TrainingLog()
    # A running training may still be writing the last line
    lines = [
        parse_record(
            _LogLine, line, where=f"{path}:{number}", remedy="Remove the line from the file."
        )
        for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], start=1)
    ]
    steps = tuple(line.model_dump(exclude_unset=True) for line in lines if line.kind is None)
    epochs = tuple(line.model_dump(exclude_unset=True) for line in lines if line.kind == "epoch")
    return TrainingLog(steps, epochs)
