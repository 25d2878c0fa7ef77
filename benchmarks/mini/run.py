"""The table of cifar10, and a short one of photos100: small CLIPs, real photos, one row a model.

For each seed: the recipe's teacher and student, and PromptSRC trained on the student's own backbone
with the teacher's settings (fewer prompted layers, since the student has fewer). Zero-shot rows do
not depend on the seed.

    python benchmarks/mini/run.py benchmarks/mini/cifar10.yaml --seeds 1 --runs /tmp/runs

Runs that are there already are used again; interrupted ones go on. Writes `results/<recipe
name>.json` beside the recipe and prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdedge.config.load import load_recipe
from kdedge.records.evaluation import harmonic_mean

COLUMNS = ("base", "novel", "harmonic_mean", "all")
ROWS = (
    "zero-shot student",
    "zero-shot teacher",
    "PromptSRC on the student's backbone",
    "PromptSRC teacher",
    "PromptKD student",
)


def kdedge(command: str, recipe: Path, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs a command and gives its JSON result."""
    settings = [part for override in overrides for part in ("--set", override)]
    line = [sys.executable, "-m", "kdedge", command, str(recipe), "--runs", str(runs), "--json"]
    done = subprocess.run([*line, "--resume", *settings], check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def student_backbone_overrides(recipe: Path) -> list[str]:
    """Overrides that train the recipe's teacher on its student's backbone."""
    loaded = load_recipe(recipe).recipe
    assert loaded.student is not None
    student = loaded.student
    return [
        f"name={loaded.name}-promptsrc-student",
        f"teacher.config={student.config}",
        f"teacher.weights={student.weights}",
        f"teacher.settings.prompt_depth_vision={student.settings['prompt_depth']}",
    ]


def run_seed(recipe: Path, runs: Path, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies of one seed, by row."""
    distilled = kdedge("distill", recipe, runs, [f"seed={seed}"])
    own = kdedge("teach", recipe, runs, [f"seed={seed}", *student_backbone_overrides(recipe)])
    teacher, student = distilled["teacher"]["evaluation"], distilled["student"]["evaluation"]
    found = {
        "zero-shot student": student["zeroshot"],
        "zero-shot teacher": teacher["zeroshot"],
        "PromptSRC on the student's backbone": own["teacher"]["evaluation"]["teacher"],
        "PromptSRC teacher": teacher["teacher"],
        "PromptKD student": student["student"],
    }
    return {row: {column: found[row][column] for column in COLUMNS} for row in ROWS}


def summarize(seeds: dict[int, dict[str, dict[str, float]]]) -> list[str]:
    """The table: means over seeds, harmonic mean of the means, deviation of the seeds' means."""
    lines = ["| model | base | novel | harmonic mean | all classes |", "|---|---:|---:|---:|---:|"]
    for row in ROWS:
        values = {c: [found[row][c] for found in seeds.values()] for c in COLUMNS}
        mean = {column: statistics.mean(values[column]) for column in COLUMNS}
        mean["harmonic_mean"] = harmonic_mean(mean["base"], mean["novel"])
        cells = []
        for column in COLUMNS:
            spread = statistics.stdev(values[column]) if len(seeds) > 1 else 0.0
            note = f" ± {spread:.2f}" if spread > 0 else ""
            cells.append(f"{mean[column]:.2f}{note}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    seeds = {seed: run_seed(arguments.recipe, arguments.runs, seed) for seed in arguments.seeds}
    results = arguments.recipe.parent / "results"
    results.mkdir(exist_ok=True)
    record = {"recipe": arguments.recipe.name, "python": platform.python_version(), "seeds": seeds}
    file = results / f"{arguments.recipe.stem}.json"
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("\n".join(summarize(seeds)))


if __name__ == "__main__":
    main()
