"""Show what this machine has and what it lacks for each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from kdedge.api.about import doctor
from kdedge.cli._output import json_option, print_result, table
from kdedge.progress import readable_bytes


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine has and what it lacks for each step.

    Nothing is installed, and the network is not used.
    """
    report = doctor()
    rows = list(map(list, _facts(report["machine"])))
    for device in report["cuda"]["devices"]:
        rows.append(["GPU", ", ".join(" ".join(fact) for fact in _facts(device))])
    problem = report["cuda"]["problem"]
    if not report["cuda"]["devices"]:
        rows.append(["GPU", f"none: {problem}"])
    elif problem is not None:
        rows.append(["torch", problem])
    packages = [
        [name, state["version"] or "missing", state["purpose"], state["install"] or ""]
        for name, state in report["packages"].items()
    ]
    header = ("package", "version", "for", "install with")
    text = "\n\n".join([table(rows), table(packages, header=header), *report["problems"]])
    print_result(report, as_json=as_json, text=text)


def _facts(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the name and text of each value that is known; bytes get a unit."""
    for key, value in values.items():
        if value is not None:
            shown = readable_bytes(value) if key.endswith("_bytes") else str(value)
            yield key.removesuffix("_bytes").replace("_", " "), shown
