"""What counts as the same teacher or student: what decides its weights, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]


def teachers() -> list[str]:
    return sorted(str(path.parent) for path in Path("runs").glob("*/*/teacher.safetensors"))


def test_the_same_recipe_again_uses_the_same_teacher(kdedge: Run, trained: Path) -> None:
    before = teachers()
    assert kdedge("distill", "r.yaml").code == 0
    assert teachers() == before


@pytest.mark.parametrize(
    "change",
    [
        "teacher.settings.n_anchor_templates=5",
        "teacher.optim.lr=0.01",
        "seed=2",
        "data.labeled.shots=3",
        'classes.template="a picture of a {}."',
    ],
)
def test_a_setting_that_changes_the_teacher_trains_another(
    kdedge: Run, trained: Path, change: str
) -> None:
    before = teachers()
    assert kdedge("distill", "r.yaml", "--set", change).code == 0
    assert len(teachers()) == len(before) + 1


def test_labeled_images_replaced_under_the_same_names_train_another_teacher(
    kdedge: Run, trained: Path
) -> None:
    before = teachers()
    for path in Path("labeled").rglob("*.jpg"):
        Image.open(path).rotate(180).save(path)
    assert kdedge("distill", "r.yaml").code == 0
    assert len(teachers()) == len(before) + 1


def test_another_template_set_of_a_zeroshot_teacher_makes_another_student(
    kdedge: Run, project: Path
) -> None:
    zeroshot = ("--set", "teacher.method=zeroshot", "--set")
    single = kdedge("distill", "r.yaml", *zeroshot, "teacher.settings={templates: single}")
    seven = kdedge(
        "distill", "r.yaml", "--resume", *zeroshot, "teacher.settings={templates: ensemble7}"
    )
    assert (single.code, seven.code) == (0, 0), single.err + seven.err
    students = [path.read_bytes() for path in Path("runs").glob("*/*/student.safetensors")]
    assert len(students) == 2
    assert students[0] != students[1]


def test_validation_without_base_classes_chooses_nothing(kdedge: Run, project: Path) -> None:
    """Their labels are the novel classes', which nothing may look at."""
    Path("held-out.csv").write_text(
        "path,label\n"
        + "".join(f"{path},{path.parent.name}\n" for path in Path("labeled").glob("red fox/*.jpg"))
    )
    done = kdedge(
        "teach",
        "r.yaml",
        "--set",
        "data.validation={list: held-out.csv}",
        "--set",
        "optim.selection=validation",
    )
    done.fails(3, "data.validation has no image of a base class")
    assert not list(Path().glob("runs/tiny/*"))  # it is said before anything is trained


@pytest.mark.usefixtures("project")
def test_all_models_of_a_recipe_are_chosen_by_the_same_validation_images(kdedge: Run) -> None:
    """Also a student's, which draws no labeled images before them."""
    shutil.copytree("labeled", "held-out")
    options = ("data.validation={folder: held-out, shots: 2}", "optim.selection=validation")
    texts = [part for option in options for part in ("--set", option)]
    done = kdedge("distill", "r.yaml", *texts)
    assert done.code == 0, done.err
    lists = [
        json.loads(path.read_text())["hashes"]["validation_list"]
        for path in Path("runs/tiny").glob("*/provenance.json")
    ]
    assert len(lists) == 2
    assert lists[0] == lists[1]
