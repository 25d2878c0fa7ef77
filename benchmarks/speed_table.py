"""The README's speed table: `kdedge bench` on a run, in the columns that the README has.

    python benchmarks/speed_table.py RUN [options of `kdedge bench`]
    python benchmarks/speed_table.py --of RUN/bench/01.json

Work is that of one image at batch 1; milliseconds are medians at batch 1; the ratio is to the first
row, with its lowest and highest of the rounds; accuracy is over all classes, where a run has it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from kdedge.records.speed import SpeedResult, SpeedRow, read_speed


def measured(run: str, options: list[str]) -> SpeedResult:
    """Runs `kdedge bench`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "kdedge", "bench", run, "--output", str(file), *options]
        subprocess.run(command, check=True)
        return read_speed(file)


def line(result: SpeedResult, row: SpeedRow) -> str:
    """A row in Markdown."""
    gmacs, first = row.gmacs(1), row.at(1, "on device") or row.at(1, "copied")
    accuracy = row.accuracy
    shown = None if accuracy is None else accuracy.all
    cells = [
        row.model,
        row.protocol,
        row.runtime.split()[0],
        number(gmacs, 1),
        number(gmacs, 2),
        number(None if first is None else first.p50_ms, 1),
    ]
    for batch in result.settings["batches"]:
        found = row.at(batch, "on device") or row.at(batch, "copied")
        cells.append(number(None if found is None else found.images_per_second, 1))
    if first is None or first.ratio is None or not result.has_rank(first):
        cells.append("-")
    else:
        cells.append(f"{first.ratio:.2f} ({first.ratio_low:.2f}-{first.ratio_high:.2f})")
    cells.append(number(shown, 1, digits=2))
    return f"| {' | '.join(cells)} |"


def number(value: float | None, factor: float, *, digits: int | None = None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "-"
    value = value * factor
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Prints the table and where it was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--of", type=Path, help="measurements that are there already")
    arguments, options = parser.parse_known_args()
    if (arguments.run is None) == (arguments.of is None):
        parser.error("name a run, or --of FILE")
    if arguments.of is not None:
        result = read_speed(arguments.of)
    else:
        result = measured(arguments.run, options)
    batches = result.settings["batches"]
    fps = " | ".join(f"FPS {batch}" for batch in batches)
    print(f"| model | protocol | by | GMACs | GFLOPs | ms | {fps} | ratio | % of peak | accuracy |")
    print("|---|---|---|" + "---:|" * (6 + len(batches)))
    for row in result.rows:
        print(line(result, row))
    device = result.device
    runtimes = ", ".join(sorted({row.runtime for row in result.rows}))
    threads = result.settings["threads"] or "default"
    print(f"\n{device['cpu']}, {device['cpu_cores']} cores, {threads} threads, {runtimes}")
    for name, why in result.left_out.items():
        print(f"* left out: {name}: {why}")


if __name__ == "__main__":
    main()
