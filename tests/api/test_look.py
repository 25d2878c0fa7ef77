"""What there is: artifacts, benchmark sets, images, methods, the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.runtime.artifact import Artifact

MakeArtifact = Callable[..., Artifact]


def test_an_artifact_and_a_run_with_one_are_opened(
    make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    made = make_artifact(tmp_path / "line3" / "02" / "artifacts" / "01")
    for source in (made, made.path, str(tmp_path / "line3" / "02")):
        assert kdedge.open_artifact(source) == made


def test_servers_get_their_folders(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    made = make_artifact(tmp_path / "artifact")
    model = kdedge.write_triton(made, tmp_path / "models", precision="fp32")
    assert (model / "1" / "model.onnx").is_file()
    with pytest.raises(kdedge.RecipeError, match="exists"):
        kdedge.write_triton(made, tmp_path / "models", precision="fp32")


def test_benchmark_sets_are_listed_and_compared(tmp_path: Path) -> None:
    sets = kdedge.list_sets(tmp_path)
    assert sets["sun397"].benchmark.n_classes == 397
    assert {one.is_here for one in sets.values()} == {"no"}
    one = kdedge.open_set("sun397", tmp_path)
    assert one == sets["sun397"]
    found = kdedge.verify_set("sun397", tmp_path)
    assert any("is missing" in problem for problem in found.problems)


def test_images_are_scanned(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / name / "a.png")
    found = kdedge.scan_images(tmp_path)
    assert (found.n_images, found.n_duplicates) == (2, 1)
    assert found.sizes_px == (((9, 8), 2),)


def test_the_machine_the_methods_and_the_recipe_are_told() -> None:
    pytest.importorskip("torch")
    assert kdedge.doctor()["machine"]["kdedge"] == kdedge.__version__
    methods = kdedge.list_methods()
    assert methods["promptkd"]["unlabeled_images"]
    assert "kl" in methods["promptkd"]["losses"]
    schema = kdedge.schema()
    assert schema["properties"]["student"]
    assert schema["methods"].keys() == methods.keys()
    assert schema["targets"]["onnx"]["flag"] == "--onnx"
