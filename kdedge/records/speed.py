"""Speed records: `kdedge bench` writes them; tables, comparisons and reports read them.

Times are in ms, memory and files in bytes, work in GMACs: 1e9 multiply-adds, half of the GFLOPs.
Nothing is rounded before it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from kdedge.records.evaluation import EvalResult, by_images
from kdedge.records.record import (
    Bytes,
    Count,
    NonNegative,
    Percent,
    Positive,
    PositiveCount,
    Record,
    read_record,
)
from kdedge.records.tables import Table, Tabled, decimals, digits

SPEED_FORMAT = 1

# Above these limits a time is in doubt: `Measurement.doubt`. For models of 0.1 to 8 ms on two
# cores, the 90th percentile was at most 1.3 times the median on a quiet machine, and up to 110
# times while another process was busy.
MOST_OTHERS_PERCENT = 10.0
MOST_SPREAD = 2.0

TextProtocol = Literal["paper", "cached"]
TimedFrom = Literal["on device", "copied", "image file"]


@dataclass(frozen=True)
class Measurement(Record):
    """Times of one row at one batch size.

    Attributes:
        batch: images per call.
        inputs: where the images of a call start. `on device`: in the device's memory. `copied`: in
            the host's memory, to which logits return. `image file`: as the bytes of one JPEG.
        n_calls: timed calls.
        p50_ms: median time of a call.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; the largest time if there are fewer than 100 calls.
        mean_ms: mean time of a call.
        cv_percent: coefficient of variation: standard deviation over mean.
        images_per_second: batch over mean.
        ratio: the baseline's time over this one's, median over rounds; None if there is no
            baseline.
        ratio_low: the smallest ratio of a round.
        ratio_high: the largest ratio of a round.
        watts: mean power while this row ran; None if nothing measures it.
        samples_ms: every timed call, in order.
        others_percent: share of the cores that other processes used meanwhile; None on a GPU, or
            if unknown.
    """

    batch: PositiveCount
    inputs: TimedFrom
    n_calls: PositiveCount
    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    mean_ms: Positive
    cv_percent: NonNegative
    images_per_second: Positive
    ratio: NonNegative | None
    ratio_low: NonNegative | None
    ratio_high: NonNegative | None
    watts: NonNegative | None
    samples_ms: tuple[float, ...]
    others_percent: NonNegative | None = None

    @property
    def doubt(self) -> str | None:
        """Why other programs may have disturbed the times; None if nothing suggests it."""
        if (self.others_percent or 0) > MOST_OTHERS_PERCENT:
            return f"other processes kept {self.others_percent:.0f} % of the cores busy"
        spread = self.p90_ms / self.p50_ms
        if spread > MOST_SPREAD:
            return f"a tenth of its calls took {spread:.1f} times the median or longer"
        return None

    def marked(self, value: float) -> str:
        """Formats one of its values, marked with `!` if its times are in doubt."""
        return f"{digits(value)}!" if self.doubt else digits(value)

    @property
    def joules_per_image(self) -> float | None:
        """Energy per image; None if power was not measured."""
        return None if self.watts is None else self.watts / self.images_per_second


@dataclass(frozen=True)
class Accuracy(Record):
    """A row's accuracies, in percent; None if unknown.

    Attributes:
        base: images of base classes, classified among base names.
        novel: images of novel classes, classified among novel names.
        harmonic_mean: of base and novel.
        all: all images, classified among all names.
        agreement: of an exported file with the float32 model's top-1 classes.
        source: where the figures come from: a run, or the images that a file was compared on.
        n_images: number of images.
        images_hash: equal for the same images, labels and class list.
    """

    base: Percent | None
    novel: Percent | None
    harmonic_mean: Percent | None
    all: Percent | None
    agreement: Percent | None
    source: str
    n_images: Count
    images_hash: str | None = None

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


@dataclass(frozen=True)
class ModelFacts(Record):
    """Facts of a model that are known before it is timed.

    Attributes:
        source: the recipe's name; if there are several runs, artifacts or files, the name given.
        model: the method, or an artifact's file.
        protocol: `paper`: class texts are encoded with every batch, at all positions of the text
            encoder, as the baselines' public code evaluates. `cached`: class vectors are stored.
        precision: number format of weights and arithmetic.
        n_parameters: parameters that a prediction needs, with its class vectors or the text
            encoder, without buffers such as running means; None if not known.
        n_bytes: size of its file; None for a model in memory.
        gmacs_image: multiply-adds per image, 1e9; None if not counted.
        gmacs_call: additional multiply-adds per call of any batch, for the class texts, 1e9.
        accuracy: from its run or comparison; None if unknown. An exported file of a run has the
            run's accuracy, less the drop on the images that the file was compared on.
        gate: whether an exported file passed its recipe's gates; None for other models.
    """

    source: str
    model: str
    protocol: TextProtocol
    precision: str
    n_parameters: Bytes | None
    n_bytes: Bytes | None
    gmacs_image: NonNegative | None
    gmacs_call: NonNegative
    accuracy: Accuracy | None
    gate: str | None

    @property
    def label(self) -> str:
        """Name of the model in tables and messages, unique within its source."""
        return self.model if self.protocol == "cached" else f"{self.model}, {self.protocol}"

    def gmacs(self, batch: int) -> float | None:
        """Multiply-adds per image in a batch of this size, 1e9."""
        return None if self.gmacs_image is None else self.gmacs_image + self.gmacs_call / batch

    @property
    def gflops(self) -> float | None:
        """Operations of one image, 1e9: two per multiply-add."""
        gmacs = self.gmacs(1)
        return None if gmacs is None else 2 * gmacs


@dataclass(frozen=True)
class SpeedRow(ModelFacts):
    """One model on one runtime.

    Attributes:
        runtime: its name and version; - if the model could not be loaded.
        device: `CPU` or `GPU`.
        memory_bytes: peak resident memory that loading the model and a first call of one image
            added; on a GPU, the weights and the peak of that call; None if not known.
        problem: why the measurement ended early; None if it did not.
        measurements: one per batch size and kind of input.
    """

    runtime: Annotated[str, Field(min_length=1)]
    device: str
    memory_bytes: Bytes | None
    problem: str | None
    measurements: tuple[Measurement, ...]

    def at(self, batch: int, inputs: TimedFrom) -> Measurement | None:
        """The measurement at a batch size; None if there is none."""
        return next((m for m in self.measurements if (m.batch, m.inputs) == (batch, inputs)), None)

    def without_file(self, batch: int) -> Measurement | None:
        """The measurement without reading a file: on the device, else with copies."""
        return self.at(batch, "on device") or self.at(batch, "copied")


@dataclass(frozen=True)
class SpeedResult(Record, Tabled):
    """One call of `kdedge bench`.

    Attributes:
        format: version of the file's format.
        command: the command as it was typed.
        measured_at: time of the measurement, ISO 8601.
        settings: requested seconds, calls and rounds, batches, threads.
        device: the device sheet, from `benchmarking.device.device_sheet`.
        baseline: label of the row that ratios compare with; None if nothing ran.
        rows: the models, in the order of the table.
        left_out: name of each model that could not be measured here -> the reason.
    """

    format: Annotated[int, Field(ge=1, le=SPEED_FORMAT)] = field(default=SPEED_FORMAT, kw_only=True)
    command: str
    measured_at: str
    settings: dict[str, Any]
    device: dict[str, Any]
    baseline: str | None
    rows: tuple[SpeedRow, ...]
    left_out: dict[str, str]

    @property
    def doubts(self) -> list[str]:
        """One line for each time in doubt: its row, its batch and the reason."""
        lines = []
        for row in self.rows:
            for time in row.measurements:
                if time.doubt is not None:
                    lines.append(f"{row.label}, batch {time.batch}: {time.doubt}")
        return lines

    def has_rank(self, measurement: Measurement) -> bool:
        """Whether a measurement may be ranked: neither it nor the baseline's is in doubt."""
        rows = [row for row in self.rows if row.label == self.baseline]
        against = [row.at(measurement.batch, measurement.inputs) for row in rows[:1]]
        return all(time is None or time.doubt is None for time in (measurement, *against))

    @property
    def problems(self) -> list[str]:
        """Lines about missed gates, failed models, and models that were left out."""
        missed = [row.label for row in self.rows if row.gate == "missed"]
        lines = [f"Missed its gate at export: {', '.join(missed)}."] if missed else []
        lines += [f"{row.label} ended early: {row.problem}" for row in self.rows if row.problem]
        return lines + [f"Left out: {name}: {why}" for name, why in self.left_out.items()]

    @property
    def caveats(self) -> list[str]:
        """Lines below the table about accuracies and the machine."""
        lines = []
        n_sets = len(accuracies(named_rows(self)))
        if n_sets > 1:
            lines.append(
                f"! Accuracies are on {n_sets} different sets of images: see their tables."
            )
        if self.doubts:
            n_all = sum(len(row.measurements) for row in self.rows)
            lines.append(
                f"! {len(self.doubts)} of {n_all} times are in doubt and get no ratio"
                f" ({self.doubts[0]}). Measure again on a quiet machine."
            )
        if self.device.get("throttled"):
            lines.append(
                "! The device was throttled during the measurement (heat, power or current)."
            )
        elif self.device.get("throttled") is None:
            lines.append(
                "This machine does not tell whether it was throttled during the measurement."
            )
        return lines

    @property
    def notes(self) -> list[str]:
        """Lines below the printed table: a legend of the columns, caveats and problems."""
        return [f"{self.table.title}.", *self.caveats, *self.problems]

    @property
    def table(self) -> Table:
        """The main table, with one line per model."""
        rows = []
        for label, row, first in at_smallest_batch(named_rows(self), "on device"):
            measured = [m for m in row.measurements if m.inputs == "on device"]
            candidates = [m for m in measured if m.doubt is None] or measured
            best = max(candidates, key=lambda m: m.images_per_second, default=None)
            rows.append(
                [
                    label,
                    digits(row.gflops),
                    "-" if first is None else first.marked(first.p50_ms),
                    "-" if best is None else best.marked(best.images_per_second),
                    self.ratio_cells(first)[0],
                    decimals(None if row.accuracy is None else row.accuracy.all),
                ]
            )
        title = (
            f"GFLOPs of one image, median ms per call, FPS at the best batch, speed relative"
            f" to {self.baseline}, accuracy over all classes in percent"
        )
        return Table(title, ["model", "GFLOPs", "ms", "FPS", "ratio", "acc."], rows)

    def ratio_cells(self, time: Measurement | None) -> list[str]:
        """Median, lowest and highest ratio; dashes if the measurement is not ranked."""
        if time is None or not self.has_rank(time):
            return ["-", "-", "-"]
        ratios = (time.ratio, time.ratio_low, time.ratio_high)
        return ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]


# A measured model's name in the tables, and its measurements
NamedRow = tuple[str, SpeedRow]


def named_rows(result: SpeedResult, prefix: str = "") -> list[NamedRow]:
    """Names the rows of a result; names include the source if there are several sources."""
    several = len({row.source for row in result.rows}) > 1
    named = []
    for row in result.rows:
        name = f"{row.source}: {row.label}" if several else row.label
        named.append((prefix + name, row))
    return named


class SmallestBatch(NamedTuple):
    """A model at the smallest batch that was measured.

    Attributes:
        label: the model's name in the tables.
        row: its measurements.
        time: the one at this batch; None if it has none.
    """

    label: str
    row: SpeedRow
    time: Measurement | None


def at_smallest_batch(named: Sequence[NamedRow], inputs: TimedFrom) -> list[SmallestBatch]:
    """Each row with its measurement at the smallest measured batch."""
    batches = []
    for _, row in named:
        batches += [m.batch for m in row.measurements if m.inputs == inputs]
    smallest = min(batches, default=1)
    return [SmallestBatch(label, row, row.at(smallest, inputs)) for label, row in named]


def accuracies(named: Sequence[NamedRow]) -> list[list[tuple[str, Accuracy]]]:
    """The known accuracies with their labels, grouped by test images."""
    known = [(label, row.accuracy) for label, row in named if row.accuracy is not None]
    return by_images([(label, accuracy) for label, accuracy in known if accuracy.all is not None])


def read_speed(path: Path) -> SpeedResult:
    """Reads a file that `kdedge bench` wrote.

    Raises:
        DataError: the file cannot be read, or it does not hold such a record.
        SetupError: a newer kdedge wrote it.
    """
    return read_record(SpeedResult, path, remedy="Run `kdedge bench` again to write a new one.")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the positions of the points (time, accuracy) on the Pareto front, sorted by time.

    A point is not on the front if another point is no slower and no less accurate, and better in
    one of the two.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        is_more_accurate = not front or points[i][1] > points[front[-1]][1]
        if is_more_accurate or points[i] == points[front[-1]]:
            front.append(i)
    return front
