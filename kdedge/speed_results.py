"""Speed records: `kdedge bench` writes them; tables, comparisons and reports read them.

Times are in ms, memory and files in bytes, work in GMACs: 1e9 multiply-adds, half of the GFLOPs.
Nothing is rounded before it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from kdedge.records import (
    OPTIONAL,
    Bounds,
    Bytes,
    Check,
    Count,
    Holds,
    NonNegative,
    Percent,
    Positive,
    PositiveCount,
    Record,
    Shape,
    null_as,
    read_record,
)
from kdedge.results import EvalResult, are_same_images
from kdedge.tables import Table, Tabled

FORMAT_VERSION = 1

MOST_OTHERS_PERCENT = 10.0
MOST_PREEMPTED = 20.0
MOST_SPREAD = 2.0
"""Beyond these limits a time is in doubt: `Measurement.doubt`. Models of 0.1 to 8 ms on two cores
had at most 1.3 times their median as 90th percentile on a quiet machine, and up to 110 times
beside one busy process."""

Protocol = Literal["paper", "cached"]
Inputs = Literal["on device", "copied", "image file"]


@dataclass(frozen=True)
class Measurement(Record):
    """Times of one row at one batch size.

    Attributes:
        batch: images per call.
        inputs: where a call starts: `on device`: images are in the memory that computes; `copied`:
            in the host's, and logits come back to it; `image file`: a JPEG's bytes, one image.
        n_calls: timed calls.
        p50_ms: median of a call; so the other percentiles.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; the largest if there are fewer than 100 calls.
        mean_ms: mean of a call.
        cv_percent: coefficient of variation: standard deviation over mean.
        images_per_second: batch over mean.
        ratio: the baseline's time over this one's, median over rounds; None without a baseline.
        ratio_low: the smallest ratio of a round.
        ratio_high: the largest.
        watts: mean power while this row ran; None if nothing measures it.
        samples_ms: every timed call, in order.
        others_percent: share of the cores that other processes used meanwhile; None on a GPU, in
            older records, and where unknown.
        preempted_per_second: involuntary context switches of the process's threads meanwhile; None
            in older records, and where unknown.
    """

    batch: PositiveCount
    inputs: Inputs
    n_calls: PositiveCount
    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    mean_ms: Positive
    cv_percent: NonNegative
    images_per_second: Positive
    ratio: NonNegative | None
    ratio_low: Annotated[NonNegative | None, null_as("ratio")]
    ratio_high: Annotated[NonNegative | None, null_as("ratio")]
    watts: NonNegative | None
    samples_ms: tuple[float, ...]
    others_percent: Annotated[NonNegative | None, OPTIONAL] = None
    preempted_per_second: Annotated[NonNegative | None, OPTIONAL] = None

    @property
    def doubt(self) -> str | None:
        """Why other programs may have disturbed the times; None if nothing suggests it."""
        if (self.others_percent or 0) > MOST_OTHERS_PERCENT:
            return f"other processes kept {self.others_percent:.0f} % of the cores busy"
        if (self.preempted_per_second or 0) > MOST_PREEMPTED:
            return f"it was preempted {self.preempted_per_second:.0f} times per second"
        spread = self.p90_ms / self.p50_ms
        if spread > MOST_SPREAD:
            return f"a tenth of its calls took {spread:.1f} times the median or longer"
        return None

    @property
    def joules_per_image(self) -> float | None:
        """Energy per image; None where power was not measured."""
        return None if self.watts is None else self.watts / self.images_per_second


@dataclass(frozen=True)
class Accuracy(Record):
    """A row's accuracies, in percent; None where unknown.

    Attributes:
        base: of base classes against base names.
        novel: the same of novel classes.
        harmonic_mean: of the two.
        all: of all images against all names.
        agreement: of an exported file, with the float32 model's top-1 classes.
        source: where the figures come from: a run, or the images that a file was compared on.
        n_images: images that were measured; None in older records.
        images_hash: equal for the same images, labels and class list; None in older records.
    """

    base: Percent | None
    novel: Percent | None
    harmonic_mean: Percent | None
    all: Percent | None
    agreement: Percent | None
    source: str
    n_images: Annotated[Count | None, OPTIONAL] = None
    images_hash: Annotated[str | None, OPTIONAL] = None

    @classmethod
    def of_run(cls, result: EvalResult, run: str) -> Accuracy:
        """The accuracies of a run's model from its evaluation."""
        return cls(
            base=result.base,
            novel=result.novel,
            harmonic_mean=result.harmonic_mean,
            all=result.all,
            agreement=None,
            source=run,
            n_images=result.n_images,
            images_hash=result.images_hash,
        )

    def is_beside(self, other: Accuracy) -> bool:
        """Whether both were measured on the same images, as far as the records tell."""
        if self.n_images is None or other.n_images is None:  # runs' images, or a comparison's
            return (self.agreement is None) == (other.agreement is None)
        return are_same_images(self, other)

    @property
    def images_text(self) -> str:
        """Describes the images, for tables."""
        if self.n_images is None:
            return "the recipe's test images" if self.agreement is None else self.source
        return f"{self.n_images:,} images"


@dataclass(frozen=True)
class ModelFacts(Record):
    """Facts of a model that are known before it is timed.

    Attributes:
        source: the recipe's name; where that is ambiguous, the run, artifact or file as it was
            given.
        model: the method, or an artifact's file.
        protocol: `paper`: class texts are encoded with every batch, at all positions of the text
            encoder, as the baselines' public code evaluates. `cached`: class vectors are stored.
        precision: of weights and arithmetic.
        n_parameters: numbers that it holds; None if not known.
        n_bytes: of its file; None for a model in memory.
        gmacs_image: multiply-adds per image, 1e9; None if not counted.
        gmacs_call: further ones per call, whatever its batch: those of the class texts.
        accuracy: from its run or comparison; None without one.
        on_compared: of a run's model: its accuracy on the images that its exported files were
            compared on; None if these are all test images, or the record does not tell.
        gate: of an exported file: whether it passed its recipe's gates; None for other models.
    """

    source: str
    model: str
    protocol: Protocol
    precision: str
    n_parameters: Bytes | None
    n_bytes: Bytes | None
    gmacs_image: NonNegative | None
    gmacs_call: NonNegative
    accuracy: Accuracy | None
    gate: str | None
    on_compared: Annotated[Accuracy | None, OPTIONAL] = field(default=None, kw_only=True)

    @property
    def accuracies(self) -> list[Accuracy]:
        """Its known accuracies over all class names."""
        found = (self.accuracy, self.on_compared)
        return [one for one in found if one is not None and one.all is not None]

    def accuracy_beside(self, other: Accuracy) -> Accuracy | None:
        """Its accuracy on the images of another accuracy; None if unknown."""
        return next((one for one in self.accuracies if one.is_beside(other)), None)

    @property
    def label(self) -> str:
        """Its name in tables and messages, unique within its source."""
        return self.model if self.protocol == "cached" else f"{self.model}, {self.protocol}"

    def gmacs(self, batch: int) -> float | None:
        """Multiply-adds per image in a batch of this size, 1e9."""
        return None if self.gmacs_image is None else self.gmacs_image + self.gmacs_call / batch


def _check_runtime(text: str, before: dict[str, Any]) -> None:
    del before
    if not text.strip():
        raise ValueError("what ran it, with its version")


@dataclass(frozen=True)
class SpeedRow(ModelFacts):
    """One model on one runtime.

    Attributes:
        runtime: its name and version; - if the model could not be loaded.
        device: `CPU` or `GPU`.
        memory_bytes: peak resident memory that loading it and a first call of one image added; of
            the GPU, its weights and the peak of that call; None if not known.
        problem: why the measurement ended early; None if it did not.
        measurements: by batch.
    """

    runtime: Annotated[str, Check(_check_runtime)]
    device: str
    memory_bytes: Bytes | None
    problem: str | None
    measurements: tuple[Measurement, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """Identifies the row in two tables of the same models."""
        engine = self.runtime.split()[0]
        return (self.source, self.model, self.protocol, self.precision, engine, self.device)

    def at(self, batch: int, inputs: Inputs) -> Measurement | None:
        """The measurement at a batch size; None without one."""
        found = (m for m in self.measurements if (m.batch, m.inputs) == (batch, inputs))
        return next(found, None)

    def alone(self, batch: int) -> Measurement | None:
        """The model without reading a file: on the device, or with copies if only that is known."""
        return self.at(batch, "on device") or self.at(batch, "copied")


@dataclass(frozen=True)
class _Settings(Shape):
    """The settings that tables show."""

    batches: list[PositiveCount]
    threads: PositiveCount | None
    n_calls: PositiveCount
    n_rounds: PositiveCount


@dataclass(frozen=True)
class _Gpu(Shape):
    name: str | None
    driver: str | None


@dataclass(frozen=True)
class _Jetson(Shape):
    board: str
    power_mode: str


@dataclass(frozen=True)
class _Device(Shape):
    """The facts of a device sheet that tables show or compare."""

    cpu: str
    cpu_cores: PositiveCount
    omp_num_threads: Annotated[str, OPTIONAL]
    gpus: Annotated[list[_Gpu], OPTIONAL]
    jetson: Annotated[_Jetson, OPTIONAL]
    throttled: Annotated[bool | None, OPTIONAL]


@dataclass(frozen=True)
class SpeedResult(Record, Tabled):
    """One call of `kdedge bench`.

    Attributes:
        format: version of the file's format.
        command: as it was typed.
        measured_at: when, ISO 8601.
        settings: seconds, calls and rounds asked for, batches, threads.
        device: the device sheet, from `benchmarking.device.device_sheet`.
        baseline: label of the row that ratios compare with; None if nothing ran.
        rows: the models, in the order of the table.
        left_out: what could not be measured here, and why.
    """

    format: Annotated[int, Bounds(ge=1, le=FORMAT_VERSION)] = field(
        default=FORMAT_VERSION, kw_only=True
    )
    command: str
    measured_at: str
    settings: Annotated[dict[str, Any], Holds(_Settings)]
    device: Annotated[dict[str, Any], Holds(_Device)]
    baseline: str | None
    rows: tuple[SpeedRow, ...]
    left_out: dict[str, str]

    @property
    def doubts(self) -> list[str]:
        """For each time that is in doubt: its row, batch and the reason."""
        return [
            f"{row.label}, batch {found.batch}: {found.doubt}"
            for row in self.rows
            for found in row.measurements
            if found.doubt is not None
        ]

    def has_rank(self, found: Measurement) -> bool:
        """Whether it may be ranked: its times and the baseline's are not in doubt."""
        against = [
            row.at(found.batch, found.inputs) for row in self.rows if row.label == self.baseline
        ]
        return all(one is None or one.doubt is None for one in (found, *against[:1]))

    def _notes(self) -> list[str]:
        left_out = [f"{what} is left out: {why}" for what, why in self.left_out.items()]
        return [*self.doubts, *left_out]

    def _table(self) -> Table:
        """Each model's size, median times on the device by batch (! in doubt) and accuracy."""
        found = {m.batch for row in self.rows for m in row.measurements if m.inputs == "on device"}
        batches = sorted(found)
        rows = []
        for row in self.rows:
            times = [row.at(batch, "on device") for batch in batches]
            accuracy = None if row.accuracy is None else row.accuracy.all
            rows.append(
                [
                    f"{row.source}: {row.label}",
                    "-" if row.n_bytes is None else f"{row.n_bytes / 1e6:.1f}",
                    *(
                        "-" if m is None else f"{m.p50_ms:.3g}{'!' if m.doubt else ''}"
                        for m in times
                    ),
                    "-" if accuracy is None else f"{accuracy:.2f}",
                ]
            )
        heads = [f"ms, batch {batch}" for batch in batches]
        return ["model", "MB", *heads, "accuracy %"], rows


def accuracy_sets(rows: Sequence[ModelFacts]) -> list[Accuracy]:
    """One known accuracy for each set of images that rows were measured on, in their order."""
    sets: list[Accuracy] = []
    for found in (one for row in rows for one in row.accuracies):
        if not any(found.is_beside(known) for known in sets):
            sets.append(found)
    return sets


def read_speed(path: Path) -> SpeedResult:
    """Reads a file that `kdedge bench` wrote.

    Raises:
        DataError: the file cannot be read, or it does not hold such a record.
        SetupError: a newer kdedge wrote it.
    """
    return read_record(SpeedResult, path, remedy="Run `kdedge bench` again to write a new one.")
