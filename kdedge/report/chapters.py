"""A report's chapters: one for each run and, for several runs, one that compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kdedge.report.accuracy import (
    accuracy_table,
    calibration_blocks,
    confusion_blocks,
    gain_blocks,
)
from kdedge.report.blocks import Block, Chapter, Note, Plot, Section
from kdedge.report.disagreements import galleries
from kdedge.report.figures import training_curves
from kdedge.report.front import front_blocks
from kdedge.report.numbers import figure, percent, points
from kdedge.report.provenance import done_blocks, files_table, provenance_blocks
from kdedge.report.records import RunRecords
from kdedge.report.speed import how, machine, named_rows, sizes, speed_blocks, throughputs
from kdedge.runs.results import labeled_results, model_label, run_label
from kdedge.speed_results import SpeedResult


def make_chapters(runs: Sequence[RunRecords]) -> list[Chapter]:
    """Makes the chapters of one or more runs.

    For several runs, names of plots and links begin with the run's name.
    """
    if len(runs) == 1:
        return [_run_chapter(runs[0], prefix="")]
    names = [re.sub(r"[^\w.]+", "-", records.run.name) for records in runs]
    chapters = [_run_chapter(r, prefix=f"{name}-") for r, name in zip(runs, names, strict=True)]
    return [_comparison(runs), *chapters]


def _run_chapter(records: RunRecords, *, prefix: str) -> Chapter:
    own = records.results.get(records.run.kind)
    parts = [records.run.kind, str(records.provenance.method), str(records.provenance.status)]
    if own is not None:
        parts += [f"{len(own.per_class):,} classes", f"{own.n_images:,} test images"]
    return Chapter(
        anchor=f"{prefix}run",
        title=records.run.name,
        subtitle=" · ".join(parts),
        sections=_made(_run_sections(records, prefix), prefix),
        figures=_figures(records),
    )


_Sections = Iterator[tuple[str, str, Sequence[Block]]]


def _made(sections: _Sections, prefix: str) -> list[Section]:
    return [Section(f"{prefix}{name}", title, blocks) for name, title, blocks in sections if blocks]


def _run_sections(records: RunRecords, prefix: str) -> _Sections:
    """Name, title and blocks of each section that the run has records for."""
    run, results, details = records.run, records.results, records.details
    yield "done", "What was done", done_blocks(records)
    rows = labeled_results(run, results)
    if rows:
        yield "accuracy", "Accuracy", [accuracy_table(rows)]
    if records.training.steps:
        yield "training", "Training", [_training(records, f"{prefix}training")]
    if run.kind in results and "zeroshot" in results:
        blocks = gain_blocks(results[run.kind], results["zeroshot"], f"{prefix}gains")
        yield "gains", "Gains over zero-shot CLIP", blocks
    if run.kind in details:
        blocks = confusion_blocks(run_label(run), details[run.kind], f"{prefix}confusion")
        yield "confusions", "Confusions", blocks
    models = {
        model_label(run, name): details[name] for name in (run.kind, "zeroshot") if name in details
    }
    if models:
        blocks = calibration_blocks(models, f"{prefix}calibration")
        yield "calibration", "Calibration", blocks
    if records.artifact is not None:
        yield "files", "Exported files", [files_table(records.artifact)]
    if records.speed is not None:
        rows_by_name, measured = named_rows(records.speed), how(records.speed)
        front = front_blocks(rows_by_name, measured, f"{prefix}accuracy-latency")
        yield "speed", "Speed", [*front, *speed_blocks(records.speed)]
    if records.artifact is not None:
        images = galleries(records.artifact, records.recipe)
        yield "disagreements", "Largest disagreements of INT8", images
    yield "provenance", "Provenance", provenance_blocks(records)


def _figures(records: RunRecords) -> list[tuple[str, str, str]]:
    """The few values that a reader looks for first."""
    own, plain = records.results.get(records.run.kind), records.results.get("zeroshot")
    found = []
    if own is not None:
        has_mean = own.harmonic_mean is not None
        key, name = ("harmonic_mean", "harmonic mean") if has_mean else ("all", "accuracy")
        value, before = getattr(own, key), None if plain is None else getattr(plain, key)
        against = "" if before is None else f"{points(value - before)} points over zero-shot"
        found.append((name, f"{percent(value)} %", against))
        found.append(("calibration error", f"{percent(own.ece_percent)} %", "15 bins, all names"))
    for file in [] if records.artifact is None else records.artifact.files:
        if file.parity is not None and file.precision == "int8":
            size = f"{figure(file.n_bytes, 1e6)} MB"
            agreement = f"{percent(file.parity.agreement_percent)} %"
            found.append((f"agreement of {file.name}", agreement, f"{size}, gate {file.gate}"))
    return found


def _training(records: RunRecords, name: str) -> Plot:
    log = records.training
    caption = (
        f"{len(log.steps):,} logged steps of {log.steps[-1]['step']:,}"
        f" and {len(log.epochs)} epochs of {records.run.metrics.name}, on"
        f" {records.provenance.device}. Points are means over an epoch: the loss over all"
        " its steps, other values over the logged ones."
    )
    return Plot(name, "Training", training_curves(log), caption)


def _comparison(runs: Sequence[RunRecords]) -> Chapter:
    accuracies = [
        (f"{records.run.name}: {label}", result)
        for records in runs
        for label, result in labeled_results(records.run, records.results)
    ]
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("accuracy", "Accuracy", [accuracy_table(accuracies)] if accuracies else []),
        ("speed", "Speed", _common_speed(runs)),
    ]
    return Chapter(
        anchor="comparison",
        title="Comparison",
        subtitle=", ".join(records.run.name for records in runs),
        sections=_made(iter(sections), "comparison-"),
    )


def _common_speed(runs: Sequence[RunRecords]) -> list[Block]:
    """Speed of the runs measured on the first run's machine; a note names the others."""
    measured = [(records.run.name, records.speed) for records in runs if records.speed is not None]
    if not measured:
        return []
    first = measured[0][1]
    same = [(name, result) for name, result in measured if _machine(result) == _machine(first)]
    measured_on = f"{machine(first)}; each run by its own kdedge bench, as its chapter says."
    rows = [named for name, result in same for named in named_rows(result, f"{name}: ")]
    blocks = [
        *front_blocks(rows, measured_on, "accuracy-latency"),
        sizes(rows, measured_on),
        throughputs(rows, measured_on),
    ]
    others = [name for name, result in measured if (name, result) not in same]
    if others:
        line = f"Measured on another machine, so in its own chapter: {', '.join(others)}."
        blocks.append(Note([line]))
    return blocks


def _machine(result: SpeedResult) -> tuple[object, ...]:
    return tuple(result.device.get(key) for key in ("cpu", "cpu_cores", "gpus", "jetson"))
