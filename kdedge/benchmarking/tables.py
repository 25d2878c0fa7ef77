"""Formats a measurement for a terminal or as Markdown: several narrow tables, 60 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.records.evaluation import by_images
from kdedge.records.speed import Accuracy, Measurement, SpeedResult, SpeedRow, TimedFrom
from kdedge.records.tables import Grid, figure, percent

NamedRow = tuple[str, SpeedRow]
"""A measured model's name in the tables, and its measurements."""


def make_grids(result: SpeedResult) -> list[Grid]:
    """Returns the tables of a result, without empty ones."""
    rows = named_rows(result)
    grids = [
        summary(result),
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
    return [grid for grid in grids if grid.rows]


def summary(result: SpeedResult) -> Grid:
    """The main table, with one line per model."""
    rows = []
    named = named_rows(result)
    for label, row, first in _first(named, "on device"):
        measured = [m for m in row.measurements if m.inputs == "on device"]
        sure = [m for m in measured if m.doubt is None] or measured
        best = max(sure, key=lambda m: m.images_per_second, default=None)
        rows.append(
            [
                label,
                figure(row.gflops(1)),
                "-" if first is None else _marked(first, first.p50_ms),
                "-" if best is None else _marked(best, best.images_per_second),
                _ratio_cells(result, first)[0],
                percent(None if row.accuracy is None else row.accuracy.all),
            ]
        )
    title = (
        f"GFLOPs of one image, median ms per call, FPS at the best batch, speed relative"
        f" to {result.baseline}, accuracy over all classes in percent"
    )
    return Grid(title, ["model", "GFLOPs", "ms", "FPS", "ratio", "acc."], rows)


def named_rows(result: SpeedResult, prefix: str = "") -> list[NamedRow]:
    """Names the rows of a result; names include the source if there are several."""
    several = len({row.source for row in result.rows}) > 1
    return [
        (prefix + (f"{row.source}: {row.label}" if several else row.label), row)
        for row in result.rows
    ]


def sizes(named: Sequence[NamedRow]) -> Grid:
    """Parameters, file, memory and work of each model."""
    rows = [
        [
            label,
            *(figure(row.n_parameters, 1e6), figure(row.n_bytes, 1e6)),
            figure(row.memory_bytes, 2**20),
            *(figure(row.gmacs(1)), figure(row.gflops(1))),
        ]
        for label, row in named
    ]
    title = "Million parameters, MB of the file, MiB of memory and work for one image"
    return Grid(title, ["model", "M par.", "MB", "MiB", "GMACs", "GFLOPs"], rows)


def _first(
    named: Sequence[NamedRow], inputs: TimedFrom
) -> list[tuple[str, SpeedRow, Measurement | None]]:
    """Each row with its measurement at the smallest measured batch."""
    batches = [m.batch for _, row in named for m in row.measurements if m.inputs == inputs]
    smallest = min(batches, default=1)
    return [(label, row, row.at(smallest, inputs)) for label, row in named]


def _latencies(named: Sequence[NamedRow], inputs: TimedFrom) -> Grid:
    firsts = [(label, m) for label, _, m in _first(named, inputs) if m is not None]
    rows = [[label, *_percentiles(m)] for label, m in firsts]
    batch = firsts[0][1].batch if firsts else 1
    copied = ", images copied to the device and logits back" if inputs == "copied" else ""
    return Grid(
        f"Latency, ms per call at batch {batch}{copied}", ["model", "p50", "p90", "p99"], rows
    )


def _ratios(named: Sequence[NamedRow], result: SpeedResult) -> Grid:
    rows = []
    for label, _, first in _first(named, "on device"):
        if first is not None:
            mark = "!" if first.doubt else ""
            rows.append([label, *_ratio_cells(result, first), f"{first.cv_percent:.1f}{mark}"])
    title = (
        f"Speed relative to {result.baseline}: median, lowest and highest of"
        f" {result.settings['n_rounds']} rounds; variation of the calls"
    )
    return Grid(title, ["model", "ratio", "low", "high", "cv %"], rows)


def throughputs(named: Sequence[NamedRow]) -> Grid:
    """Images per second of each model by batch."""
    batches = sorted(
        {m.batch for _, row in named for m in row.measurements if m.inputs != "image file"}
    )
    rows = []
    for label, row in named:
        times = [row.alone(batch) for batch in batches]
        if any(times):
            rows.append(
                [label, *("-" if m is None else _marked(m, m.images_per_second) for m in times)]
            )
    return Grid("FPS: images per second by batch", ["model", *map(str, batches)], rows)


def _end_to_end(named: Sequence[NamedRow]) -> Grid:
    rows = [
        [label, *_percentiles(time), figure(time.images_per_second)]
        for label, row in named
        if (time := row.at(1, "image file")) is not None
    ]
    header = ["model", "p50", "p90", "p99", "FPS"]
    return Grid("End to end, ms: a JPEG of 640x480 decoded, resized and classified", header, rows)


def _power(named: Sequence[NamedRow]) -> Grid:
    rows = [
        [label, str(time.batch), figure(time.watts), figure(time.joules_per_image)]
        for label, row in named
        for time in row.measurements
        if time.watts is not None and time.inputs != "image file"
    ]
    return Grid("Mean power during the calls, and energy", ["model", "batch", "W", "J/image"], rows)


def notes(result: SpeedResult) -> list[str]:
    """Notes that explain the figures."""
    settings = result.settings
    runtimes = dict.fromkeys(row.runtime for row in result.rows if row.runtime != "-")
    lines = [f"Measured on {machine(result)}; {', '.join(runtimes)}."]
    if any(row.protocol == "paper" for row in result.rows):
        lines.append(
            "paper: class texts are encoded with every batch, as the methods' public code"
            " evaluates. The other models use stored class vectors."
        )
    sources = dict.fromkeys(row.accuracy.source for row in result.rows if row.accuracy)
    if sources:
        lines.append(f"Accuracies are from {'; '.join(sources)}.")
    lines += caveats(result)
    few = sorted(
        {
            row.label
            for row in result.rows
            for m in row.measurements
            if m.n_calls < settings["n_calls"]
        }
    )
    if few:
        lines.append(f"Fewer than {settings['n_calls']} calls, as they are slow: {', '.join(few)}.")
    return [*lines, *result.problems]


def caveats(result: SpeedResult) -> list[str]:
    """Caveats of the first table: about its columns and the machine."""
    lines = []
    n_sets = len(accuracies(named_rows(result)))
    if n_sets > 1:
        lines.append(f"! Accuracies are on {n_sets} different sets of images: see their tables.")
    if result.doubts:
        n_all = sum(len(row.measurements) for row in result.rows)
        lines.append(
            f"! {len(result.doubts)} of {n_all} times are in doubt and get no ratio"
            f" ({result.doubts[0]}). Measure again on a quiet machine."
        )
    if result.device.get("throttled"):
        lines.append("! The device was throttled during the measurement (heat, power or current).")
    elif result.device.get("throttled") is None:
        lines.append("This machine does not tell whether it was throttled during the measurement.")
    return lines


def machine(result: SpeedResult) -> str:
    """The machine of a measurement."""
    device = result.device
    parts = [f"{device['cpu']}, {device['cpu_cores']} cores"]
    threads = result.settings["threads"]
    chosen = f" (OMP_NUM_THREADS {known})" if (known := device.get("omp_num_threads")) else ""
    free = f"default threads of each library{chosen}"
    parts.append(free if threads is None else f"{threads} threads")
    if (may_spin := device.get("threads_spin")) is not None:
        parts.append(f"which {'spin for a short time' if may_spin else 'sleep'} while they wait")
    for gpu in device.get("gpus", []):
        parts.append(f"{gpu['name']}, driver {gpu['driver']}")
    if "jetson" in device:
        parts += [device["jetson"]["board"], device["jetson"]["power_mode"]]
    return ", ".join(parts)


def as_markdown(result: SpeedResult) -> str:
    """Formats the tables as Markdown."""
    blocks = [f"**{grid.title}**\n\n{grid.as_markdown()}" for grid in make_grids(result)]
    blocks.append("\n".join(f"* {line}" for line in notes(result)))
    return "\n\n".join(blocks)


def _marked(time: Measurement, value: float) -> str:
    """A number, with a mark if its times are in doubt."""
    return f"{figure(value)}!" if time.doubt else figure(value)


def _percentiles(time: Measurement) -> list[str]:
    return [_marked(time, time.p50_ms), figure(time.p90_ms), figure(time.p99_ms)]


def _ratio_cells(result: SpeedResult, time: Measurement | None) -> list[str]:
    """Median, lowest and highest ratio; dashes if not ranked."""
    if time is None or not result.has_rank(time):
        return ["-"] * 3
    ratios = (time.ratio, time.ratio_low, time.ratio_high)
    return ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]


def accuracies(named: Sequence[NamedRow]) -> list[list[tuple[str, Accuracy]]]:
    """The known accuracies by label, grouped by their images."""
    known = [(label, row.accuracy) for label, row in named if row.accuracy is not None]
    return by_images([(label, accuracy) for label, accuracy in known if accuracy.all is not None])


def _accuracies(named: Sequence[NamedRow]) -> list[Grid]:
    """One table per set of images."""
    grids = []
    for group in accuracies(named):
        rows = [
            [label, *map(percent, (a.base, a.novel, a.harmonic_mean, a.all))] for label, a in group
        ]
        n_images = group[0][1].n_images
        title = f"Accuracy, top-1 in percent, on {n_images:,} images"
        grids.append(Grid(title, ["model", "base", "novel", "HM", "all"], rows))
    return grids


def _agreements(named: Sequence[NamedRow]) -> Grid:
    """Agreement of files with their float32 model, and the images it was measured on."""
    rows = [
        [label, percent(row.accuracy.agreement), row.accuracy.source]
        for label, row in named
        if row.accuracy is not None and row.accuracy.agreement is not None
    ]
    title = "Top-1 agreement of files with the float32 model, percent"
    return Grid(title, ["model", "agree", "images"], rows)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the positions of the points (time, accuracy) on the Pareto front, sorted by time.

    A point is dominated by one that is no slower and no less accurate, and better in one of the
    two.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
