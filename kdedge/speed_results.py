"""What `kdedge bench` writes and tables, comparisons and reports read: plain values, no torch.

Times are in ms, memory and files in bytes, work in GMACs: 1e9 multiply-adds, half of the GFLOPs.
Nothing is rounded before it is stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from kdedge._record import Record
from kdedge.errors import SetupError

FORMAT_VERSION = 1

Protocol = Literal["paper", "cached"]
PROTOCOLS: tuple[Protocol, ...] = ("paper", "cached")
Inputs = Literal["on device", "copied", "image file"]
INPUTS: tuple[Inputs, ...] = ("on device", "copied", "image file")

_REMEDY = "Run `kdedge bench` again to write a new one."
_LARGE = 10**18


@dataclass(frozen=True)
class Measurement:
    """Times of one row at one batch size.

    Attributes:
        batch: images a call.
        inputs: where a call starts: `on device`: images are in the memory that computes; `copied`:
            in the host's, and logits come back to it; `image file`: a JPEG's bytes, one image.
        n_calls: timed calls.
        p50_ms: median of a call; so the other percentiles.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; the largest where there are fewer than 100 calls.
        mean_ms: mean of a call.
        cv_percent: coefficient of variation: standard deviation over mean.
        images_per_second: batch over mean.
        ratio: the baseline's time over this one's, median over rounds; None without a baseline.
        ratio_low: the smallest ratio of a round.
        ratio_high: the largest.
        watts: mean power while this row ran; None where nothing measures it.
        samples_ms: every timed call, in order.
    """

    batch: int
    inputs: Inputs
    n_calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    cv_percent: float
    images_per_second: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    watts: float | None
    samples_ms: tuple[float, ...]

    @property
    def joules_per_image(self) -> float | None:
        """Energy of an image; None where power was not measured."""
        return None if self.watts is None else self.watts / self.images_per_second

    @classmethod
    def from_record(cls, record: Record) -> Measurement:
        """Reads one entry of a row's `measurements`.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        record.check_keys(*(entry.name for entry in fields(cls)))

        def number(key: str) -> float:
            return record.number(key, highest=_LARGE)

        def positive(key: str) -> float:
            if number(key) == 0:
                raise record.error(key, 0, "a number above 0")
            return number(key)

        samples = record.sequence("samples_ms")
        if not all(type(sample) in (int, float) for sample in samples):
            raise record.error("samples_ms", samples, "a list of numbers")
        # A median of ratios has a lowest and a highest one, and without one there is none
        ratio = record.null if record.values["ratio"] is None else number
        return cls(
            batch=record.count("batch"),
            inputs=record.one_of("inputs", INPUTS),
            n_calls=record.count("n_calls"),
            p50_ms=positive("p50_ms"),
            p90_ms=positive("p90_ms"),
            p99_ms=positive("p99_ms"),
            mean_ms=positive("mean_ms"),
            cv_percent=number("cv_percent"),
            images_per_second=positive("images_per_second"),
            ratio=ratio("ratio"),
            ratio_low=ratio("ratio_low"),
            ratio_high=ratio("ratio_high"),
            watts=record.optional("watts", number),
            samples_ms=tuple(map(float, samples)),
        )


@dataclass(frozen=True)
class Accuracy:
    """What is known of a row's accuracy, in percent; None for what is not.

    Attributes:
        base: of base classes against base names.
        novel: the same of novel classes.
        harmonic_mean: of the two.
        all: of all images against all names.
        agreement: images with the same top-1 class as the float32 model, of a file.
        source: where the figures are from: a run, or the images that a file was compared on.
    """

    base: float | None
    novel: float | None
    harmonic_mean: float | None
    all: float | None
    agreement: float | None
    source: str

    @classmethod
    def from_record(cls, record: Record) -> Accuracy:
        """Reads a row's `accuracy`.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        record.check_keys(*(entry.name for entry in fields(cls)))
        keys = ("base", "novel", "harmonic_mean", "all", "agreement")
        values = {key: record.optional(key, record.number) for key in keys}
        return cls(**values, source=record.text("source"))


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is measured.

    Attributes:
        source: the recipe's name, or what was asked for where that name does not tell it apart.
        model: the method, or an artifact's file.
        protocol: `paper`: class texts are encoded with every batch, at all positions of the text
            tower, as the baselines' public code evaluates. `cached`: class vectors are stored.
        precision: of weights and arithmetic.
        n_parameters: numbers that it holds; None where not known.
        n_bytes: of its file; None for a model in memory.
        gmacs_image: multiply-adds an image, 1e9; None where not counted.
        gmacs_call: further ones a call, however many images it has: class texts.
        accuracy: None where no run or comparison has it.
        gate: how a file stands to its recipe's gates; None for other models.
    """

    source: str
    model: str
    protocol: Protocol
    precision: str
    n_parameters: int | None
    n_bytes: int | None
    gmacs_image: float | None
    gmacs_call: float
    accuracy: Accuracy | None
    gate: str | None

    @property
    def label(self) -> str:
        """How tables and messages name it within its source."""
        return self.model if self.protocol == "cached" else f"{self.model}, {self.protocol}"

    def gmacs(self, batch: int) -> float | None:
        """Multiply-adds an image in a batch of this size, 1e9."""
        return None if self.gmacs_image is None else self.gmacs_image + self.gmacs_call / batch


@dataclass(frozen=True)
class SpeedRow(ModelFacts):
    """One model as one thing runs it.

    Attributes:
        runtime: what runs it, with its version; - where it could not be loaded.
        device: `CPU` or `GPU`.
        memory_bytes: peak resident memory that loading it and a first call of one image added.
        compute_percent: share of the machine's measured matrix-product peak, at the batch that
            reaches most.
        copy_percent: share of its copy bandwidth that reading the file once a call takes, likewise.
        problem: why measuring ended early; None where it did not.
        measurements: by batch.
    """

    runtime: str
    device: str
    memory_bytes: int | None
    compute_percent: float | None
    copy_percent: float | None
    problem: str | None
    measurements: tuple[Measurement, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others in two tables of the same models."""
        engine = self.runtime.split()[0]
        return (self.source, self.model, self.protocol, self.precision, engine, self.device)

    def at(self, batch: int, inputs: Inputs) -> Measurement | None:
        """The measurement of a batch size, if there is one."""
        found = (m for m in self.measurements if (m.batch, m.inputs) == (batch, inputs))
        return next(found, None)

    @classmethod
    def from_record(cls, record: Record) -> SpeedRow:
        """Reads one entry of `rows`.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        record.check_keys(*(entry.name for entry in fields(cls)))

        def number(key: str) -> float:
            return record.number(key, highest=_LARGE)

        def count(key: str) -> int:
            return record.count(key, lowest=0)

        runtime = record.text("runtime")
        if not runtime.strip():
            raise record.error("runtime", runtime, "what ran it, with its version")
        return cls(
            source=record.text("source"),
            model=record.text("model"),
            protocol=record.one_of("protocol", PROTOCOLS),
            precision=record.text("precision"),
            runtime=runtime,
            device=record.text("device"),
            n_parameters=record.optional("n_parameters", count),
            n_bytes=record.optional("n_bytes", count),
            gmacs_image=record.optional("gmacs_image", number),
            gmacs_call=number("gmacs_call"),
            memory_bytes=record.optional("memory_bytes", count),
            accuracy=record.optional("accuracy", lambda k: Accuracy.from_record(record.record(k))),
            gate=record.optional("gate", record.text),
            compute_percent=record.optional("compute_percent", number),
            copy_percent=record.optional("copy_percent", number),
            problem=record.optional("problem", record.text),
            measurements=tuple(map(Measurement.from_record, record.records("measurements"))),
        )


@dataclass(frozen=True)
class SpeedResult:
    """One call of `kdedge bench`.

    Attributes:
        command: as it was typed.
        measured_at: when, ISO 8601.
        settings: seconds, calls and rounds asked for, batches, threads.
        device: the device sheet, as `bench.device.device_sheet` gives it.
        peaks: the machine's measured limits, as `bench.peak.measure_peaks` gives them.
        baseline: what ratios are against, as a row's label; None where nothing ran.
        rows: the models, in the order of the table.
        left_out: what could not be measured here, and why.
    """

    command: str
    measured_at: str
    settings: dict[str, Any]
    device: dict[str, Any]
    peaks: dict[str, Any]
    baseline: str | None
    rows: tuple[SpeedRow, ...]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values that JSON holds without loss."""
        return {"format": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, value: object, where: str) -> SpeedResult:
        """Reads what `to_dict` gave, perhaps after a way through JSON.

        Args:
            value: the object.
            where: what messages begin with, such as the file.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
            SetupError: a newer kdedge wrote it.
        """
        record = Record(value, where, remedy=_REMEDY)
        version = record.count("format")
        if version > FORMAT_VERSION:
            raise SetupError(
                f"{where} has format {version}, and this kdedge reads up to {FORMAT_VERSION}.\n"
                "  Install the newer one here, from its wheel or its folder."
            )
        record.check_keys("format", *(entry.name for entry in fields(cls)))
        return cls(
            command=record.text("command"),
            measured_at=record.text("measured_at"),
            settings=record.mapping("settings"),
            device=record.mapping("device"),
            peaks=record.mapping("peaks"),
            baseline=record.optional("baseline", record.text),
            rows=tuple(map(SpeedRow.from_record, record.records("rows"))),
            left_out={key: str(why) for key, why in record.mapping("left_out").items()},
        )
