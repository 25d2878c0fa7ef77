"""Provenance of a run: command, versions, device, seed, hashes, times, status and summary."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from kdedge.records.evaluation import Role

RunStatus = Literal["running", "interrupted", "failed", "finished"]


class _Tolerant(BaseModel):
    """A part of provenance.json: known keys are checked, unknown ones are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class Resumed(_Tolerant):
    """A restart of an interrupted run.

    Attributes:
        resumed_at: ISO 8601 time. Other keys are command, versions, platform and device.
    """

    resumed_at: str | None = None


class TrainingSummary(_Tolerant):
    """Summary of a training loop.

    Attributes:
        epochs: number of trained epochs.
        steps: number of steps, including steps before an interruption.
        seconds: training time, including the time before an interruption.
        final_loss: mean over the steps of the last epoch.
        kept: which weights are final: `last` epoch, best `epoch`, `averaged` over the epochs, or
            `moving average` at the end of the last epoch.
        best_epoch: epoch of these weights if `kept` is `epoch`.
        validation_percent: validation score of these weights; None for selection `last`.
    """

    epochs: int
    steps: int
    seconds: float
    final_loss: float
    kept: str | None = None
    best_epoch: int | None = None
    validation_percent: float | None = None


class RoundSummary(_Tolerant):
    """Summary of one round of a method that pseudo-labels its images (`paper/rounds.py`)."""

    n_images: int
    n_classes: int | None = None
    accuracy_percent: float | None
    seconds: float | None = None


class RunSummary(_Tolerant):
    """Results of a finished run.

    Attributes:
        training: summary of its training loop.
        rounds: summaries of the rounds of a method that pseudo-labels its images.
        closed_form: settings that a closed-form method chose; `unseen_classes` are classes that the
            teacher predicts for no unlabeled image.
        gmacs: multiply-adds per image, 1e9, of a student before folding, with stored class vectors.
        teacher_gmacs: the same for its teacher; None if the teacher is a file of probabilities.
        parameters: number of weights of a student's image encoder, prompts and projector.
        teacher_parameters: the same for its teacher.
    """

    training: TrainingSummary | None = None
    rounds: list[RoundSummary] = []
    closed_form: dict[str, Any] = {}
    gmacs: float | None = None
    teacher_gmacs: float | None = None
    parameters: float | None = None
    teacher_parameters: float | None = None


class Provenance(_Tolerant):
    """The content of a run's provenance.json.

    Attributes:
        role: role of the model that was trained. Called `kind` in version 0.2.
        status: state of the run. A killed run stays `running`.
        started_at: ISO 8601 time of the first start.
        finished_at: ISO 8601 time; None until the run is finished.
        command: the command line of the first start.
        versions: version by package at the first start; None if a package is not installed.
        platform: operating system at the first start.
        key: hash of the job; runs with equal keys have the same weights.
        device: torch device at the first start.
        n_processes: world size at the first start.
        threads: torch's threads in each process at the first start.
        seed: the recipe's seed.
        method: name of the method.
        settings: settings of the method.
        imported_from: file of the public checkpoint; None unless the run was imported.
        epoch: epoch of the public checkpoint.
        hashes: hash by input: backbone, class list, image lists.
        measured_on: hash of the test images; None if there are none.
        teacher_run: the teacher's run, as `name/NN`, or as an absolute path if it is in another
            folder of runs.
        official: whether the run follows the public code's protocol.
        replaced_by: the better student that replaced this one, as `name/NN`; None if this one was
            kept.
        resumed: later starts of the run.
        summary: results; empty until the run is finished.
    """

    role: Role = Field(validation_alias=AliasChoices("role", "kind"))
    status: RunStatus | None = None
    started_at: str | None = None
    finished_at: str | None = None
    command: list[str] = []
    versions: dict[str, str | None] = {}
    platform: str | None = None
    key: str | None = None
    device: str | None = None
    n_processes: int | None = None
    threads: int | None = None
    seed: int | None = None
    method: str | None = None
    settings: dict[str, Any] = {}
    imported_from: str | None = None
    epoch: int | None = None
    hashes: dict[str, Any] = {}
    measured_on: str | None = None
    teacher_run: str | None = None
    official: bool = False
    replaced_by: str | None = None
    resumed: list[Resumed] = []
    summary: RunSummary = RunSummary()

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return self.status == "finished"

    @property
    def facts(self) -> dict[str, str]:
        """The facts that `kdedge show` and the report list: name -> text."""
        training = self.summary.training
        rounds = []
        for entry in self.summary.rounds:
            correct = entry.accuracy_percent
            suffix = "" if correct is None else f" ({correct:.2f} % correct)"
            rounds.append(f"{entry.n_images}{suffix}")
        facts = {
            "method": self.method,
            "teacher": self.teacher_run,
            "imported from": self.imported_from,
            "protocol": "official, as in the public code" if self.official else None,
            "seed": self.seed,
            "device": self.device,
            "threads": self.threads,
            "training": training
            and f"{training.steps:,} steps in {training.epochs} epochs, {training.seconds:,.0f} s;"
            f" final loss {training.final_loss:.4g}",
            "pseudo-labels": ", ".join(rounds),
            "started": self.started_at,
            "finished": self.finished_at,
        }
        return {key: str(value) for key, value in facts.items() if value not in (None, "")}

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys that the file holds, as plain values for JSON."""
        return self.model_dump(exclude_unset=True)
