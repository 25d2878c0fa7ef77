"""Formats a measurement for a terminal or as Markdown: several narrow tables, 60 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.records.speed import (
    Measurement,
    NamedRow,
    SpeedResult,
    SpeedRow,
    TimedFrom,
    accuracies,
    at_smallest_batch,
    named_rows,
)
from kdedge.records.tables import Table, decimals, digits


def make_tables(result: SpeedResult) -> list[Table]:
    """Returns the tables of a result that are not empty."""
    rows = named_rows(result)
    tables = [
        result.table,
        sizes(rows),
        _latencies(rows, "on device"),
        _ratios(rows, result),
        _latencies(rows, "copied"),
        throughputs(rows),
        _end_to_end(rows),
        _power(rows),
        *_accuracies(rows),
        _agreements(rows),
    ]
    return [table for table in tables if table.rows]


def sizes(named: Sequence[NamedRow]) -> Table:
    """Parameters, file, memory and work of each model."""
    rows = [
        [
            label,
            digits(row.n_parameters, 1e6),
            digits(row.n_bytes, 1e6),
            digits(row.memory_bytes, 2**20),
            digits(row.gmacs(1)),
            digits(row.gflops),
        ]
        for label, row in named
    ]
    title = "Million parameters for a prediction; MB of file, MiB of memory, work per image"
    return Table(title, ["model", "M par.", "MB", "MiB", "GMACs", "GFLOPs"], rows)


def _latencies(named: Sequence[NamedRow], inputs: TimedFrom) -> Table:
    smallest = [(label, m) for label, _, m in at_smallest_batch(named, inputs) if m is not None]
    rows = [[label, *_percentiles(m)] for label, m in smallest]
    batch = smallest[0][1].batch if smallest else 1
    copied = ", images copied to the device and logits back" if inputs == "copied" else ""
    title = f"Latency, ms per call at batch {batch}{copied}"
    return Table(title, ["model", "p50", "p90", "p99"], rows)


def _ratios(named: Sequence[NamedRow], result: SpeedResult) -> Table:
    rows = []
    for smallest in at_smallest_batch(named, "on device"):
        time = smallest.time
        if time is not None:
            mark = "!" if time.doubt else ""
            variation = f"{time.cv_percent:.1f}{mark}"
            rows.append([smallest.label, *result.ratio_cells(time), variation])
    title = (
        f"Speed relative to {result.baseline}: median, lowest and highest of"
        f" {result.settings['n_rounds']} rounds; variation of the calls"
    )
    return Table(title, ["model", "ratio", "low", "high", "cv %"], rows)


def throughputs(named: Sequence[NamedRow]) -> Table:
    """Images per second of each model by batch."""
    batches = sorted(
        {m.batch for _, row in named for m in row.measurements if m.inputs != "image file"}
    )
    rows = []
    for label, row in named:
        times = [row.without_file(batch) for batch in batches]
        if any(times):
            cells = ["-" if m is None else m.marked(m.images_per_second) for m in times]
            rows.append([label, *cells])
    return Table("FPS: images per second by batch", ["model", *map(str, batches)], rows)


def _end_to_end(named: Sequence[NamedRow]) -> Table:
    rows = []
    for label, row in named:
        time = row.at(1, "image file")
        if time is not None:
            rows.append([label, *_percentiles(time), digits(time.images_per_second)])
    header = ["model", "p50", "p90", "p99", "FPS"]
    return Table("End to end, ms: a JPEG of 640x480 decoded, resized and classified", header, rows)


def _power(named: Sequence[NamedRow]) -> Table:
    rows = []
    for label, row in named:
        for time in row.measurements:
            if time.watts is not None and time.inputs != "image file":
                joules = digits(time.joules_per_image)
                rows.append([label, str(time.batch), digits(time.watts), joules])
    title = "Mean power during the calls, and energy"
    return Table(title, ["model", "batch", "W", "J/image"], rows)


def notes(result: SpeedResult) -> list[str]:
    """Notes that explain the figures."""
    settings = result.settings
    runtimes = dict.fromkeys(row.runtime for row in result.rows if row.runtime != "-")
    lines = [f"Measured on {machine_text(result)}; {', '.join(runtimes)}."]
    if any(row.protocol == "paper" for row in result.rows):
        lines.append(
            "paper: class texts are encoded with every batch, as the methods' public code"
            " evaluates. The other models use stored class vectors."
        )
    sources = dict.fromkeys(row.accuracy.source for row in result.rows if row.accuracy)
    if sources:
        lines.append(f"Accuracies are from {'; '.join(sources)}.")
    lines += result.caveats
    n_calls = settings["n_calls"]
    few = sorted({row.label for row in result.rows if _has_few_calls(row, n_calls)})
    if few:
        lines.append(f"Fewer than {n_calls} calls, as they are slow: {', '.join(few)}.")
    return [*lines, *result.problems]


def _has_few_calls(row: SpeedRow, n_calls: int) -> bool:
    """Whether a model is so slow that one of its measurements has fewer calls than planned."""
    return any(measurement.n_calls < n_calls for measurement in row.measurements)


def machine_text(result: SpeedResult) -> str:
    """The machine of a measurement."""
    device = result.device
    parts = [f"{device['cpu']}, {device['cpu_cores']} cores"]
    threads = result.settings["threads"]
    openmp_threads = device.get("omp_num_threads")
    if threads is not None:
        parts.append(f"{threads} threads")
    elif openmp_threads:
        parts.append(f"default threads of each library (OMP_NUM_THREADS {openmp_threads})")
    else:
        parts.append("default threads of each library")
    may_spin = device.get("threads_spin")
    if may_spin is not None:
        wait = "spin for a short time" if may_spin else "sleep"
        parts.append(f"which {wait} while they wait")
    for gpu in device.get("gpus", []):
        parts.append(f"{gpu['name']}, driver {gpu['driver']}")
    if "jetson" in device:
        parts += [device["jetson"]["board"], device["jetson"]["power_mode"]]
    return ", ".join(parts)


def as_markdown(result: SpeedResult) -> str:
    """Formats the tables as Markdown."""
    blocks = [f"**{table.title}**\n\n{table.as_markdown()}" for table in make_tables(result)]
    blocks.append("\n".join(f"* {line}" for line in notes(result)))
    return "\n\n".join(blocks)


def _percentiles(time: Measurement) -> list[str]:
    return [time.marked(time.p50_ms), digits(time.p90_ms), digits(time.p99_ms)]


def _accuracies(named: Sequence[NamedRow]) -> list[Table]:
    """One table per set of images."""
    tables = []
    for group in accuracies(named):
        rows = [
            [label, *map(decimals, (a.base, a.novel, a.harmonic_mean, a.all))] for label, a in group
        ]
        title = f"Accuracy, top-1 in percent, on {group[0][1].n_images:,} images"
        tables.append(Table(title, ["model", "base", "novel", "HM", "all"], rows))
    return tables


def _agreements(named: Sequence[NamedRow]) -> Table:
    """Agreement of files with their float32 model, and the images it was measured on."""
    rows = []
    for label, row in named:
        accuracy = row.accuracy
        if accuracy is not None and accuracy.agreement is not None:
            rows.append([label, decimals(accuracy.agreement), accuracy.source])
    title = "Top-1 agreement of files with the float32 model, percent"
    return Table(title, ["model", "agree", "images"], rows)
