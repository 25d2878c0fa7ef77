"""List the prompt methods that a recipe can name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from kdedge.cli._output import first_line, json_option, print_result, table
from kdedge.methods.registry import declared_sees, list_methods, method_files

_HEADER = ("method", "labels", "unlabeled", "novel names", "")


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the prompt methods that a recipe can name, and what each learns from.

    kdedge's own, and those of installed packages. Labels are of few images; of a student they come
    through its teacher. Unlabeled images are those of data.unlabeled. Novel names: those of classes
    without labels take part in training. `kdedge schema` lists the methods' settings.
    """
    files, sees = method_files(), declared_sees()
    record: dict[str, Any] = {}
    rows = []
    for name in list_methods():
        about = first_line(files[name]) if name in files else "from an installed package"
        declared = asdict(sees[name]) if name in sees else {}
        record[name] = {"about": about, **declared}
        marks = ["yes" if is_seen else "-" for is_seen in declared.values()] or ["?"] * 3
        rows.append([name, *marks, about])
    print_result(record, as_json=as_json, text=table(rows, header=_HEADER))
