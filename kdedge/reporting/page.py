"""A report's page: a chapter per run and, for several runs, one that compares them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdedge import __version__
from kdedge.benchmarking.tables import machine_text, sizes, throughputs
from kdedge.files import new_folder, write_atomic
from kdedge.records.evaluation import (
    EvalResult,
    SampleKind,
    UnlabeledResult,
    assumed_shares,
    by_images,
)
from kdedge.records.speed import SpeedResult, named_rows
from kdedge.records.tables import Table
from kdedge.reporting.accuracy import (
    MAX_ROWS,
    accuracy_table,
    calibration_blocks,
    class_table,
    confusion_plot,
    confusion_table,
)
from kdedge.reporting.blocks import Block, Chapter, Note, Plot, Section, Text
from kdedge.reporting.exported import exported_blocks, ship_blocks
from kdedge.reporting.figures import training_curves
from kdedge.reporting.headline import headline_of, verdict_of
from kdedge.reporting.image_cards import changed_cards, sample_cards
from kdedge.reporting.run_records import RunRecords
from kdedge.reporting.speed import front_plots, speed_blocks
from kdedge.runs.results import model_label, sorted_results

PAGE = "index.html"

_SAMPLES: Mapping[SampleKind, str] = {
    "wrong": "Wrong, with the highest confidence",
    "most unsure": "Lowest confidence",
    "right": "Right, evenly spaced",
}


def make_chapters(runs: Sequence[RunRecords]) -> list[Chapter]:
    """Makes the chapters of one or more runs.

    For several runs, names of plots and links begin with the run's name.
    """
    named = _named(runs)
    if len(runs) == 1:
        return [_run_chapter(*named[0], prefix="")]
    prefixes = [re.sub(r"[^\w.]+", "-", f"{name}-") for name, _ in named]
    chapters = [_run_chapter(*one, prefix=p) for one, p in zip(named, prefixes, strict=True)]
    return [_comparison(named), *chapters]


def _named(runs: Sequence[RunRecords]) -> list[tuple[str, RunRecords]]:
    """The runs with their names, or with their paths if two names are equal."""
    names = [records.run.name for records in runs]
    if len(set(names)) < len(names):
        names = [str(records.run.path) for records in runs]
    return list(zip(names, runs, strict=True))


def _run_chapter(name: str, records: RunRecords, *, prefix: str) -> Chapter:
    """The chapter of one run."""
    result = records.own
    parts = [_label(records, records.run.role)]
    if result is not None:
        parts += [f"{len(result.per_class):,} classes", f"{result.n_images:,} test images"]
    parts.append(str(records.provenance.finished_at or records.provenance.status)[:10])
    return Chapter(
        anchor=f"{prefix}run",
        title=name,
        subtitle=" · ".join(parts),
        sections=[
            *_non_empty(_shown(records), is_folded=False),
            *_non_empty(_folded(records, prefix), is_folded=True),
        ],
        verdict=_verdict(records),
    )


def _label(records: RunRecords, name: str) -> str:
    """A model's label with its backbone and method, such as `student (ViT-B-16, promptkd)`."""
    label = model_label(records.run, name)
    if name not in ("teacher", records.run.role):
        return label
    recipe = None if records.recipe is None else records.recipe.recipe
    teacher = None if recipe is None or recipe.teacher is None else recipe.teacher.method
    method = records.provenance.method if name == records.run.role else teacher
    details = ", ".join(filter(None, [records.backbone(name), method]))
    return f"{label} ({details})" if details else label


def _verdict(records: RunRecords) -> list[str]:
    """Sentences on whether to deploy the run's model, and on its accuracy."""
    verdict = verdict_of(records)
    lines = [] if verdict is None else [verdict.text]
    lines += (headline_of(records) or "").splitlines()
    if records.logit_adjustment is not None:
        shares = assumed_shares(records.logit_adjustment.prior)
        lines.append(
            f"Its scores assume {shares}. Where the device sees other shares, write them into"
            " logit_adjustment.prior of the recipe."
        )
    if references := records.references:
        measured = [f"{_REFERENCES[name]} {value:.1f} %" for name, value in references.items()]
        lines.append(f"On the labeled images, mean over classes: {', '.join(measured)}.")
    return lines


_REFERENCES = {
    "zeroshot": "zero-shot CLIP (the teacher's)",
    "ridge": "ridge regression on the teacher's features, by leave-one-out,",
    "trained": "the trained teacher",
}


def _shown(records: RunRecords) -> dict[str, Sequence[Block | None]]:
    """The main results, by the section's title."""
    accuracies = sorted_results(records.run, records.results).items()
    rows = [(_label(records, name), result) for name, result in accuracies]
    lines = [
        f"No {what} yet. To add it to the next report, run: {shlex.join(['kdedge', *command])}"
        for what, command in records.missing.items()
    ]
    if not records.can_evaluate and not records.results and records.unlabeled is None:
        lines.append("The recipe has no test images, so accuracy was not measured.")
    lines += [f"Left out, as it cannot be read: {problem}" for problem in records.problems]
    return {
        "Accuracy": [accuracy_table(same) for same in by_images(rows)],
        "Without labels": _unlabeled(records.unlabeled),
        "The file to ship": ship_blocks(records),
        "Classes": _classes(records),
        "Predictions of the model before export" if records.ship else "Images": _images(records),
        "Not in this report": [Note(lines)] if lines else [],
    }


def _folded(records: RunRecords, prefix: str) -> dict[str, Sequence[Block | None]]:
    """The details, by the section's title."""
    run, artifact = records.run, records.artifact
    own_details = records.own_details
    folded: dict[str, Sequence[Block | None]] = {}
    if _has_many_classes(records):
        folded["Every class"] = [class_table(_by_class(records), own_details)]
    if own_details is not None:
        plot = confusion_plot(model_label(run, run.role), own_details, f"{prefix}confusion")
        folded["Confusion matrix"] = [plot]
    if compared := [name for name in _compared(records) if name in records.details]:
        models = {model_label(run, name): records.details[name] for name in compared}
        results = {model_label(run, name): records.comparable[name] for name in compared}
        folded["Calibration"] = calibration_blocks(models, results, f"{prefix}calibration")
    folded["Exported files"] = exported_blocks(records)
    if artifact is not None and records.ship is not None:
        cards = changed_cards(artifact, records.ship.file, records.recipe)
        folded["Images that the exported file changes"] = [cards]
    if records.speed is not None:
        folded["Speed"] = speed_blocks(records.speed, f"{prefix}accuracy-latency")
    log = records.training
    if log.steps:
        caption = (
            f"{len(log.steps):,} logged steps of {log.steps[-1]['step']:,}"
            f" and {len(log.epochs)} epochs, on {records.provenance.device}. Points are means over"
            " an epoch: the loss over all its steps, other values over the logged ones."
        )
        curves = Plot(f"{prefix}training", "Training", lambda: training_curves(log), caption)
        folded["Training"] = [curves]
    folded["How it was made"] = provenance_blocks(records)
    return folded


def provenance_blocks(records: RunRecords) -> list[Block]:
    """Method, commands, versions, hashes, times and the recipe of a run."""
    provenance = records.provenance
    facts = {
        "run": records.run.path,
        "status": provenance.status,
        "backbone": records.backbone(records.run.role),
        **provenance.facts,
        "resumed": ", ".join(str(entry.resumed_at) for entry in provenance.resumed),
        "platform": provenance.platform,
        "versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
        **{f"SHA-256 of {key}": value for key, value in provenance.hashes.items()},
        "speed": records.speed_file,
        "artifact": None if records.artifact is None else records.artifact.path,
    }
    rows = [[key, str(value)] for key, value in facts.items() if value not in (None, "")]
    blocks: list[Block] = [Table("", [], rows, align="l")]
    commands = [shlex.join(provenance.command)] if provenance.command else []
    commands += [] if records.speed is None else [records.speed.command]
    if commands:
        blocks.append(Text("Commands", "\n".join(commands)))
    if records.recipe is not None:
        blocks.append(Text("The recipe, resolved", records.recipe.text))
    return blocks


def _compared(records: RunRecords) -> list[str]:
    """The run's own model, then the others that were measured on the same images."""
    names = dict.fromkeys((records.run.role, "teacher", "zeroshot"))
    return [name for name in names if name in records.comparable]


def _by_class(records: RunRecords) -> dict[str, EvalResult]:
    """The columns of a table of classes; the file to ship comes first where it differs."""
    columns = {model_label(records.run, x): records.comparable[x] for x in _compared(records)}
    judged = records.judged
    return columns if judged in (None, records.own) else {"file to ship": judged, **columns}


def _has_many_classes(records: RunRecords) -> bool:
    main = records.own
    return main is not None and len(main.per_class) > MAX_ROWS + 3


def _classes(records: RunRecords) -> list[Block | None]:
    """The accuracies of the lowest classes, and the most frequent confusions."""
    columns = _by_class(records)
    details = records.own_details
    if not columns:
        return []
    least = MAX_ROWS if _has_many_classes(records) else None
    label = model_label(records.run, records.run.role)
    confusions = None if details is None else confusion_table(label, details)
    return [class_table(columns, details, least=least), confusions]


def _non_empty(by_title: Mapping[str, Sequence[Block | None]], *, is_folded: bool) -> list[Section]:
    """The sections that have at least one block."""
    sections = {title: [b for b in blocks if b is not None] for title, blocks in by_title.items()}
    return [Section(title, blocks, is_folded) for title, blocks in sections.items() if blocks]


def _images(records: RunRecords) -> list[Block | None]:
    """Rows of sample images: test images, or unlabeled ones if there are none."""
    details = records.own_details
    if details is not None and details.samples:
        groups = {title: details.samples.get(kind, ()) for kind, title in _SAMPLES.items()}
        return [*sample_cards(groups, records.recipe, is_test=True)]
    if records.unlabeled is not None:
        has_teacher = records.unlabeled.agreement_percent is not None
        title = "Those where model and teacher differ first" if has_teacher else "Evenly spaced"
        return [*sample_cards({title: records.unlabeled.samples}, records.recipe, is_test=False)]
    return []


def _unlabeled(result: UnlabeledResult | None) -> list[Block | None]:
    """Agreement, confidence and predicted classes of a model without labels."""
    if result is None:
        return []
    models = {"images": result.predicted}
    if result.teacher_predicted:
        models["the teacher's"] = result.teacher_predicted
    names = dict.fromkeys(name for counts in models.values() for name in counts)
    ordered = sorted(names, key=lambda name: -result.predicted.get(name, 0))
    cells = [
        [name, *(f"{counts.get(name, 0):,}" for counts in models.values())]
        for name in ordered[:MAX_ROWS]
    ]
    n = len(ordered)
    caption = "" if len(cells) == n else f"The {MAX_ROWS} most frequent of {n:,}."
    return [result.table, Table("Predicted classes", ["class", *models], cells, caption)]


def _comparison(named: Sequence[tuple[str, RunRecords]]) -> Chapter:
    """The chapter that compares several runs."""
    accuracies, shown = [], set()
    for run_name, records in named:
        for name, result in sorted_results(records.run, records.results).items():
            label = _label(records, name)
            known = (label, repr(result.to_dict()))  # such as a common teacher
            is_own = name == records.run.role and name != "teacher"
            if is_own or known not in shown:
                accuracies.append((f"{run_name}: {label}", result))
            shown.add(known)
    blocks: dict[str, list[Block | None]] = {
        "Accuracy": [accuracy_table(rows) for rows in by_images(accuracies)],
        "Speed": [*_common_speed(named)],
    }
    return Chapter(
        anchor="comparison",
        title=f"{len(named)} runs compared",
        subtitle=", ".join(name for name, _ in named),
        sections=_non_empty(blocks, is_folded=False),
    )


def _common_speed(named: Sequence[tuple[str, RunRecords]]) -> list[Block]:
    """Speed of the runs measured on the first run's machine; a note names the others."""
    measured = [(name, records.speed) for name, records in named if records.speed is not None]
    if not measured:
        return []
    first = measured[0][1]
    same = [(name, result) for name, result in measured if _machine(result) == _machine(first)]
    rows = [named for name, result in same for named in named_rows(result, f"{name}: ")]
    lines = [f"Measured on {machine_text(first)}, each by its own kdedge bench (see its chapter)."]
    others = [name for name, result in measured if (name, result) not in same]
    if others:
        names = ", ".join(others)
        lines.append(f"Measured on another machine, so shown only in its chapter: {names}.")
    tables = [sizes(rows), throughputs(rows)]
    return [*front_plots(rows, "accuracy-latency"), *tables, Note(lines)]


def _machine(result: SpeedResult) -> tuple[object, ...]:
    """The facts by which two machines count as the same."""
    return tuple(result.device.get(key) for key in ("cpu", "cpu_cores", "gpus", "jetson"))


def write_report(runs: Sequence[RunRecords], output: Path | None) -> Path:
    """Writes a report, completely or not at all. The same records give the same bytes.

    Args:
        runs: records of one or more runs.
        output: a folder that does not exist; None: the next number in the first run's `report`.

    Returns:
        The page's path. The page loads no other file and has no script; all its text is escaped.

    Raises:
        RecipeError: the folder exists.
        ResourceError: the folder cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("kdedge.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = ", ".join(name for name, _ in _named(runs))
    values = {"chapters": make_chapters(runs), "title": title, "version": __version__}
    page = environment.get_template("page.html.j2").render(**values) + "\n"
    folder = runs[0].run.path / "report" if output is None else output
    with new_folder(folder, is_numbered=output is None) as new:
        write_atomic(new.part / PAGE, page.encode())
    return new.final / PAGE
