"""A report's chapters: one a run and, for several, one that compares them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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
from kdedge.report.numbers import percent, points, scaled
from kdedge.report.provenance import done_blocks, files_table, provenance_blocks
from kdedge.report.records import RunRecords
from kdedge.report.speed import how, machine, named_rows, sizes, speed_blocks, throughputs
from kdedge.runs.results import labeled_results, model_label, run_label
from kdedge.speed_results import SpeedResult


def make_chapters(runs: Sequence[RunRecords]) -> list[Chapter]:
    """Everything that a page says.

    Args:
        runs: one or more; pictures' names begin with the run's where there are several.
    """
    if len(runs) == 1:
        return [_run_chapter(runs[0], prefix="")]
    return [
        _comparison(runs),
        *(_run_chapter(records, prefix=f"{_plain_name(records)}-") for records in runs),
    ]


def _plain_name(records: RunRecords) -> str:
    """A run's name for files and links."""
    return re.sub(r"[^\w.]+", "-", records.run.name)


def _run_chapter(records: RunRecords, *, prefix: str) -> Chapter:
    sections = [
        ("done", "What was done", done_blocks(records)),
        ("accuracy", "Accuracy", _accuracy(records)),
        ("training", "Training", _training(records, prefix)),
        ("gains", "Gains over zero-shot CLIP", _gains(records, prefix)),
        ("confusions", "Confusions", _confusions(records, prefix)),
        ("calibration", "Calibration", _calibration(records, prefix)),
        ("files", "Exported files", _files(records)),
        ("speed", "Speed", _speed(records, prefix)),
        ("disagreements", "Worst answers of INT8", _disagreements(records)),
        ("provenance", "Provenance", provenance_blocks(records)),
    ]
    own = records.results.get(records.run.kind)
    parts = [records.run.kind, str(records.provenance.method), str(records.provenance.status)]
    if own is not None:
        parts += [f"{len(own.per_class):,} classes", f"{own.n_images:,} test images"]
    return Chapter(
        anchor=f"{prefix}run",
        title=records.run.name,
        subtitle=" · ".join(parts),
        sections=_filled(sections, prefix),
        figures=_figures(records),
    )


def _filled(sections: Iterable[tuple[str, str, Sequence[Block]]], prefix: str) -> list[Section]:
    return [Section(f"{prefix}{name}", title, blocks) for name, title, blocks in sections if blocks]


def _figures(records: RunRecords) -> list[tuple[str, str, str]]:
    """The few figures that a reader looks for first."""
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
            size = f"{scaled(file.n_bytes, 1e6)} MB"
            agreement = f"{percent(file.parity.agreement_percent)} %"
            found.append((f"agreement of {file.name}", agreement, f"{size}, gate {file.gate}"))
    return found


def _accuracy(records: RunRecords) -> list[Block]:
    rows = labeled_results(records.run, records.results)
    return [accuracy_table(rows)] if rows else []


def _training(records: RunRecords, prefix: str) -> list[Block]:
    log = records.training
    if not log.steps:
        return []
    caption = (
        f"{len(log.steps):,} written steps of {log.steps[-1]['step']:,}"
        f" and {len(log.epochs)} epochs of {records.run.metrics.name}, on"
        f" {records.provenance.device}. Points are means over an epoch: the loss of all its"
        " steps, others of the written ones."
    )
    return [Plot(f"{prefix}training", "Training", training_curves(log), caption)]


def _gains(records: RunRecords, prefix: str) -> list[Block]:
    own, plain = records.results.get(records.run.kind), records.results.get("zeroshot")
    if own is None or plain is None:
        return []
    return gain_blocks(own, plain, f"{prefix}gains")


def _confusions(records: RunRecords, prefix: str) -> list[Block]:
    details = records.details.get(records.run.kind)
    if details is None:
        return []
    return confusion_blocks(run_label(records.run), details, f"{prefix}confusion")


def _calibration(records: RunRecords, prefix: str) -> list[Block]:
    names = [name for name in (records.run.kind, "zeroshot") if name in records.details]
    models = {model_label(records.run, name): records.details[name] for name in names}
    return calibration_blocks(models, f"{prefix}calibration") if models else []


def _files(records: RunRecords) -> list[Block]:
    return [] if records.artifact is None else [files_table(records.artifact)]


def _speed(records: RunRecords, prefix: str) -> list[Block]:
    result = records.speed
    if result is None:
        return []
    return [
        *front_blocks(named_rows(result), how(result), f"{prefix}accuracy-latency"),
        *speed_blocks(result),
    ]


def _disagreements(records: RunRecords) -> list[Block]:
    if records.artifact is None:
        return []
    return list(galleries(records.artifact, records.recipe))


def _comparison(runs: Sequence[RunRecords]) -> Chapter:
    accuracies = [
        (f"{records.run.name}: {label}", result)
        for records in runs
        for label, result in labeled_results(records.run, records.results)
    ]
    sections: list[tuple[str, str, list[Block]]] = [
        ("accuracy", "Accuracy", [accuracy_table(accuracies)] if accuracies else []),
        ("speed", "Speed", _common_speed(runs)),
    ]
    return Chapter(
        anchor="comparison",
        title="Comparison",
        subtitle=", ".join(records.run.name for records in runs),
        sections=_filled(sections, "comparison-"),
    )


def _common_speed(runs: Sequence[RunRecords]) -> list[Block]:
    """Speed of the runs that were measured on the first one's machine; the others are named."""
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
        blocks.append(
            Note([f"Measured on another machine, so in its own chapter: {', '.join(others)}."])
        )
    return blocks


def _machine(result: SpeedResult) -> tuple[object, ...]:
    device = result.device
    return device.get("cpu"), device.get("cpu_cores"), device.get("gpus"), device.get("jetson")
