"""A measured table against an earlier one: what became slower, for a user's own CI."""

from __future__ import annotations

from kdedge.errors import GateError, RecipeError
from kdedge.speed_results import Measurement, SpeedResult, SpeedRow


def check_regressions(
    result: SpeedResult, baseline: SpeedResult, *, max_percent: float, where: str
) -> list[str]:
    """Compares the medians of every row and batch that both tables have.

    Args:
        result: measured now.
        baseline: measured before.
        max_percent: a median may be so much longer, in percent.
        where: what the baseline is called in messages.

    Returns:
        A line on each pair that both have, for a person to read.

    Raises:
        RecipeError: the baseline is of another machine, or has no row of this table.
        GateError: a median grew by more.
    """
    _check_machine(result, baseline, where)
    before = {
        (row.key, found.batch, found.inputs): found
        for row in baseline.rows
        for found in row.measurements
    }
    lines, slower = [], []
    for row in result.rows:
        for found in row.measurements:
            old = before.get((row.key, found.batch, found.inputs))
            if old is None:
                continue
            line = _line(row, found, old)
            lines.append(line)
            if found.p50_ms > old.p50_ms * (1 + max_percent / 100):
                slower.append(line)
    if not lines:
        raise RecipeError(
            f"{where} and this table have no model in common.\n"
            "  Measure the same models: name the same runs or artifacts."
        )
    if slower:
        raise GateError(
            f"{len(slower)} of {len(lines)} medians are more than {max_percent:g} % above"
            f" {where}:\n" + "\n".join(f"  {line}" for line in slower)
        )
    return lines


def _check_machine(result: SpeedResult, baseline: SpeedResult, where: str) -> None:
    machines = [_machine(one) for one in (baseline, result)]
    if machines[0] != machines[1]:
        raise RecipeError(
            f"{where} was measured on another machine: {machines[0]}.\n"
            f"  This one is {machines[1]}. Measure a baseline here."
        )


def _machine(result: SpeedResult) -> str:
    device = result.device
    parts = [f"{device.get('cpu')}, {device.get('cpu_cores')} cores"]
    parts += [str(gpu.get("name")) for gpu in device.get("gpus", [])]
    return ", ".join(parts)


def _line(row: SpeedRow, found: Measurement, old: Measurement) -> str:
    change = 100 * (found.p50_ms / old.p50_ms - 1)
    return (
        f"{row.label} ({row.runtime}), batch {found.batch}, {found.inputs}:"
        f" {old.p50_ms:.3g} -> {found.p50_ms:.3g} ms ({change:+.1f} %)"
    )
