"""A run as a model: opened without building anything, for its own class list or another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kdedge.errors import DataError, RecipeError
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.setup.workspace import Workspace

NAMES = ("cat", "dog", "red fox", "school bus")


def opened(run: str, **options: Any) -> RunModel:
    folder = RunFolder.open(Path("runs/tiny") / run)
    return load_run(folder, Workspace(folder.root, torch.device("cpu")), **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("run", ["01", "02"])
def test_names_vectors_and_hashes_need_no_weights(trained: Path, run: str) -> None:
    model = opened(run, names=("dog", "cat"))
    Path("teacher.pt").unlink()
    Path("student.pt").unlink()
    assert model.class_names == ("dog", "cat")
    assert model.class_vectors().shape[0] == 2
    assert len(model.features_provenance) == len(model.vectors.provenance) == 64
    assert model.preprocess.size_px == 32


@pytest.mark.parametrize("run", ["01", "02"])
def test_logits_are_scaled_cosines_with_the_class_vectors(
    trained: Path, run: str, images: torch.Tensor
) -> None:
    model = opened(run)
    assert model.class_names == NAMES
    expected = model.scale * model.forward_features(images) @ model.class_vectors().T
    assert torch.equal(model.logits(images), expected)


@pytest.mark.parametrize("run", ["01", "02"])
def test_class_order_permutes_the_logits_and_nothing_else(
    trained: Path, run: str, images: torch.Tensor
) -> None:
    own = opened(run).logits(images)
    torch.testing.assert_close(
        opened(run, names=NAMES[::-1]).logits(images), own.flip(-1), rtol=1e-6, atol=1e-5
    )


def test_a_new_name_of_a_student_has_its_teachers_vector(trained: Path) -> None:
    names = ("lorry", "cat")
    student, teacher = opened("02", names=names), opened("01", names=names)
    assert torch.equal(student.class_vectors(), teacher.class_vectors())
    shutil.rmtree("runs/tiny/01")
    with pytest.raises(DataError, match="1 of 2 class names have no stored vector, first 'lorry'"):
        opened("02", names=names).class_vectors()


def test_a_label_is_the_position_of_its_name_in_the_class_list(trained: Path) -> None:
    model = opened("02", names=("school bus", "cat"))
    images = model.images("test")
    assert images is not None
    named = [images.source.items[index].key.split("/")[0] for index in images.indices]
    expected = [{"school bus": 0, "cat": 1}.get(name) for name in named]
    assert model.labels_of(images) == expected
    assert None in expected


def test_an_unfinished_run_is_no_model(trained: Path) -> None:
    run = RunFolder.create(
        Path("runs"), "tiny", kind="student", recipe_text="name: x\n", provenance={}
    )
    with pytest.raises(RecipeError, match=r"tiny/03 is not finished\.\n.*--resume"):
        load_run(run, Workspace(run.root, torch.device("cpu")))


def test_a_backbone_is_built_once_for_all_runs_of_a_workspace(trained: Path) -> None:
    workspace = Workspace(Path("runs"), torch.device("cpu"))
    teachers = [load_run(RunFolder.open(Path("runs/tiny/01")), workspace) for _ in range(2)]
    assert teachers[0].backbone is teachers[1].backbone
