"""`kdedge.teach`, `distill`, `train`, `evaluate`: the runs of the commands, from Python."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.api.arguments import load_for
from kdedge.runs.folder import RunFolder
from kdedge.runtime.preprocess import decode_image, resize_and_crop
from kdedge.serving.source import open_frames

torch = pytest.importorskip("torch")

from kdedge.clip.backbone import unit_length  # noqa: E402 - needs torch
from kdedge.clip.vision import encode_image  # noqa: E402
from kdedge.runs.model import load_run, run_workspace  # noqa: E402

CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of small images of one color each, and others of them in `pool`."""
    path = tmp_path_factory.mktemp("api")
    for position, name in enumerate(CLASSES):
        for above, least in (("images", 100), ("pool", 90), ("labeled", 95)):
            (path / above / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.zeros((40, 40, 3), np.uint8)
                pixels[:, :, position] = least + 50 * number
                Image.fromarray(pixels).save(path / above / name / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def recipe(folder: Path) -> dict[str, Any]:
    return {
        "name": "toy",
        "classes": list(CLASSES),
        "data": {
            "unlabeled": {"folder": folder / "pool"},
            "labeled": {"folder": folder / "labeled", "shots": 1},
            "test": {"folder": folder / "images"},
        },
        "teacher": {"method": "coop", "backbone": "kdedge-demo-teacher", "weights": "builtin"},
        "student": {
            "backbone": "kdedge-demo-student",
            "weights": "builtin",
            "settings": {"prompt_depth": 1},
        },
        "optim": {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "n_workers": 0},
    }


@pytest.fixture(scope="module")
def student(recipe: dict[str, Any], folder: Path) -> kdedge.Run:
    return kdedge.distill(recipe, root=folder / "runs", device="cpu", epochs=2)


def test_a_student_has_its_teacher_results_and_recipe(student: kdedge.Run) -> None:
    assert (student.teacher.name, student.teacher.role) == ("toy/01", "teacher")
    assert student.teacher.teacher is None
    assert student.result.n_images == 9
    assert set(student.result.per_class) == set(CLASSES)
    written = json.loads((student.path / "eval.json").read_text())
    assert student.results.keys() == written.keys() >= {"zeroshot", "teacher", "student"}
    assert student.results["student"] == student.result
    assert [row[0] for row in student.table.rows][-2:] == ["teacher", "student"]
    recipe = student.recipe
    assert recipe.name == "toy"
    assert recipe.student.optim.epochs == 2
    assert recipe.teacher.optim is None
    assert recipe.optim.epochs == 1


def test_numbers_of_numpy_train_the_run_that_plain_numbers_train(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    overrides = {
        "student.settings": {"labeled_weight": np.float64(0.5), "prompt_depth": np.int64(1)},
        "student.optim.crop_scale_min": np.float64(0.25),
        "student.optim.flip": np.bool_(0),
        "data.labeled.shots": np.int32(2),
        "classes": np.array(CLASSES),
    }
    given = {"epochs": np.int64(2), "lr": np.float64(0.125), "seed": np.uint8(3)}
    options = {"root": tmp_path, "device": "cpu", "overrides": overrides}
    run = kdedge.distill(recipe, **given, **options)
    assert "np." not in run.folder.recipe.read_text()
    assert run.recipe.student.settings["labeled_weight"] == 0.5
    assert (run.recipe.student.optim.epochs, run.recipe.student.optim.flip) == (2, False)
    plain = {
        "student.settings": {"labeled_weight": 0.5, "prompt_depth": 1},
        "student.optim.crop_scale_min": 0.25,
        "student.optim.flip": False,
        "data.labeled.shots": 2,
    }
    options["overrides"] = plain
    again = kdedge.distill(recipe, epochs=2, lr=0.125, seed=3, resume=True, **options)
    assert again.path == run.path
    seen = {"data.max_bad_images": np.int64(5), "gates.max_drop": np.float64(50)}
    assert kdedge.evaluate(run, device="cpu", overrides=seen) == run.result


def test_features_are_those_of_each_image_alone(
    student: kdedge.Run, recipe: dict[str, Any], folder: Path, tmp_path: Path, caplog: Any
) -> None:
    bad, one = tmp_path / "bad.jpg", folder / "images/red/2.png"
    bad.write_bytes(b"no image")
    others = [
        kdedge.train(recipe, x, root=folder / "others", device="cpu") for x in ("cocoop", "ridge")
    ]
    for run in (student, student.teacher, *others):
        caplog.clear()
        features, paths = run.features([folder / "pool", bad], one, device="cpu")
        assert paths == [*map(str, sorted((folder / "pool").rglob("*.png"))), str(one)]
        assert f"1 of 11 images cannot be read and are left out. The first is {bad}" in caplog.text
        assert (features.dtype, features.ndim) == (np.float32, 2)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
        model = load_run(run.folder, run_workspace(run.folder, "cpu"))
        wanted = model.preprocess
        for row, path in zip(features, paths, strict=True):
            pixels = resize_and_crop(decode_image(Path(path).read_bytes()), wanted)
            image = (np.asarray(pixels) / 255 - wanted.mean) / wanted.std
            alone = torch.tensor(image.transpose(2, 0, 1), dtype=torch.float32)[None]
            expected = model.forward_features(alone)[0]
            if run is others[1]:  # whose features are logits
                expected = unit_length(encode_image(model.backbone.visual, alone))[0].detach()
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_why_there_are_no_features(student: Any, tmp_path: Path) -> None:
    with pytest.raises(kdedge.DataError, match="has no image files; found nothing at all"):
        student.features(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(kdedge.DataError, match="none of 1 images can be read"):
        student.features(tmp_path, device="cpu")


def test_a_recipe_is_checked(recipe: dict[str, Any], folder: Path) -> None:
    with torch.no_grad():
        found = kdedge.check(kdedge.load_recipe(recipe), root=folder / "none", device="cpu")
    assert found.seconds > 0
    *lines, ready, export = str(found).splitlines()
    assert any(line.startswith("student: evaluation") for line in lines), lines
    assert re.fullmatch(r"Ready: about \d+ s from the start to the verdict\.", ready)
    assert "INT8 up to 10 more" in export
    assert not (folder / "none").exists()


@pytest.mark.usefixtures("forked_cells")
def test_a_suite_gives_the_table_that_it_writes(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(recipe, default=str))
    suite = tmp_path / "s.yaml"
    suite.write_text("{name: small, recipes: [r.yaml], methods: [zeroshot], seeds: [1]}")
    found = kdedge.run_suite(
        suite, suites=tmp_path / "suites", root=tmp_path / "runs", device="cpu"
    )
    record = json.loads((tmp_path / "suites/small/results.json").read_text())
    assert found.to_dict() == record
    assert [cell["status"] for cell in record["cells"]] == ["finished"]
    assert "zeroshot  100.00" in str(found)
    assert "<td>zeroshot</td>" in found._repr_html_()


def test_the_environment_names_the_folder_of_runs(
    student: kdedge.Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDEDGE_RUNS", str(folder / "runs"))
    assert kdedge.open_run("toy/02").path == student.path
    assert "toy/02" in [run.name for run in kdedge.list_runs()]
    assert kdedge.evaluate("toy/02", device="cpu") == student.result
    assert not list(tmp_path.iterdir())


def test_runs_are_listed_and_shown(student: kdedge.Run, folder: Path) -> None:
    names = [run.name for run in kdedge.list_runs(folder / "runs")]
    assert names[:2] == ["toy/01", "toy/02"]
    assert kdedge.open_run("toy/02", root=folder / "runs").path == student.path
    assert str(student).startswith("toy/02 (student, finished)")
    gone = kdedge.Run(RunFolder(folder / "gone/01", "student"))
    assert repr(gone) == f"<Run {folder / 'gone/01'}: student>"
    page = student._repr_html_()
    assert page.startswith("<table>")
    assert "toy/02" in page


def test_mistakes_are_the_errors_of_the_command_line(recipe: dict[str, Any]) -> None:
    with pytest.raises(kdedge.RecipeError, match="Did you mean student"):
        kdedge.distill({**recipe, "studnet": {}})
    with pytest.raises(kdedge.DataError, match="there is no folder"):
        kdedge.distill(recipe, overrides={"data.unlabeled.folder": "missing"})
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        kdedge.distill(recipe, epoch=3)  # type: ignore[call-arg]
    with pytest.raises(kdedge.RecipeError, match="no finished run"):
        kdedge.evaluate(root="nowhere")
    with pytest.raises(TypeError, match="unexpected keyword argument 'call'"):
        kdedge.bench(call=3)  # type: ignore[call-arg]
    with pytest.raises(kdedge.RecipeError, match=r"give a list, such as \[1\]"):
        kdedge.bench(batches=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'onnx'"):
        kdedge.export(onnx=True)  # type: ignore[call-arg]
    with pytest.raises(kdedge.RecipeError, match='no target "tensort"'):
        kdedge.export(targets="tensort")
    with pytest.raises(kdedge.RecipeError, match="threads is 0; it must be 1 or more"):
        kdedge.load("artifact", threads=0)


@pytest.mark.parametrize(
    ("call", "wrong", "message"),
    [
        (kdedge.bench, {"calls": 2}, "calls is 2; it must be 3 or more"),
        (kdedge.bench, {"batches": ()}, "batches is 0; it must be 1 or more"),
        (kdedge.bench, {"seconds": float("inf")}, "seconds is inf; it must be 0.01 or more"),
        (kdedge.bench, {"threads": 0}, "threads is 0"),
        (partial(kdedge.run_suite, "s.yaml"), {"jobs": 0}, "jobs is 0"),
        (partial(kdedge.pseudo_label, "sun397", "out"), {"per_class": 0}, "per_class is 0"),
        (partial(kdedge.predict, "a", "b"), {"batch": 0}, "batch is 0"),
        (partial(kdedge.serve, "a"), {"batch": -1}, "batch is -1"),
        (partial(kdedge.watch, "a", "b"), {"every": 0}, "every is 0"),
    ],
)
def test_a_number_is_checked_as_on_the_command_line(
    call: Any, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(kdedge.RecipeError, match=message):
        call(**wrong)


def test_a_run_is_exported_loaded_measured_and_reported(
    student: kdedge.Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    assert kdedge.evaluate(student, device="cpu") == student.result
    keys = {"gates.agreement.fp16": "0%", "export.open_classes": True}
    artifact = kdedge.export(
        student, device="cpu", overrides=keys, head="argmax", open_classes=False
    )
    assert artifact.open_classes is None
    with kdedge.load(student) as model:
        assert model.artifact.path == artifact.path
        image = folder / "images" / "red" / "2.png"
        assert model(image, top=3).class_name in CLASSES
    root, images = folder / "runs", folder / "pool"
    monkeypatch.setenv("HOME", str(folder))
    assert len(kdedge.predict("toy", "~/pool", root=root)) == len(list(images.rglob("*.png")))
    assert open_frames("~/pool", every=1, existing=False).kind == "folder"
    assert kdedge.scan_images("~/pool").n_images == 9
    found = kdedge.compare("toy/02", "toy", images, root=root)
    assert found.agreement_percent == 100
    with pytest.raises(kdedge.DataError, match="toy/02 does not exist"):
        kdedge.load("toy/02", root=folder)
    with pytest.raises(kdedge.RecipeError, match="is an artifact, and output can only"):
        kdedge.export(artifact, output=tmp_path / "other")
    file = tmp_path / "speed.json"
    before = dict(os.environ), torch.get_num_threads()
    with kdedge.compute_threads(2):
        assert torch.get_num_threads() == 2
    assert (dict(os.environ), torch.get_num_threads()) == before
    speed = kdedge.bench(artifact, batches=[1], seconds=0.01, calls=3, output=file, threads=1)
    assert (dict(os.environ), torch.get_num_threads()) == before
    assert [row.model for row in speed.rows] == [file.name for file in artifact.files]
    assert (speed.settings["seconds"], speed.settings["n_calls"]) == (0.01, 3)
    with pytest.raises(kdedge.RecipeError, match="exists, and nothing is overwritten"):
        kdedge.bench(artifact, output=file)
    assert [one.path.name for one in student.artifacts] == ["01"]
    assert kdedge.write_smoke_images(artifact, "~/smoke")[0].parent == folder / "smoke"
    page = kdedge.report(student, output="~/report")
    assert page.parent == folder / "report"
    assert "toy/02" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("recipe", "keys", "tune"),
    [
        ("sun397", {"student.method": "ridge", "student.settings": {}}, None),
        ("own-images", {"student.method": "promptkd"}, "full"),
    ],
)
def test_a_size_has_the_settings_of_the_method_that_the_call_names(
    recipe: str, keys: dict[str, Any], tune: str | None
) -> None:
    student = load_for("student", recipe, keys, size="nano").recipe.student
    assert (student.backbone, student.settings.get("tune")) == ("MobileCLIP2-S0", tune)
