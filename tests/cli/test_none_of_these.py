"""Calibrated scores and "none of these", from the export to the answers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdedge as api
from kdedge.artifacts.ship import file_to_ship
from kdedge.config.load import parse_overrides
from kdedge.runtime.artifact import load_artifact

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Kdedge = Callable[..., Any]

# 40 unlabeled images: a half of them has twice the 9 that 90 % needs
BOTH = ("--calibrate", "--none-of-these", "90%", "--set", "data.labeled=null")


@pytest.fixture(scope="module")
def calibrated(
    trained_project: Path, copy_of: Callable[..., Path], made_once: Callable[..., Path]
) -> Path:
    """The trained project with `both` in FP16 and INT8, and `open` with open classes."""
    from kdedge.cli.main import run

    def write(made: Path) -> None:
        folder = copy_of(trained_project, made / "project")
        export = ("export", "tiny/02", "--runs", str(folder / "runs"))
        int8 = ("--int8", "--int8-minutes", "0")
        assert run([*export, *BOTH, *int8, "--output", str(folder / "both")]) == 0
        assert run([*export, *BOTH, "--open-classes", "--output", str(folder / "open")]) == 0

    return made_once("calibrated", write) / "project"


@pytest.fixture
def project(calibrated: Path, enter: Callable[..., Path]) -> Path:
    """A copy of that project, as the current folder."""
    return enter(calibrated)


def open_run(project: Path, *overrides: str, name: str = "tiny/02") -> Any:
    from kdedge.runs.folder import RunFolder
    from kdedge.runs.model import load_run
    from kdedge.setup.workspace import Workspace, set_up_device

    workspace = Workspace(project / "runs", set_up_device("cpu"))
    return load_run(
        RunFolder.open(project / "runs" / name), workspace, overrides=parse_overrides(overrides)
    )


def test_the_files_give_the_students_logits_divided_by_the_temperature(project: Path) -> None:
    import torch

    from kdedge.loading.decoding import normalizer

    student = open_run(project)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    images = normalizer(student.preprocess, torch.device("cpu"))(torch.from_numpy(pixels))
    own = student.logits(images).numpy()
    for folder in ("both", "open"):
        found = load_artifact(project / folder).temperature
        assert (found.fitted_to, found.images) == ("teacher", "40 of 40 images of data.unlabeled")
        assert abs(found.value - 1) > 0.01
        with api.load(folder) as model:
            # The same product with another scale, rounded to float32
            np.testing.assert_allclose(found.value * model.logits(pixels), own, atol=1e-4)


def test_the_calibration_error_of_each_file_is_given_before_and_after(project: Path) -> None:
    artifact = load_artifact(project / "both")
    card = (project / "both/README.md").read_text()
    for file in artifact.files:
        assert file.parity.ece_percent is not None
        assert file.parity.ece_percent_before != file.parity.ece_percent
        assert f"{file.parity.ece_percent_before:.2f} | {file.parity.ece_percent:.2f}" in card


def test_labels_of_images_that_are_measured_on_are_left_out(project: Path) -> None:
    from kdedge.runs.temperature import labeled_without

    student = open_run(project, "data.validation.folder=test")
    test = student.images.load("test")
    images, key = labeled_without(student, ())
    assert (len(images.indices), key) == (10, "data.validation")  # of the two base classes
    three = [test.digests[index] for index in test.indices[:3]]
    images, _ = labeled_without(student, three)
    assert len(images.indices) == 7
    assert labeled_without(student, test.digests.values()) is None


def test_labels_that_no_temperature_fits_leave_the_scores_as_they_are(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny student's answers are the same for all images: every temperature is too low."""
    from kdedge.runs.temperature import fit_temperature

    assert fit_temperature(open_run(project), exclude_digests=()) is None
    assert "no temperature fits the 8 images of data.labeled" in caplog.text


def test_labels_of_one_class_leave_the_calibration_to_the_teacher(project: Path) -> None:
    from kdedge.runs.temperature import fit_temperature

    for path in Path("labeled").glob("[!c]*"):
        shutil.rmtree(path)
    fitted = fit_temperature(open_run(project), exclude_digests=())
    assert fitted.fitted_to == "teacher"


def test_labels_that_a_model_was_trained_on_do_not_calibrate_it(
    project: Path, kdedge: Kdedge
) -> None:
    from kdedge.runs.temperature import fit_temperature, labeled_without

    ridge = ("student.method=ridge", "student.settings={outputs: logits, labeled_weight: 1.0}")
    run = api.distill("r.yaml", overrides=parse_overrides([*ridge, "data.split=all"]))
    student = open_run(project, name=run.name)
    assert student.recipe.data.labeled is not None
    assert labeled_without(student, ()) is None
    fitted = fit_temperature(student, exclude_digests=())
    assert fitted is None or fitted.fitted_to == "teacher"
    done = kdedge("eval", "tiny/01", "--set", "export.calibrate=true")
    assert done.code == 0
    assert "The calibrated scores are not measured: " in done.err


def test_without_labels_the_mean_confidence_is_the_share_with_the_teachers_class(
    project: Path,
) -> None:
    from kdedge.runs.temperature import fit_temperature

    student = open_run(project, "data.labeled=null")
    pool = student.images.load("unlabeled")
    left_out = [pool.digests[index] for index in pool.indices[:10]]
    found = fit_temperature(student, exclude_digests=left_out)
    assert (found.fitted_to, found.images) == ("teacher", "30 of 30 images of data.unlabeled")
    logits = student.logits_of(pool.only(pool.indices[10:]), what="")
    confidence = (logits.double() / found.value).softmax(dim=1).amax(dim=1).mean()
    overrides = {"data.test": None, "data.labeled": None}
    judged = api.evaluate(str(project / "runs/tiny/02"), overrides=overrides)
    # Of all 40 images; those left out may be a fourth of them
    assert 0 < float(confidence) < 1
    assert abs(40 * judged.agreement_percent - 100 * 30 * float(confidence)) <= 100 * 10 + 1e-6


def test_each_file_has_a_limit_and_keeps_the_share_of_the_known_images(project: Path) -> None:
    artifact = load_artifact(project / "both")
    assert artifact.none_of_these.share_percent == 90
    assert artifact.none_of_these.n_images == 20
    assert all(file.none_below is not None for file in artifact.files)
    added = api.export("both", targets=["onnx-image"]).file("model.image.onnx")
    assert added.none_below == artifact.files[0].none_below  # which example.py reads
    for precision in ("fp32", "int8"):
        found = api.predict("both", "pool", precision=precision).classified
        assert all(one.known_percent is not None for one in found)
        assert 0 < sum(not one.is_none for one in found) <= len(found)


def test_the_limit_is_that_of_the_images_to_which_no_gaussian_was_fitted(project: Path) -> None:
    """Of 10 images and for 90 %, it is the lowest score."""
    from kdedge.deploy.known_images import choose_known_images
    from kdedge.runtime.none_of_these import read_gaussians

    trained = open_run(project)
    pool = trained.images.load("unlabeled")
    known = choose_known_images(trained, pool, "90%", exclude_digests=())
    artifact = load_artifact(project / "both")
    with api.load("both", precision="fp32") as model:
        logits = model.logits(known.pixels)
    gaussians = read_gaussians(artifact.checked(artifact.none_of_these.file))
    fitted, held_out = (gaussians.scores(logits[first::2]) for first in (0, 1))
    limit = artifact.files[0].none_below.limit
    assert limit == pytest.approx(held_out.min(), rel=1e-4)  # of logits in other batches
    assert abs(limit - fitted.min()) > 1


def test_fitting_images_are_neither_test_images_nor_those_of_int8s_calibration(
    project: Path,
) -> None:
    from kdedge.deploy.known_images import choose_known_images

    trained = open_run(project)
    pool = trained.images.load("unlabeled")
    compared = set(list(pool.digests.values())[:5])
    known = choose_known_images(trained, pool, "90%", exclude_digests=compared)
    assert not known.digests & compared
    calibration = json.loads((project / "both/calibration.json").read_text())
    used = {one["sha256"] for one in [*calibration["files"], *calibration["held_out"]["files"]]}
    drawn = choose_known_images(trained, pool, "90%", exclude_digests=())
    assert used
    assert not used & drawn.digests


def test_eval_gives_the_calibration_error_before_and_after(project: Path, kdedge: Kdedge) -> None:
    import torch

    from kdedge.evaluation.accuracy import calibration_error_percent

    calibrate = ("--set", "export.calibrate=true", "--set", "data.labeled=null")
    measured = ("--set", "data.validation={folder: test}")  # and so not what it is fitted on
    done = kdedge("eval", "tiny/02", *calibrate, *measured, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    student = open_run(project)
    images = student.images.load("test")
    labels = np.array(student.labels_of(images))
    logits = student.logits_of(images, what="").numpy()
    # The temperature is that of an export, which leaves out the same test images
    exported = load_artifact(project / "both").temperature
    assert found["temperature"] == pytest.approx(exported.value, rel=1e-6)
    for key, divisor in (("ece_percent", 1.0), ("calibrated_ece_percent", exported.value)):
        expected = calibration_error_percent(*map(torch.from_numpy, (logits / divisor, labels)))
        assert found[key] == pytest.approx(expected, abs=1e-4)


def everything_is_none(folder: Path) -> None:
    """Raises the float32 file's limit above every score."""
    artifact = load_artifact(folder)
    file = artifact.files[0]
    assert file.none_below is not None
    high = dataclasses.replace(file.none_below, limit=1e6)
    artifact.with_files(dataclasses.replace(file, none_below=high)).save()


def test_predict_says_none_in_every_format(project: Path, kdedge: Kdedge) -> None:
    everything_is_none(project / "both")
    image = "test/cat/0.jpg"
    done = kdedge("predict", "both", image, "--top", "2")
    assert done.out.split("  ")[1] == "none"
    assert "1 classified, 1 of them none of the classes" in done.err
    row = json.loads(kdedge("predict", "both", image, "--format", "jsonl").out)
    assert (row["class"], row["score_percent"], row["is_none"]) == ("none", None, True)
    assert row["top"][0]["class"] in done.out
    assert 0 <= row["known_percent"] <= 100
    text = kdedge("predict", "both", image, "--format", "csv").out
    (cells,) = csv.DictReader(io.StringIO(text))
    assert cells["class"] == "none"
    assert float(cells["known_percent"]) == pytest.approx(row["known_percent"], abs=1e-4)
    assert "none" in str(api.predict("both", image))
    assert api.predict("both", image).to_csv() == text


def test_a_csv_of_several_classes_has_the_known_percent_in_its_own_column(
    project: Path, kdedge: Kdedge
) -> None:
    command = ("predict", "both", "test/cat/0.jpg", "--top", "2", "--format")
    row = json.loads(kdedge(*command, "jsonl").succeeds().out)
    (cells,) = csv.DictReader(io.StringIO(kdedge(*command, "csv").succeeds().out))
    assert float(cells["known_percent"]) == pytest.approx(row["known_percent"], abs=1e-4)
    assert cells["class_2"] == row["top"][1]["class"]
    assert float(cells["score_percent_2"]) == pytest.approx(
        row["top"][1]["score_percent"], abs=1e-4
    )


@pytest.mark.parametrize("folder", ["both", "open"])
def test_the_example_in_an_artifact_says_none_where_predict_does(
    project: Path, kdedge: Kdedge, folder: str
) -> None:
    artifact = load_artifact(project / folder)
    shipped = file_to_ship(artifact, None)
    file, precision = shipped.file, shipped.file.precision
    found = api.predict(folder, "test", precision=precision).classified
    percents = [one.known_percent for one in found]
    middle = file.none_below.percentiles[int(np.median(percents))]
    own = dataclasses.replace(file.none_below, limit=middle)
    artifact.with_files(dataclasses.replace(file, none_below=own)).save()
    images = sorted(map(str, Path("test").rglob("*.jpg")))
    expected = api.predict(folder, *images, precision=precision).classified
    assert len({one.is_none for one in expected}) == 2
    command = [sys.executable, "-I", f"{folder}/example.py", *images]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answers = [line.split("\t")[1] for line in done.stdout.splitlines()]
    assert answers == ["none" if one.is_none else one.top[0].class_name for one in expected]
    # With a model, it prints what `kdedge verify` asks for: the class, and that it is none
    command[3:3] = [f"{folder}/{file.name}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["is_none"] for row in rows] == [one.is_none for one in expected]
    assert [row["label"] for row in rows] == [one.top[0].class_name for one in expected]
    (Path(folder) / artifact.none_of_these.file).unlink()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stderr.endswith("is missing. Copy it, too.\n")


def test_none_is_an_answer_that_compare_compares(project: Path, kdedge: Kdedge) -> None:
    shutil.copytree("both", "never")
    everything_is_none(project / "never")
    done = kdedge("compare", "both", "never", "test", "--labels", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    alone = [one.is_none for one in api.predict("both", "test").classified]
    assert found["n_agree"] == sum(alone)
    assert len(found["changed"]) == len(alone) - sum(alone)
    assert all(one["new"] == "none" for one in found["changed"])
    assert found["classes"]["none"] == [sum(alone), len(alone)]
    assert found["labeled"]["new_accuracy_percent"] == 0


def test_a_low_score_is_still_no_name_where_the_image_is_known(
    project: Path, kdedge: Kdedge
) -> None:
    options = ("--min-score", "100", "--format", "jsonl")
    rows = kdedge("predict", "both", "test", *options).out.splitlines()
    answers = [json.loads(row) for row in rows]
    assert {row["class"] for row in answers if not row["is_none"]} == {None}
    assert {row["class"] for row in answers if row["is_none"]} <= {"none"}


def test_new_classes_keep_the_limit_and_none_may_not_be_one(project: Path, kdedge: Kdedge) -> None:
    before = load_artifact(project / "open")
    assert kdedge("classes", "open", "--remove", "dog").code == 0
    after = load_artifact(project / "open")
    assert after.files == before.files
    with api.load("open") as model:
        (found,) = model.classify(["test/cat/0.jpg"])
    assert found.known_percent is not None
    done = kdedge("classes", "open", "--add", "none", "--from", "tiny/02")
    assert done.code == 3
    assert "the prediction for images of none of the classes" in done.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--none-of-these", "0%"), 2, 'must be from "50%" to "99.9%", got "0%"'),
        (("--none-of-these", "100%"), 2, 'must be from "50%" to "99.9%", got "100%"'),
        (("--none-of-these", "nan"), 2, 'must be a percentage such as "5%"'),
        (("--none-of-these", "0.95"), 2, 'must be a percentage such as "5%"'),
        (("--none-of-these", "95%", "--head", "argmax"), 2, "none_of_these with head: argmax"),
        (("--calibrate", "--head", "argmax"), 2, "calibrate with head: argmax"),
        (("--none-of-these", "99.9%"), 3, "needs 1998 or more unlabeled images, but 40 are left"),
        (("--none-of-these", "95%", "--set", "data.unlabeled=null"), 3, "but 0 are left"),
        (("--calibrate", "--set", "data.labeled=null", "--set", "data.unlabeled=null"), 3,
         "there are neither labeled images of two classes, nor unlabeled images to spare"),
        (("--none-of-these", "90%", "--classes", "names.txt"), 2, '"none", which is the'),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_explained(
    trained: Path, kdedge: Kdedge, options: tuple[str, ...], code: int, said: str
) -> None:
    Path("names.txt").write_text("cat\nnone\n")
    kdedge("export", "tiny/02", *options).fails(code, said)
    assert not (trained / "runs/tiny/02/artifacts").exists()


def test_images_that_are_all_equal_show_no_limit(trained: Path, kdedge: Kdedge) -> None:
    """Files that differ, as their contents count once each; their pixels are the same."""
    first = (trained / "pool/0_0.jpg").read_bytes()
    for number, path in enumerate(sorted((trained / "pool").iterdir())):
        path.write_bytes(first + bytes([number]))
    done = kdedge("export", "tiny/02", "--none-of-these", "90%")
    assert done.code == 3
    assert "have the same pixels" in done.err


@pytest.mark.parametrize("folder", ["both", "open"])
def test_a_server_tells_none_as_predict_does(kdedge: Kdedge, project: Path, folder: str) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    options = ("--batch", "1", "--top", "5", "--format", "jsonl")
    everything_is_none(project / "both")
    lines = kdedge("predict", folder, "test", *options).out.splitlines()
    expected = [json.loads(line) for line in lines]
    assert folder == "open" or all(row["is_none"] for row in expected)
    with api.serve(folder, port=0) as server:
        for row in expected:
            data = Path(row.pop("image")).read_bytes()
            with urllib.request.urlopen(f"{server.url}/predict", data) as answer:
                assert json.load(answer) == row
