"""A plot of a run's newest `kdedge bench`: each model's accuracy against its latency.

kdedge bench RUN
python benchmarks/accuracy_latency.py RUN benchmarks/accuracy-latency.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kdedge.records.speed import named_rows, read_speed
from kdedge.reporting.model_records import newest_speed
from kdedge.reporting.speed import front_plots
from kdedge.runs.folder import RunFolder


def main() -> None:
    """Draws the plot that a report of the run begins with, on white: pages may be dark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    record = newest_speed(RunFolder.open(arguments.run))
    if record is None:
        raise SystemExit(f"{arguments.run} was not measured: run kdedge bench {arguments.run}")
    speed = read_speed(record)
    plots = front_plots(named_rows(speed), "front")
    if not plots:
        raise SystemExit(f"{record} has no model with an accuracy: kdedge eval, then kdedge bench")
    page = '<rect width="100%" height="100%" fill="#ffffff"/>'
    arguments.picture.write_text(plots[0].svg.replace(">", f">{page}", 1), encoding="utf-8")
    print(f"{plots[0].title}. {plots[0].caption}")


if __name__ == "__main__":
    main()
