"""Several teachers of a recipe: each one's accuracy, how often they agree, and their combinations.

    python benchmarks/several_teachers.py RECIPE [--set KEY=VALUE ...] [--images N] [--runs DIR]

Measures on the labeled images of `data.test`; point it at the images that a student learns from to
choose teachers without test images: --set 'data.test.webdataset=train-{000000..000005}.tar'. Images
whose labels the teachers were trained on are left out.
Teachers that are to be trained are trained first. Nothing is written but their runs.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdedge.config.load import load_recipe
from kdedge.config.recipe import EnsembleSpec
from kdedge.data.images import spread
from kdedge.evaluation.accuracy import evaluate
from kdedge.runs.model import load_run
from kdedge.setup.classes import load_classes
from kdedge.setup.data import RecipeData
from kdedge.setup.teachers import teacher_recipes
from kdedge.setup.workspace import Workspace
from kdedge.tables import text_table
from kdedge.training.find_teachers import named_teachers, trained_teacher
from kdedge.training.run_job import run_job
from kdedge.training.teach import teacher_job
from kdedge.training.teachers.combine import combine, matching_temperature
from kdedge.training.teachers.model import ModelTeacher

SETTINGS = {
    "equal": EnsembleSpec(weights="equal"),
    "confidence": EnsembleSpec(weights="confidence"),
    **{f"entropy, tau {t:g}": EnsembleSpec(weights="entropy", tau=t) for t in (2, 1, 0.5, 0.25)},
}


def main() -> None:
    """Prints the accuracies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--images", type=int, help="of so many, evenly spread; default: of all")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    loaded = load_recipe(given.recipe, given.overrides)
    workspace = Workspace(given.runs, torch.device("cpu"))
    classes = load_classes(loaded.recipe)
    images = RecipeData(loaded.recipe, classes, workspace)
    pool, shots = images.require("test", "teachers are measured on it"), images.labeled("teacher")
    pool = pool.without(shots)  # their labels were trained on
    n_images = given.images or len(pool.indices)
    pool = pool.only([pool.indices[i] for i in spread(len(pool.indices), n_images)])
    data = loaded.recipe.data.model_copy(update={"test": None})  # training measures nothing
    loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"data": data}))
    runs = [
        named or run_job(teacher_job(one, workspace), resume=True)
        for one, named in zip(
            teacher_recipes(loaded), named_teachers(loaded, workspace), strict=True
        )
    ]
    teachers = [
        ModelTeacher(trained_teacher(load_run(run, workspace, names=classes.names))) for run in runs
    ]
    names = [teacher.name for teacher in teachers]
    logits = [teacher.logits_of(pool, what="asking a teacher") for teacher in teachers]
    fitted = [teacher.logits_of(shots, what="asking a teacher") for teacher in teachers]
    temperatures = [
        matching_temperature(own, fitted[0][:, list(teacher.classes)])
        for own, teacher in zip(fitted, teachers, strict=True)
    ]
    labels = torch.tensor([pool.source.items[index].label for index in pool.indices])

    def row(name: str, scores: Tensor) -> list[str]:
        found = evaluate(scores, labels, class_names=classes.names, split="base-to-novel")
        values = (found.base, found.novel, found.harmonic_mean, found.all, found.ece_percent)
        return [name, *(f"{value:.2f}" for value in values)]

    def together(chosen: Sequence[int], settings: EnsembleSpec, *, is_tempered: bool) -> Tensor:
        return combine(
            [logits[i] for i in chosen],
            [teachers[i].classes for i in chosen],
            settings,
            temperatures=[temperatures[i] if is_tempered else 1.0 for i in chosen],
            n_classes=len(classes.names),
        ).log_probabilities

    singles = {
        i: together([i], SETTINGS["equal"], is_tempered=False)
        for i, teacher in enumerate(teachers)
        if len(teacher.classes) == len(classes.names)
    }
    rows = [row(names[i], scores) for i, scores in singles.items()]
    for n_chosen in range(2, len(teachers) + 1):
        for others in itertools.combinations(range(1, len(teachers)), n_chosen - 1):
            chosen = [0, *others]
            title = " + ".join(str(i + 1) for i in chosen)
            rows += [
                row(f"{title}, {name}", together(chosen, one, is_tempered=True))
                for name, one in SETTINGS.items()
            ]
            raw = together(chosen, SETTINGS["equal"], is_tempered=False)
            rows.append(row(f"{title}, equal, without temperatures", raw))
    print(f"{len(labels):,} images")
    for i, (name, run) in enumerate(zip(names, runs, strict=True)):
        print(f"{i + 1}: {name}, {run.name}, temperature {temperatures[i]:.3f}")
    for i, j in itertools.combinations(singles, 2):
        same = (singles[i].argmax(1) == singles[j].argmax(1)).double().mean()
        right = [singles[k].argmax(1) == labels for k in (i, j)]
        either = (right[0] | right[1]).double().mean()
        print(f"{i + 1} and {j + 1}: agree {100 * same:.2f} %, either right {100 * either:.2f} %")
    header = ["teachers", "base", "novel", "HM", "all", "ECE"]
    print(text_table(header, rows))


if __name__ == "__main__":
    main()
