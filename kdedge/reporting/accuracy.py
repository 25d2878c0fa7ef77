"""Makes the tables and plots of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdedge.reporting.blocks import Block, Plot, Table
from kdedge.reporting.figures import (
    MOST_NAMED_CLASSES,
    calibration,
    class_gains,
    classes_a_cell,
    confusion,
)
from kdedge.results import EvalDetails, EvalResult
from kdedge.tables import percent, points

_N_CONFUSIONS = 15
_N_GAINS = 10


def accuracy_table(rows: Sequence[tuple[str, EvalResult]]) -> Table:
    """Makes the table of accuracies from labels and results on the same images."""
    halves = any(result.split == "base-to-novel" for _, result in rows)
    is_calibrated = any(result.calibrated_ece_percent is not None for _, result in rows)
    cells = []
    for label, result in rows:
        parts = (result.base, result.novel, result.harmonic_mean) if halves else ()
        errors = (result.ece_percent, result.calibrated_ece_percent)[: 1 + is_calibrated]
        cells.append([label, *map(percent, (*parts, result.all, *errors))])
    header = ["model", *(("base", "novel", "HM") if halves else ()), "all", "ECE"]
    header += ["calibrated ECE"] if is_calibrated else []
    by_half = (
        " Base and novel images are classified among the names of their own half; `all` among all"
        " names. HM is the harmonic mean of base and novel."
    )
    chosen = (
        ", or by kdedge eval; some with the weights of the best epoch on validation images."
        if "validation" in {result.selection for _, result in rows}
        else " with the last epoch's weights, or by kdedge eval."
    )
    caption = (
        f"On the recipe's test images.{by_half if halves else ''} ECE: expected calibration error"
        f" over all names, 15 bins. Measured after training{chosen}"
    )
    remarks = [f" {label}: {remark}" for label, result in rows for remark in result.remarks]
    title = f"Top-1 accuracy on {rows[0][1].n_images:,} test images, percent"
    return Table(title, header, cells, "".join([caption, *remarks]))


def confusion_blocks(model: str, details: EvalDetails, name: str) -> list[Block]:
    """Makes the confusion matrix of a model and the table of its most frequent confusions."""
    n_classes = len(details.class_names)
    caption = (
        f"{details.n_images:,} test images, classified among all {n_classes:,} names. Each row adds"
        " up to 100 %. The color scale is a square root."
    )
    if n_classes > MOST_NAMED_CLASSES:
        caption += " Axis numbers are line numbers of the class list."
    if classes_a_cell(n_classes) > 1:
        caption += f" {classes_a_cell(n_classes)} neighboring classes share a row and a column."
    plot = Plot(name, f"Confusion matrix of the {model}", confusion(details), caption)
    of_class: dict[int, int] = {}
    for label, _, n in details.confusion:
        of_class[label] = of_class.get(label, 0) + n
    wrong = [entry for entry in details.confusion if entry[0] != entry[1]]
    names = details.class_names
    cells = [
        [names[label], names[predicted], f"{n:,}", percent(100 * n / of_class[label])]
        for label, predicted, n in sorted(wrong, key=lambda entry: (-entry[2], entry[:2]))
    ]
    shown = cells[:_N_CONFUSIONS]
    caption = (
        f"The {len(shown)} most frequent of {len(wrong):,} kinds of confusion among"
        f" {details.n_images:,} test images; % of the class's own images."
    )
    header = ["class", "taken for", "images", "%"]
    table = Table("Most frequent confusions", header, shown, caption, n_text=2)
    return [plot, table] if shown else [plot]


def gain_blocks(
    own: EvalResult, plain: EvalResult, name: str, teacher: EvalResult | None = None
) -> list[Block]:
    """Makes the plot and tables of each class's gain; none if no class is in both results.

    Args:
        own: the run's model.
        plain: zero-shot CLIP on the same backbone and images.
        name: of the PNG file.
        teacher: on the same images; None without one.
    """
    pairs = [
        (class_name, before, after)
        for class_name, after in own.per_class.items()
        if after is not None and (before := plain.per_class.get(class_name)) is not None
    ]
    if not pairs:
        return []
    pairs.sort(key=lambda pair: (pair[1] - pair[2], pair[0]))
    gains = [(class_name, after - before) for class_name, before, after in pairs]
    n_better, n_worse = sum(g > 0 for _, g in gains), sum(g < 0 for _, g in gains)
    caption = (
        "Accuracy of each class, among all names, minus that of zero-shot CLIP:"
        f" {n_better:,} classes gain, {n_worse:,} lose, {len(gains) - n_better - n_worse:,} stay"
        f" equal; {own.n_images:,} images."
    )
    theirs = {} if teacher is None else teacher.per_class
    has_teacher = any(theirs.get(class_name) is not None for class_name, _ in gains)
    marks = None
    if has_teacher:
        marks = {n: None if (x := theirs.get(n)) is None else x - before for n, before, _ in pairs}
        caption += " Triangles: the teacher's accuracy minus that of zero-shot CLIP."
    blocks: list[Block] = [Plot(name, "Gain of each class", class_gains(gains, marks), caption)]
    rows = [
        [n, percent(before), percent(after), points(after - before)]
        + [percent(theirs.get(n))] * has_teacher
        for n, before, after in pairs
    ]
    header = ["class", "zero-shot", "now", "gain", *(["teacher"] * has_teacher)]
    if len(rows) > 2 * _N_GAINS:
        most = f"The {_N_GAINS} largest gains and the {_N_GAINS} largest losses, percent."
        ends = [*rows[:_N_GAINS], *rows[-_N_GAINS:]]
        blocks.append(Table("Largest gains and losses", header, ends, most))
    every = f"All {len(rows):,} classes with test images, percent."
    blocks.append(Table("Every class", header, rows, every, is_folded=True))
    return blocks


def calibration_blocks(models: Mapping[str, EvalDetails], name: str) -> list[Block]:
    """Makes the calibration plot of models by label, the run's own first."""
    errors = "; ".join(f"{label}: ECE {d.ece_percent:.2f} %" for label, d in models.items())
    n_images = max(details.n_images for details in models.values())
    caption = (
        "Below the line a model is overconfident. 15 bins of the highest softmax value over all"
        f" names; larger marks have more images; {n_images:,} test images. {errors}."
    )
    return [Plot(name, "Calibration", calibration(models), caption)]
