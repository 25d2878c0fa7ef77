"""Show what this machine has and what it lacks for each step."""

from __future__ import annotations

from typing import Any

import click

from kdedge.api.about import doctor
from kdedge.cli._output import json_option, print_result, table


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine has and what it lacks for each step.

    Nothing is installed, and the network is not used.
    """
    report = doctor()
    print_result(report, as_json=as_json, text=_as_text(report))


def _as_text(report: dict[str, Any]) -> str:
    machine = report["machine"]
    memory = machine["memory_bytes"]
    rows = [
        ["kdedge", machine["kdedge"]],
        ["Python", machine["python"]],
        ["system", machine["system"]],
        ["CPU", f"{machine['cpu']}, {machine['cpu_cores']} cores"],
        ["memory", _gibibytes(memory) if memory is not None else "unknown"],
        ["free disk", f"{_gibibytes(machine['disk_free_bytes'])} in this folder"],
    ]
    rows += [["GPU", _device_line(device)] for device in report["cuda"]["devices"]]
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
    return "\n\n".join([table(rows), table(packages, header=header), *report["problems"]])


def _gibibytes(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


def _device_line(device: dict[str, Any]) -> str:
    parts = [device["name"]]
    if device["memory_bytes"] is not None:
        parts.append(_gibibytes(device["memory_bytes"]))
    parts.append(f"compute capability {device['compute_capability']}")
    if device["cuda"] is not None:
        parts.append(f"CUDA {device['cuda']}")
    return ", ".join(parts)
