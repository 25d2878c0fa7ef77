"""What a run recorded of its images and classes is compared when the run is used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.setup.workspace import Workspace

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("trained")

STUDENT = Path("runs/tiny/02")


def change_one_test_image() -> None:
    Path("test/dog/0.jpg").write_bytes(Path("test/cat/0.jpg").read_bytes())


def remove_ten_unlabeled_images() -> None:
    for file in sorted(Path("pool").iterdir())[:10]:
        file.unlink()


def edit_provenance(**values: Any) -> None:
    file = STUDENT / "provenance.json"
    record = json.loads(file.read_text())
    record["hashes"] |= values.pop("hashes", {})
    file.write_text(json.dumps(record | values))


def test_eval_export_and_bench_say_that_the_test_images_are_others(kdedge: Run) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    quick = ("--against", "none", "--seconds", "0.01", "--calls", "3", "--batch", "1")
    others = ("--set", "data.test.folder=labeled")
    warning = "The test images of tiny/02 are others than it was measured on"
    assert warning not in kdedge("eval", "tiny/02").err
    change_one_test_image()
    for command in (("eval", "tiny/02"), ("export", "tiny/02"), ("bench", "tiny/02", *quick)):
        done = kdedge(*command).succeeds()
        assert warning in done.err
    assert warning not in kdedge("eval", "tiny/02", *others).err  # named on purpose


def test_a_run_that_cannot_go_on_as_its_images_have_changed_says_so(kdedge: Run) -> None:
    edit_provenance(status="interrupted")
    remove_ten_unlabeled_images()
    done = kdedge("distill", "r.yaml", "--resume").succeeds()
    assert "was interrupted with different unlabeled images.\n" in done.err
    assert Path("runs/tiny/03/student.safetensors").is_file()


def test_a_resumed_run_records_the_images_that_it_is_measured_on(kdedge: Run) -> None:
    before = json.loads((STUDENT / "provenance.json").read_text())["measured_on"]
    edit_provenance(status="interrupted", summary={})
    change_one_test_image()
    kdedge("distill", "r.yaml", "--resume").succeeds()
    assert json.loads((STUDENT / "provenance.json").read_text())["measured_on"] != before
    assert "are others" not in kdedge("eval", "tiny/02").err


# A run as a model


def opened(run: str, **options: Any) -> RunModel:
    folder = RunFolder.open(Path("runs/tiny") / run)
    return load_run(folder, Workspace(folder.root, torch.device("cpu")), **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("run", ["01", "02"])
def test_names_vectors_and_hashes_need_no_weights(run: str) -> None:
    model = opened(run, names=("dog", "cat"))
    Path("teacher.pt").unlink()
    Path("student.pt").unlink()
    assert model.class_names == ("dog", "cat")
    assert model.class_vectors().shape[0] == 2
    assert len(model.features_hash) == len(model.vectors_hash) == 64
    assert model.preprocess.size_px == 32


def test_a_label_is_the_position_of_its_name_in_the_class_list() -> None:
    model = opened("02", names=("school bus", "cat"))
    images = model.images.load("test")
    named = [images.source.items[index].key.split("/")[0] for index in images.indices]
    expected = [{"school bus": 0, "cat": 1}.get(name) for name in named]
    assert model.labels_of(images) == expected
    assert None in expected


def test_a_backbone_is_built_once_for_all_runs_of_a_workspace() -> None:
    workspace = Workspace(Path("runs"), torch.device("cpu"))
    teachers = [load_run(RunFolder.open(Path("runs/tiny/01")), workspace) for _ in range(2)]
    assert teachers[0].backbone is teachers[1].backbone
