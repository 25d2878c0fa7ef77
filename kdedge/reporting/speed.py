"""Makes tables of measured speed from a record of `kdedge bench`."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.reporting.blocks import Block, Note, Table
from kdedge.reporting.numbers import figure
from kdedge.speed_results import Inputs, Measurement, SpeedResult, SpeedRow

_PERCENTILES = ["p50", "p90", "p99", "cv %"]


NamedRow = tuple[str, SpeedRow]
"""A measured model's name in the tables, and its measurements."""


def named_rows(result: SpeedResult, prefix: str = "") -> list[NamedRow]:
    """Names the rows of a result; names include the source if there are several."""
    several = len({row.source for row in result.rows}) > 1
    return [
        (prefix + (f"{row.source}: {row.label}" if several else row.label), row)
        for row in result.rows
    ]


def speed_blocks(result: SpeedResult) -> list[Block]:
    """Makes the tables of one call of `kdedge bench`, and remarks on them."""
    rows, measured = named_rows(result), how(result)
    tables = [
        sizes(rows, measured),
        _latencies(rows, result, "on device"),
        _latencies(rows, result, "copied"),
        throughputs(rows, measured),
        _end_to_end(rows, measured),
        _power(rows, measured),
    ]
    notes = _notes(rows, result)
    return [*(table for table in tables if table.rows), *([Note(notes)] if notes else [])]


def how(result: SpeedResult) -> str:
    """Machine, command and time of a measurement."""
    return f"{machine(result)}; {result.command}, {result.measured_at}."


def machine(result: SpeedResult) -> str:
    """The machine of a measurement."""
    device, threads = result.device, result.settings.get("threads")
    parts = [f"{device.get('cpu')}, {device.get('cpu_cores')} cores"]
    parts.append("default threads of each library" if threads is None else f"{threads} threads")
    parts += [f"{gpu.get('name')}, driver {gpu.get('driver')}" for gpu in device.get("gpus", [])]
    if "jetson" in device:
        parts += [str(device["jetson"].get(key)) for key in ("board", "power_mode")]
    return ", ".join(parts)


def sizes(rows: Sequence[NamedRow], measured: str) -> Table:
    """Parameters, file size, GMACs and memory; `measured` ends the caption."""
    cells = []
    for label, row in rows:
        gmacs = row.gmacs(1)
        cells.append(
            [
                *(label, row.precision, f"{row.runtime}, {row.device}"),
                *(figure(row.n_parameters, 1e6), figure(row.n_bytes, 1e6)),
                *(figure(gmacs), figure(None if gmacs is None else 2 * gmacs)),
                figure(row.memory_bytes, 2**20),
            ]
        )
    header = ["model", "precision", "runs in", "M param.", "MB", "GMACs", "GFLOPs", "MiB"]
    caption = (
        "Million parameters, file size, work per image at batch 1 (GFLOPs = 2 GMACs), peak memory"
        f" added by loading and a first call. {measured}"
    )
    return Table("Size and work", header, cells, caption, n_text=3)


def _latencies(rows: Sequence[NamedRow], result: SpeedResult, inputs: Inputs) -> Table:
    """Times at the smallest measured batch; models without it are left out."""
    batches = [m.batch for _, row in rows for m in row.measurements if m.inputs == inputs]
    batch = min(batches, default=1)
    cells = []
    for label, row in rows:
        if (found := row.at(batch, inputs)) is not None:
            ratio = ["-", "-"]
            if found.ratio is not None and result.has_rank(found):
                ratio = [f"{found.ratio:.2f}", f"{found.ratio_low:.2f}-{found.ratio_high:.2f}"]
            cells.append([label, *_times(found), *ratio, f"{found.n_calls:,}"])
    what = "copied to the device and logits back" if inputs == "copied" else "in its memory"
    header = ["model", *_PERCENTILES, "times faster", "low-high", "calls"]
    caption = (
        f"ms per call at batch {batch}, images {what}, after warm-up; times faster than"
        f" {result.baseline}: median and range over {result.settings.get('n_rounds')} interleaved"
        f" rounds. {how(result)}"
    )
    return Table(f"Latency, images {what}", header, cells, caption)


def _times(found: Measurement) -> list[str]:
    mark = "!" if found.doubt else ""
    times = map(figure, (found.p50_ms, found.p90_ms, found.p99_ms))
    return [*times, f"{found.cv_percent:.1f}{mark}"]


def throughputs(rows: Sequence[NamedRow], measured: str) -> Table:
    """Images per second by batch; `measured` ends the caption."""
    batches = sorted({m.batch for _, row in rows for m in row.measurements if is_model_alone(m)})
    cells = []
    for label, row in rows:
        found = [model_alone(row, batch) for batch in batches]
        if any(found):
            speeds = [figure(None if m is None else m.images_per_second) for m in found]
            cells.append([label, *speeds])
    header = ["model", *(f"batch {batch}" for batch in batches)]
    return Table("Images per second", header, cells, f"Batch over mean time. {measured}")


def _end_to_end(rows: Sequence[NamedRow], measured: str) -> Table:
    cells = [
        [label, *_times(found), figure(found.images_per_second)]
        for label, row in rows
        if (found := row.at(1, "image file")) is not None
    ]
    caption = f"ms from the bytes of a 640x480 JPEG to the prediction. {measured}"
    return Table("From file to prediction", ["model", *_PERCENTILES, "images/s"], cells, caption)


def _power(rows: Sequence[NamedRow], measured: str) -> Table:
    cells = [
        [label, str(found.batch), figure(found.watts), figure(found.joules_per_image)]
        for label, row in rows
        for found in row.measurements
        if found.watts is not None and is_model_alone(found)
    ]
    header = ["model", "batch", "W", "J/image"]
    return Table("Power and energy", header, cells, f"Mean power during the calls. {measured}")


def is_model_alone(found: Measurement) -> bool:
    """Whether the model was timed without reading an image file."""
    return found.inputs != "image file"


def model_alone(row: SpeedRow, batch: int) -> Measurement | None:
    """The measurement of a batch on the device; with copies if only that was measured."""
    return row.at(batch, "on device") or row.at(batch, "copied")


def _notes(rows: Sequence[NamedRow], result: SpeedResult) -> list[str]:
    lines = []
    if any(row.protocol == "paper" for _, row in rows):
        lines.append(
            "paper: class texts are encoded with every batch, as the methods' public code"
            " evaluates. All other rows use stored class vectors."
        )
    if result.doubts:
        lines.append(
            f"! {len(result.doubts)} times are in doubt and not ranked ({result.doubts[0]})."
            " Measure on a quiet machine: kdedge bench --wait-quiet 60."
        )
    if result.device.get("throttled"):
        lines.append("The device was throttled during the measurement (heat, power or current).")
    lines += [f"{label} ended early: {row.problem}" for label, row in rows if row.problem]
    return [*lines, *(f"Left out: {name}: {why}" for name, why in result.left_out.items())]
