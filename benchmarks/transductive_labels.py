"""How many labels of a recipe's unlabeled pool are right: the teacher's, and transductive ones.

    python benchmarks/transductive_labels.py benchmarks/mini/photos100.yaml --teacher RUN --runs DIR

Labels of the pool are read for this table alone; no test image is. Rows vary one setting of
`student.targets` at a time, for the teacher of the run (with and without labeled images) and for
zero-shot CLIP on the same backbone without any label. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import kdedge

WEAK = {"n_neighbors": 0, "mixture_weight": 0.01, "prior_weight": 1.0}
ROWS: tuple[dict[str, Any], ...] = (
    {},
    {"features": "both"},
    {"n_neighbors": 0},
    {"prior_weight": 8.0},
    {"mixture_weight": 0.03},
    WEAK,
    {**WEAK, "features": "student"},
    {**WEAK, "features": "both"},
)


def label(recipe: Path, runs: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Labels the pool in a folder that is thrown away; gives what was found."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "labels.jsonl"
        found = kdedge.pseudo_label(
            recipe, output, method="transductive", overrides=overrides, root=runs, device="cpu"
        )
    result: dict[str, Any] = found.to_dict()["transductive"]
    return result


def main() -> None:
    """Labels the pool with every row's settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    taught = {"teacher.run": str(arguments.teacher)}
    zero_shot = {"teacher.method": "zeroshot", "teacher.settings": {}, "data.labeled": None}
    kinds = {
        "trained teacher": (taught, {"labeled_weight": 0.0}),
        "trained teacher, labeled images": (taught, {}),
        "zero-shot CLIP": (zero_shot, {}),
    }
    print("| teacher | settings | before | after | classes without images, before and after |")
    print("|---|---|---:|---:|---|")
    for name, (overrides, own) in kinds.items():
        for row in ROWS:
            targets = {"kind": "transductive", **own, **row}
            found = label(
                arguments.recipe, arguments.runs, {**overrides, "student.targets": targets}
            )
            settings = ", ".join(f"{key} {value}" for key, value in row.items()) or "defaults"
            before, after = found["accuracy_before_percent"], found["accuracy_percent"]
            empty = [found["n_classes"] - len(found[key]) for key in ("before", "after")]
            cells = [name, settings, f"{before:.2f}", f"{after:.2f}", f"{empty[0]}, {empty[1]}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
