"""Makes a report's chapters: one per run and, for several runs, one that compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kdedge.benchmarking.tables import machine, named_rows, sizes, throughputs
from kdedge.reporting.accuracy import (
    accuracy_table,
    calibration_blocks,
    confusion_blocks,
    gain_blocks,
)
from kdedge.reporting.blocks import Block, Chapter, Note, Plot, Section, Table
from kdedge.reporting.disagreements import galleries
from kdedge.reporting.figures import training_curves
from kdedge.reporting.int8 import search_blocks
from kdedge.reporting.provenance import done_blocks, files_table, provenance_blocks
from kdedge.reporting.records import RunRecords
from kdedge.reporting.samples import labeled_samples
from kdedge.reporting.speed import as_table, front_blocks, how, speed_blocks
from kdedge.reporting.unlabeled import target_blocks, unlabeled_blocks
from kdedge.results import by_images
from kdedge.runs.headline import fastest_file, headline
from kdedge.runs.results import labeled_results, model_label, run_label
from kdedge.runtime.cpu_choice import readable_choices
from kdedge.speed_results import SpeedResult
from kdedge.tables import figure, percent, points


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
        headline=_headline(records),
    )


def _headline(records: RunRecords) -> str | None:
    if records.run.kind != "student":
        return None
    summary = records.provenance.summary
    return headline(records.results, records.unlabeled, summary, records.speed, records.artifact)


_Sections = Iterator[tuple[str, str, Sequence[Block]]]


def _made(sections: _Sections, prefix: str) -> list[Section]:
    return [Section(f"{prefix}{name}", title, blocks) for name, title, blocks in sections if blocks]


def _run_sections(records: RunRecords, prefix: str) -> _Sections:
    """Name, title and blocks of each section that the run has records for."""
    run, results, details = records.run, records.results, records.details
    rows = labeled_results(run, results)
    accuracies: list[Block] = [accuracy_table(same) for same in by_images(rows)]
    if records.speed is not None:
        named, measured = named_rows(records.speed), how(records.speed)
        accuracies += front_blocks(named, measured, f"{prefix}accuracy-latency")
    yield "accuracy", "Accuracy", accuracies
    own = details.get(run.kind)
    if own is not None and own.samples:
        yield "samples", "Sample images", labeled_samples(own.samples, records.recipe)
    if records.unlabeled is not None:
        blocks = unlabeled_blocks(records.unlabeled, records.recipe, f"{prefix}predicted")
        yield "unlabeled", "Without labels", blocks
    if records.targets is not None:
        blocks = target_blocks(records.targets, f"{prefix}targets")
        yield "targets", "Soft labels", blocks
    yield "done", "Method and data", done_blocks(records)
    if records.training.steps:
        yield "training", "Training", [_training(records, f"{prefix}training")]
    models = {
        model_label(run, name): details[name]
        for name in dict.fromkeys((run.kind, "zeroshot", "teacher"))
        if name in details and (name == run.kind or name in records.comparable)
    }
    if models:
        blocks = calibration_blocks(models, f"{prefix}calibration")
        yield "calibration", "Calibration", blocks
    if "zeroshot" in records.comparable:
        teacher = records.comparable.get("teacher") if run.kind == "student" else None
        blocks = gain_blocks(results[run.kind], results["zeroshot"], f"{prefix}gains", teacher)
        yield "gains", "Gains over zero-shot CLIP", blocks
    if own is not None:
        blocks = confusion_blocks(run_label(run), own, f"{prefix}confusion")
        yield "confusions", "Confusions", blocks
    if records.artifact is not None:
        fastest = [
            Table(
                f"Fastest on {choice.machine.cpu}: {choice.file}",
                *choice.table,
                " ".join(choice.notes),
                n_text=2,
            )
            for choice in readable_choices(records.artifact)
        ]
        yield "files", "Exported files", [files_table(records.artifact), *fastest]
        yield "int8", "INT8 by layer", search_blocks(records.artifact, f"{prefix}int8")
    if records.speed is not None:
        yield "speed", "Speed", speed_blocks(records.speed)
    if records.artifact is not None:
        images = galleries(records.artifact, records.recipe)
        yield "disagreements", "Largest disagreements of INT8", images
    yield "provenance", "Provenance", provenance_blocks(records)


def _figures(records: RunRecords) -> list[tuple[str, str, str]]:
    """The most important values."""
    own, plain = records.results.get(records.run.kind), records.comparable.get("zeroshot")
    teacher, unlabeled = records.comparable.get("teacher"), records.unlabeled
    found = []
    if unlabeled is not None and unlabeled.agreement_percent is not None:
        agreement = f"{percent(unlabeled.agreement_percent)} %"
        found.append(("agreement with the teacher", agreement, unlabeled.images))
    if own is not None:
        has_mean = own.harmonic_mean is not None
        key, name = ("harmonic_mean", "harmonic mean") if has_mean else ("all", "accuracy")
        value, before = getattr(own, key), None if plain is None else getattr(plain, key)
        against = "" if before is None else f"{points(value - before)} points over zero-shot"
        found.append((name, f"{percent(value)} %", against))
        if teacher is not None:
            theirs = getattr(teacher, key)
            lead = "" if theirs is None else f"the student: {points(value - theirs)} points"
            found.append((f"the teacher's {name}", f"{percent(theirs)} %", lead))
        found.append(("calibration error", f"{percent(own.ece_percent)} %", "15 bins, all names"))
    fastest = None if records.speed is None else fastest_file(records.speed)
    if fastest is not None:
        found.append(("one image", fastest[1], fastest[0]))
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
    tables = [accuracy_table(rows) for rows in by_images(accuracies)]
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("accuracy", "Accuracy", tables),
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
    measured_on = (
        f"{machine(first)}; each run was measured by its own kdedge bench (see its chapter)."
    )
    rows = [named for name, result in same for named in named_rows(result, f"{name}: ")]
    blocks = [
        *front_blocks(rows, measured_on, "accuracy-latency"),
        as_table(sizes(rows), measured_on),
        as_table(throughputs(rows), measured_on),
    ]
    others = [name for name, result in measured if (name, result) not in same]
    if others:
        line = f"Measured on another machine, so shown only in its chapter: {', '.join(others)}."
        blocks.append(Note([line]))
    return blocks


def _machine(result: SpeedResult) -> tuple[object, ...]:
    return tuple(result.device.get(key) for key in ("cpu", "cpu_cores", "gpus", "jetson"))
