"""The targets as plain values, and as a Markdown table for the documentation."""

from __future__ import annotations

from typing import Any

from kdedge.targets.protocol import Target
from kdedge.targets.registry import list_targets


def target_records() -> dict[str, dict[str, Any]]:
    """All targets as plain values, by name."""
    return {target.name: _record(target) for target in list_targets()}


def _record(target: Target) -> dict[str, Any]:
    return {
        "flag": target.flag,
        "help": target.help,
        "files": target.files,
        "built_from": target.source,
        "precisions": list(target.precisions),
        "backend": target.backend,
        "extras": _extras(target),
        "remark": target.remark,
    }


def _extras(target: Target) -> list[str]:
    return list(dict.fromkeys(package.extra for package in target.packages if package.extra))


def as_markdown() -> str:
    """The documentation's table of targets, in Markdown."""
    lines = [
        "| `kdedge export` | makes | built from | precisions | run by | extras | |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in list_targets():
        runs = f"`--backend {target.backend}`" if target.backend else "-"
        extras = ", ".join(f"`{extra}`" for extra in _extras(target)) or "-"
        precisions = ", ".join(target.precisions)
        lines.append(
            f"| `{target.flag}` | {target.label}, `{target.files}` | {target.source} |"
            f" {precisions} | {runs} | {extras} | {target.remark} |"
        )
    return "\n".join(lines)
