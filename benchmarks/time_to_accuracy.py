"""A plot of a suite's students: harmonic mean against the seconds of their runs.

kdedge suite benchmarks/suites/time-to-accuracy.yaml
python benchmarks/time_to_accuracy.py suites/time-to-accuracy benchmarks/time-to-accuracy.svg
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from kdedge.reporting.plots import Figure, render


def seconds_of(run: Path) -> float:
    """Seconds from the start of a run to its accuracy on the test images."""
    record = json.loads((run / "provenance.json").read_text())
    began, ended = (datetime.fromisoformat(record[key]) for key in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def main() -> None:
    """Draws one line for each name before a comma; the number after it is that of the epochs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    lines = defaultdict(list)
    for cell in json.loads((arguments.suite / "results.json").read_text())["cells"]:
        name, _, epochs = cell["row"].partition(", ")
        if epochs and cell["result"]:
            point = seconds_of(Path(cell["run"])), cell["result"]["harmonic_mean"]
            print(f"{cell['row']}: {point[0]:.0f} s, {point[1]:.2f}")
            lines[name].append(point)

    def draw() -> Figure:
        figure = Figure(figsize=(6, 3.6))
        axes = figure.subplots()
        for (name, points), marker in zip(lines.items(), "*osd^v", strict=False):
            axes.plot(*zip(*sorted(points), strict=True), marker=marker, label=name)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds of the run")
        axes.set_ylabel("harmonic mean, %")
        axes.legend()
        return figure

    page = '<rect width="100%" height="100%" fill="#ffffff"/>'
    svg = render(draw, "time").replace(">", f">{page}", 1)
    arguments.picture.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
