"""Figure 4 of PromptKD as a picture: a suite's accuracies against unlabeled images a class.

kdedge suite benchmarks/suites/images-per-class.yaml
python benchmarks/images_per_class.py suites/images-per-class/results.json images-per-class.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

CURVES = {"base": "o-", "novel": "s-", "harmonic_mean": "D-"}


def main() -> None:
    """Draws the suite's rows, whose labels are numbers of images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    lines = json.loads(arguments.results.read_text())["lines"]
    found = sorted((int(line["row"]), line["mean"]) for line in lines if line["mean"])
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for key, style in CURVES.items():
        axes.plot(
            range(len(found)),
            [result[key] for _, result in found],
            style,
            label=key.replace("_", " "),
        )
    axes.set_xticks(range(len(found)), [str(n) for n, _ in found])
    axes.set_xlabel("unlabeled images a class (0: zero-shot CLIP)")
    axes.set_ylabel("accuracy, percent")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
