"""A shipped recipe on a small copy of its benchmark set, from a teacher of other classes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import load_recipe
from kdedge.data.split import few_shot
from kdedge.paper.benchmark_sets import benchmark_set
from kdedge.setup.classes import load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.workspace import Workspace

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("textures")

DTD = benchmark_set("dtd")

NAMES = ("banded", "blotchy", "zigzagged")
N_IMAGES = {"train": 24, "val": 30, "test": 6}
CROSS = {
    "teacher.run": "runs/tiny/01",
    "data.split": "all",
    "student.backbone": "null",
    "student.weights": "student.pt",
    "student.settings.prompt_depth": "2",
    "student.settings.losses.kl.weight": "1000",
    "optim.epochs": "1",
    "optim.warmup_epochs": "0",
}


@pytest.fixture
def textures(
    trained: Path, add_benchmark: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The set's folder in the current project, with a split file in CoOp's format."""
    generator = np.random.default_rng(0)
    folder = trained / "data" / DTD.folder
    split: dict[str, list[list[Any]]] = {}
    for part, n_images in N_IMAGES.items():
        split[part] = []
        for i in range(n_images):
            name = NAMES[i % 3]
            path = folder / "images" / name / f"{name}_{part}_{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            split[part].append([f"{name}/{path.name}", i % 3, name])
    (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    small = replace(DTD, name="small", n_classes=3, n_images=N_IMAGES)
    add_benchmark(small)
    recipe = Path(__file__).parents[2] / "recipes" / "dtd.yaml"
    (trained / "dtd.yaml").write_text(
        recipe.read_text().replace("benchmark: dtd", "benchmark: small")
    )
    monkeypatch.delenv("KDEDGE_DATA", raising=False)
    return folder


def test_a_teacher_of_other_classes_teaches_the_names_of_a_set(kdedge: Run) -> None:
    options = [word for key, value in CROSS.items() for word in ("--set", f"{key}={value}")]
    kdedge("distill", "dtd.yaml", *options).succeeds()
    run = Path("runs/dtd/01")
    assert load_class_vectors(run / "class_vectors.safetensors").class_names == NAMES
    measured = json.loads((run / "eval.json").read_text())["student"]
    assert (measured["split"], measured["n_images"]) == ("all", N_IMAGES["test"])


def test_a_trained_run_is_measured_on_a_set_with_its_names(kdedge: Run) -> None:
    values = ("classes={benchmark: small}", "data.test={benchmark: small, part: test}")
    options = [word for value in values for word in ("--set", value)]
    found = json.loads(kdedge("eval", "tiny/01", *options, "--json").succeeds().out)
    assert tuple(found["per_class"]) == NAMES


@pytest.fixture
def teach(kdedge: Run, textures: Path) -> Callable[..., Any]:
    """Runs a command of the teacher of these textures."""
    values = {
        "teacher.backbone": "null",
        "teacher.weights": "teacher.pt",
        "teacher.settings": "{prompt_depth_text: 2, prompt_depth_vision: 2, n_anchor_templates: 4}",
        "data.labeled.shots": "2",
        "student": "null",
        "optim.epochs": "1",
    }
    options = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return lambda command, *more: kdedge(command, "dtd.yaml", *options, *more)


def test_a_validation_part_of_few_shots_chooses_an_epoch(teach: Callable[..., Any]) -> None:
    options = ("--set", "optim.selection=validation", "--set", "data.validation.shots=1")
    teach("teach", *options).succeeds()
    record = json.loads(Path("runs/dtd/01/provenance.json").read_text())
    assert record["summary"]["training"]["validation_percent"] is not None
    # Labeled images are drawn first, then validation images, from one stream: CoOp's protocol
    recipe = load_recipe(Path("runs/dtd/01/recipe.yaml")).recipe
    workspace = Workspace(Path("runs"), torch.device("cpu"))
    images = RecipeImages(recipe, load_classes(recipe), workspace)
    stream = random.Random(recipe.seed)
    for part, shots in (("labeled", 2), ("validation", 1)):
        labels = [item.label for item in images.load(part).source.items]
        drawn = few_shot(labels, range(len(labels)), shots=shots, stream=stream)
    assert list(images.drawn_validation().indices) == drawn
