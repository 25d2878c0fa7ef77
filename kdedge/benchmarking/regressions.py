"""Compares a measured table with an earlier one, to find what became slower, as in CI."""

from __future__ import annotations

from typing import Any

from kdedge.errors import GateError, RecipeError
from kdedge.speed_results import Measurement, SpeedResult, SpeedRow


def check_regressions(
    result: SpeedResult, baseline: SpeedResult, *, max_percent: float, where: str
) -> list[str]:
    """Compares the medians of every row and batch that both tables have.

    Args:
        result: the new measurement.
        baseline: the earlier measurement.
        max_percent: largest accepted increase of a median, in percent.
        where: the baseline's name in messages.

    Returns:
        One readable line per median that both have.

    Raises:
        RecipeError: the baseline has no row of this table.
        GateError: a median grew by more, or a row of the baseline could not be measured now.
    """
    before = {
        (row.key, now.batch, now.inputs): now for row in baseline.rows for now in row.measurements
    }
    lines, slower = [], []
    for row in result.rows:
        for now in row.measurements:
            old = before.get((row.key, now.batch, now.inputs))
            if old is None:
                continue
            line = _line(row, now, old)
            lines.append(line)
            if not now.p50_ms <= old.p50_ms * (1 + max_percent / 100):  # NaN is no limit, either
                slower.append(line)
    lost = _lost(result, baseline)
    if lost:
        raise GateError(
            f"These rows of {where} could not be measured now:\n"
            + "\n".join(f"  {line}" for line in lost)
        )
    if not lines:
        raise RecipeError(
            f"{where} has no model of this table.\n"
            "  Measure the same models: name the same runs or artifacts."
        )
    if slower:
        raise GateError(
            f"{len(slower)} of {len(lines)} medians are more than {max_percent:g} % above"
            f" {where}:\n" + "\n".join(f"  {line}" for line in slower)
        )
    return lines


def _lost(result: SpeedResult, baseline: SpeedResult) -> list[str]:
    """Rows of the baseline that failed or were left out now, and why."""
    failed = {row.label: row.problem for row in result.rows if row.problem is not None}
    why = {**result.left_out, **failed}
    measured = [
        name
        for row in baseline.rows
        for name in (row.label, *(f"{row.label}, batch {m.batch}" for m in row.measurements))
    ]
    return [f"{name}: {why[name]}" for name in dict.fromkeys(measured) if name in why]


def check_comparable(
    baseline: SpeedResult, *, device: dict[str, Any], n_threads: int | None, where: str
) -> None:
    """Checks that a new measurement can be compared with a baseline.

    Args:
        baseline: the earlier measurement.
        device: this machine's device sheet.
        n_threads: CPU threads of the new measurement; None for the default.
        where: the baseline's name in messages.

    Raises:
        RecipeError: it was measured on another machine, in another power mode of a Jetson, or with
            another number of threads.
    """
    before, now = _machine(baseline.device), _machine(device)
    if before != now:
        raise RecipeError(
            f"{where} was measured on another machine: {before}.\n"
            f"  This one is {now}. Measure a new baseline on this machine."
        )
    old = baseline.settings.get("threads")
    if old != n_threads:
        remedy = "without --threads" if old is None else f"with --threads {old}"
        raise RecipeError(
            f"{where} was measured {remedy}, but this measurement would use another number of"
            " threads.\n"
            f"  Run the command {remedy} too, or measure a new baseline."
        )


def _machine(device: dict[str, Any]) -> str:
    parts = [f"{device.get('cpu')}, {device.get('cpu_cores')} cores"]
    parts += [str(gpu.get("name")) for gpu in device.get("gpus", [])]
    jetson = device.get("jetson", {})
    parts += [str(jetson[key]) for key in ("board", "power_mode") if key in jetson]
    return ", ".join(parts)


def _line(row: SpeedRow, now: Measurement, old: Measurement) -> str:
    change = 100 * (now.p50_ms / old.p50_ms - 1)
    doubt = "".join(
        f"; {which} in doubt: {measured.doubt}"
        for which, measured in (("before", old), ("now", now))
        if measured.doubt is not None
    )
    return (
        f"{row.label} ({row.runtime}), batch {now.batch}, {now.inputs}:"
        f" {old.p50_ms:.3g} -> {now.p50_ms:.3g} ms ({change:+.1f} %){doubt}"
    )
