"""List the methods that a recipe can name."""

from __future__ import annotations

import click

from kdedge.api.about import list_methods
from kdedge.cli._output import json_option, print_result, table

_DATA_NEEDS = ("labels", "unlabeled_images", "novel_class_names")
_HEADER = ("method", "label", "labels", "unlabeled", "novel names", "")


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the methods that a recipe can name, and what each learns from.

    The list has the methods of kdedge and of installed packages. The columns say what a method is
    trained on. labels: images of data.labeled; a student gets labels through its teacher.
    unlabeled: images of data.unlabeled. novel names: also the names of classes without labels.
    The losses that a student's settings can name follow. `kdedge schema` lists all settings.
    """
    record = list_methods()
    rows, losses = [], []
    for name, about in record.items():
        marks = [("yes" if about[key] else "-") if about else "?" for key in _DATA_NEEDS]
        label = about.get("label", "?")
        rows.append([name, label, *marks, about.get("about", "").removeprefix(f"{label}: ")])
        if "losses" in about:
            losses.append(table(list(about["losses"].items()), header=(f"loss of {name}", "")))
    text = "\n\n".join([table(rows, header=_HEADER), *losses])
    print_result(record, as_json=as_json, text=text)
