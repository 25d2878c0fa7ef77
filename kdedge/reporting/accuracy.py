"""Makes the tables and plots of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kdedge.records.evaluation import EvalDetails, EvalResult, results_table
from kdedge.records.tables import Table, decimals
from kdedge.reporting.blocks import Block, Plot
from kdedge.reporting.figures import MAX_NAMED_CLASSES, calibration, classes_per_cell, confusion

# Rows of a table that is not folded
MAX_ROWS = 12


def accuracy_table(rows: Sequence[tuple[str, EvalResult]]) -> Table:
    """Makes the table of accuracies from labels and results on the same images."""
    table, first = results_table(rows), rows[0][1]
    n_classes = sum(value is not None for value in first.per_class.values())
    if first.largest_class_percent is not None and n_classes:
        constant = dict.fromkeys(("accuracy", "all"), first.largest_class_percent)
        constant["mean over classes"] = 100 / n_classes
        label = "always the most frequent class"
        cells = [label, *(decimals(constant.get(name)) for name in table.header[1:])]
        table = replace(table, rows=[*table.rows, cells])
    caption = ""
    if first.split == "base-to-novel":
        caption = (
            "Base and novel images are classified among the names of their own half, in the column"
            " all among all names. HM is the harmonic mean of base and novel. "
        )
    if "calibration error" in table.header:
        caption += "The calibration error: how far scores are from the share of right predictions. "
    if "validation" in {result.selection for _, result in rows}:
        caption += "Some models have the weights of the best epoch on validation images. "
    caption += " ".join(f"{label}: {note}" for label, row in rows for note in row.notes)
    title = f"Accuracy on {first.n_images:,} test images, percent"
    return replace(table, title=title, caption=caption)


def class_table(
    results: Mapping[str, EvalResult], details: EvalDetails | None, *, least: int | None = None
) -> Table:
    """Makes the table of accuracies by class, the lowest first.

    Args:
        results: by label: first the run's model, then other models on the same images.
        details: has the number of images of each class; None if it was not recorded.
        least: number of classes in the table; None for all.
    """
    main = next(iter(results.values()))
    images = {} if details is None else details.images_per_class
    tested = [name for name, value in main.per_class.items() if value is not None]
    tested.sort(key=lambda name: (main.per_class[name], name))
    cells = []
    for name in tested[:least]:
        counts = [f"{images[name]:,}"] if images else []
        accuracies = [decimals(result.per_class.get(name)) for result in results.values()]
        cells.append([name, *counts, *accuracies])
    which = "All" if len(cells) == len(tested) else f"The {len(cells)} lowest of"
    caption = (
        f"{which} {len(tested):,} classes with test images, classified among all names. Mean over"
        f" these classes: {main.mean_over_classes:.2f} %."
    )
    header = ["class", *(["images"] if images else []), *results]
    return Table("Accuracy by class, percent", header, cells, caption)


def confusion_table(model: str, details: EvalDetails) -> Table | None:
    """Makes the table of a model's most frequent confusions; None if it made no mistake."""
    names, images = details.class_names, details.images_per_class
    wrong = [entry for entry in details.confusion if entry[0] != entry[1]]
    if not wrong:
        return None
    cells = [
        [
            names[label],
            names[predicted],
            f"{n:,} of {images[names[label]]:,}",
            decimals(100 * n / images[names[label]]),
        ]
        for label, predicted, n in sorted(wrong, key=lambda entry: (-entry[2], entry[:2]))
    ][:MAX_ROWS]
    caption = ""
    if len(cells) < len(wrong):
        caption = f"The {len(cells)} most frequent of {len(wrong):,} confused pairs of classes."
    header = ["class", f"the {model} predicts", "images", "%"]
    return Table("Confusions", header, cells, caption, align="llr")


def confusion_plot(model: str, details: EvalDetails, name: str) -> Plot:
    """Makes the plot of a model's confusion matrix; `name` is the plot's name on its page."""
    n_classes = len(details.class_names)
    caption = "Each row adds up to 100 %. Colors follow its square root, so that few show."
    if n_classes > MAX_NAMED_CLASSES:
        caption += " Axis numbers are line numbers of the class list."
    if classes_per_cell(n_classes) > 1:
        caption += f" {classes_per_cell(n_classes)} neighboring classes share a row and a column."
    return Plot(name, f"Confusion matrix of the {model}", lambda: confusion(details), caption)


def calibration_blocks(
    models: Mapping[str, EvalDetails], results: Mapping[str, EvalResult], name: str
) -> list[Block]:
    """Makes the calibration plot and table of models by label, the run's own model first."""
    caption = (
        "Below the line a model is surer than it is right. Images are in 15 groups by the score of"
        " the predicted class; larger marks have more images."
    )
    rows = [
        [label, decimals(details.ece_percent), decimals(results[label].calibrated_ece_percent)]
        for label, details in models.items()
    ]
    header = ["model", "ECE", "with the exported temperature"]
    ece_caption = "Mean difference between score and accuracy over these groups, percent."
    return [
        Plot(name, "Calibration", lambda: calibration(models), caption),
        Table("Expected calibration error (ECE)", header, rows, ece_caption),
    ]
