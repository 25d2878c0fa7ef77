"""Ridge regression and balance through the commands: distill, eval, export, predict, classes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kdedge as api
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import load_run
from kdedge.setup.workspace import Workspace

pytestmark = pytest.mark.usefixtures("project")

Run = Callable[..., Any]
CPU = torch.device("cpu")

TEACHER = "teacher={method: ridge, weights: teacher.pt}"
STUDENT = (
    "student={method: ridge, weights: student.pt, views: 1,"
    " settings: {labeled_weight: 1, n_random: 64}}"
)
OWN = ("data.split=all", TEACHER, STUDENT)
"""What own images with labels of every class are trained by."""
FEATURES = (
    "student={method: ridge, weights: student.pt, settings: {outputs: features, n_random: 64}}"
)
ONE_CLASS = (
    "logit_adjustment={prior: {cat: 0.00001, dog: 0.00001, red fox: 0.00001, school bus: 0.99997}}"
)


def options(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def top_classes(done: Any) -> list[str]:
    return [json.loads(line)["class"] for line in done.out.splitlines()]


def test_labels_of_every_class_teach_in_closed_form(kdedge: Run) -> None:
    done = kdedge("distill", "r.yaml", *options(*OWN, "teacher.optim.layer_decay=0.8")).succeeds()
    assert "Teacher 1/2: solving ridge" in done.err
    assert "each judged by a fit to the others" in done.err
    teacher, student = (read(f"runs/tiny/{n}/provenance.json")["summary"] for n in ("01", "02"))
    assert 0 <= teacher["closed_form"]["leave_one_out_percent"] <= 100
    assert student["closed_form"]["divergence"] > 0
    evaluation = read("runs/tiny/02/eval.json")
    assert {"student", "teacher", "zeroshot", "labels_alone"} == evaluation.keys()
    assert "the same network, trained on the labels alone, is right on" in done.out
    advised = ("train", "runs/tiny/02/recipe.yaml", "--method", "ridge")
    kdedge(*advised).succeeds()
    baseline = read("runs/tiny/03/eval.json")["baseline"]
    alone = evaluation["labels_alone"]
    assert {key: alone[key] for key in ("all", "per_class", "ece_percent")} == {
        key: baseline[key] for key in ("all", "per_class", "ece_percent")
    }
    for name, better in (("eval", {"all": 100.0}), ("eval_details", {"right": "fffff"})):
        record = read(path := f"runs/tiny/02/{name}.json")
        record["labels_alone"] |= better  # on all 20 images
        Path(path).write_text(json.dumps(record))
    again = kdedge("distill", "r.yaml", "--resume", "--seed", "1", *options(*OWN))
    assert "nothing to resume" in again.err
    assert again.out.endswith(f"Next: kdedge {' '.join(advised)}\n")
    for command in (("distill", "r.yaml"), ("train", "r.yaml", "--method", "ridge")):
        assert kdedge(*command, *options(*OWN, ONE_CLASS)).code == 0
    alone = read("runs/tiny/04/eval.json")["labels_alone"]
    assert alone["per_class"] == read("runs/tiny/05/eval.json")["baseline"]["per_class"]


def test_offsets_are_those_of_the_pool_that_the_recipe_names(kdedge: Run) -> None:
    command = (
        "train",
        "r.yaml",
        "--method",
        "zeroshot",
        *options("logit_adjustment={prior: uniform}"),
    )
    assert kdedge(*command).code == 0
    Path("fewer").mkdir()
    for picture in sorted(Path("pool").iterdir())[:9]:
        shutil.copy(picture, "fewer")
    done = kdedge(*command, "--resume", *options("data.unlabeled.folder=fewer"))
    assert "Starting a new run" in done.err
    run, workspace = RunFolder.open(Path("runs/tiny/01")), Workspace(Path("runs"), CPU)
    model = load_run(run, workspace, overrides={"data.unlabeled.folder": "fewer"})
    assert model.logit_adjustment.n_images == 9
    strengths = ({"logit_adjustment.strength": strength} for strength in (1, 0.5))
    whole, half = (
        load_run(run, workspace, overrides=o).logit_adjustment.offsets for o in strengths
    )
    assert half == pytest.approx({name: offset / 2 for name, offset in whole.items()})


def test_a_class_without_labels_is_named(kdedge: Run) -> None:
    shutil.rmtree("labeled/dog")
    for command, remedy in {
        ("teach",): "set teacher.method: promptsrc",
        ("distill",): "leave student.settings.labeled_weight out",
        ("train", "--method=ridge"): "choose another method",
    }.items():
        done = kdedge(*command, "r.yaml", *options(*OWN))
        done.fails(3, "from labels, and 1 of 4 have none: dog.", f", or {remedy}.\n")


def test_black_training_images_are_named_and_the_headline_tells(kdedge: Run) -> None:
    for image in Path("pool").iterdir():
        Image.new("RGB", (40, 40)).save(image)
    chosen = ("teacher.method=zeroshot", "teacher.settings={}", FEATURES)
    done = kdedge("distill", "r.yaml", *options(*chosen)).succeeds()
    assert "Look whether images such as 0_0.jpg are black" in done.err
    assert re.search("^But it predicts '.*' for every image[.]$", done.out, re.MULTILINE)


def test_the_exported_files_are_in_balance(kdedge: Run) -> None:
    pytest.importorskip("onnxruntime")
    balance = "logit_adjustment={prior: {cat: 0.1, dog: 0.2, red fox: 0.3, school bus: 0.4}}"
    chosen = (*OWN, balance, "export.none_of_these=50%")
    assert kdedge("distill", "r.yaml", *options(*chosen)).code == 0
    kdedge("export", "tiny/02", "--int8", "--int8-minutes", "0").succeeds()
    artifact = read("runs/tiny/02/artifacts/01/artifact.json")
    assert artifact["provenance"]["balance"]["prior"]["school bus"] == 0.4
    card = Path("runs/tiny/02/artifacts/01/README.md").read_text()
    assert "these shares of the classes: cat 10 %, dog 20 %, red fox 30 %, school bus 40 %." in card
    float32 = next(file for file in artifact["files"] if file["precision"] == "fp32")
    assert float32["parity"]["agreement_percent"] == 100
    offsets = read("runs/tiny/02/balance.json")["offsets"]
    assert offsets["cat"] > offsets["school bus"]
    for n_images in ("1", "32"):
        found = kdedge("predict", "tiny/02", "test", "--format", "jsonl", "--batch", n_images)
        assert found.code == 0, found.err
        assert len(found.out.splitlines()) == 20
    kdedge("eval", "tiny/02", "--json", *options("logit_adjustment=null")).succeeds()


def test_balance_is_subtracted_from_what_eval_measures(trained: Path, kdedge: Run) -> None:
    """The student of prompts is in balance by an override, without any training."""
    done = kdedge("eval", "tiny/02", "--json", *options("data.split=all", ONE_CLASS))
    assert done.code == 0, done.err
    per_class = json.loads(done.out)["per_class"]
    assert per_class == {"cat": 0, "dog": 0, "red fox": 0, "school bus": 100}


def test_a_teacher_is_compared_in_the_balance_of_its_student(kdedge: Run) -> None:
    chosen = ("teacher.method=zeroshot", "teacher.settings={}", FEATURES)
    for balance in (ONE_CLASS, "logit_adjustment=null"):
        assert kdedge("distill", "r.yaml", *options(*chosen, balance)).code == 0
    own, same, other = (read(f"runs/tiny/0{n}/eval.json")["teacher"] for n in (1, 2, 3))
    plain = kdedge("eval", "tiny/01", "--json", *options("logit_adjustment=null"))
    assert (same["all"], other["all"]) == (own["all"], json.loads(plain.out)["all"])
    unlabeled = options("data.test=null", "data.labeled=null")
    judged = json.loads(kdedge("eval", "tiny/03", "--json", *unlabeled).out)
    plain = kdedge("eval", "tiny/01", "--json", *options("logit_adjustment=null"), *unlabeled)
    assert judged["teacher_predicted"] == json.loads(plain.out)["predicted"]
    assert judged["teacher_predicted"].keys() != {"school bus"}  # as in the teacher's own balance


def test_features_serve_classes_without_labels_and_later_ones(kdedge: Run) -> None:
    pytest.importorskip("onnxruntime")
    chosen = ("teacher.method=zeroshot", "teacher.settings={}", FEATURES)
    balance = "logit_adjustment={prior: uniform}"
    assert kdedge("distill", "r.yaml", *options(*chosen, balance)).code == 0
    Path("few.txt").write_text("forklift\ncat\nred fox\n")
    shutil.copytree("test/red fox", "novel/red fox")  # of one class: calibration does without it
    alone = options("data.labeled=null", "data.validation={folder: novel}")
    few = ["--classes", "few.txt", "--calibrate", *alone]
    for name, option in (("open", ["--open-classes"]), ("plain", []), ("few", few)):
        sooner = options("export.batch=1")  # is traced in a third of the time
        kdedge("export", "tiny/02", "--output", name, *option, *sooner).succeeds()
    assert read("few/artifact.json")["temperature"]["fitted_to"] == "teacher"
    answers = [kdedge("predict", name, "test", "--format", "jsonl") for name in ("open", "plain")]
    assert top_classes(answers[0]) == top_classes(answers[1])
    matrix = np.load("open/classes.1.npy")
    kdedge("classes", "open", "--add", "forklift", "--from", "tiny/02").succeeds()
    larger = np.load("open/classes.2.npy")
    assert larger.shape == (5, matrix.shape[1])
    assert larger[-1, -1] == 0
    assert api.predict("open", "test")


def test_a_teacher_that_did_not_learn_is_not_used_in_silence(kdedge: Run) -> None:
    stuck = ("data.split=all", "teacher.optim={lr: 1e-9, epochs: 1}")
    ridge = "student={method: ridge, weights: student.pt, views: 1, settings: {n_random: 64}}"
    done = kdedge("distill", "r.yaml", *options(*stuck, ridge)).succeeds()
    assert "On 16 labeled images, mean over classes: zero-shot CLIP" in done.err
    said = "Using ridge as the teacher; teacher.run=runs/tiny/01 or --keep-teacher (distill,"
    assert f"{said} teach --store) keeps" in done.err
    assert read("runs/tiny/03/provenance.json")["teacher_run"] == "tiny/02"
    stored = kdedge("teach", "r.yaml", "--store", "--keep-teacher", *options(*stuck, ridge))
    assert " --keep-teacher\n" in stored.succeeds().out
    kept = kdedge("distill", "r.yaml", "--keep-teacher", *options(*stuck, ridge)).succeeds()
    assert read("runs/tiny/04/provenance.json")["hashes"]["teacher_store"][:16] in stored.out
    assert "On 16 labeled images" not in kept.err  # it is known
    assert read("runs/tiny/04/provenance.json")["teacher_run"] == "tiny/01"
    given = ("pseudo-label", "r.yaml", "--per-class=1", "--output=labels")
    labels = kdedge(*given, *options(*stuck, ridge, "optim.lr=9")).succeeds()
    used = (f"Teacher: using runs/tiny/{n}" for n in ("01", "02"))
    for text in (*used, said, "optim.lr=9.0 has no effect"):
        assert text in labels.err
    named = (*stuck, ridge, "teacher.run=runs/tiny/01")
    labels = kdedge(*given[:-1], "--output=others", *options(*named)).succeeds()
    assert said not in labels.err
    assert Path("others").read_bytes() != Path("labels").read_bytes()
    assert kdedge("teach", "r.yaml", "--resume", *options(*stuck)).code == 0
    judged = read("runs/tiny/01/references.json")
    assert judged.keys() == {"zeroshot", "ridge", "trained"}
    Path("runs/tiny/01/references.json").unlink()  # a prior of another recipe judges no teacher
    assert kdedge("distill", "r.yaml", *options(*stuck, ridge, ONE_CLASS)).code == 0
    assert read("runs/tiny/01/references.json") == judged


def test_the_student_of_one_pass_is_kept_where_training_does_not_beat_it(kdedge: Run) -> None:
    stuck = ("teacher.method=zeroshot", "teacher.settings={}", "student.one_pass_first=true")
    stuck = (*stuck, "student.optim={lr: 1e-9, epochs: 1}")
    done = kdedge("distill", "r.yaml", *options(*stuck)).succeeds()
    assert "agrees with its teacher on" in done.err
    assert "Using the ridge student runs/tiny/02: of " in done.err
    assert read("runs/tiny/02/provenance.json")["method"] == "ridge"
    assert read("runs/tiny/03/provenance.json")["replaced_by"] == "tiny/02"
    replaced = Path("runs/tiny/03/provenance.json")  # in the words of version 0.2
    replaced.write_text(replaced.read_text().replace('"role"', '"kind"'))
    assert "runs/tiny/02" in kdedge("eval").out
    # Labels decide where there are some; base classes are told from base classes
    few = "data.validation={folder: labeled, shots: 1}"
    assert "is right on 100.0 %" in kdedge("distill", "r.yaml", *options(*stuck, few)).err
    shutil.copytree("labeled/cat", "cats/cat")  # which both know: the recipe's own is kept
    few = "data.validation={folder: cats, shots: 1}"
    judged = kdedge("distill", "r.yaml", *options(*stuck, few))
    assert "Using the trained student runs/tiny/05: of 1 image of data.validation" in judged.err
    assert read("runs/tiny/02/provenance.json")["replaced_by"] == "tiny/05"
    assert "runs/tiny/05" in kdedge("eval").out
    Path("runs/tiny/05").rename("runs/gone")
    shutil.copytree("runs/tiny/01", "runs/tiny/05")  # a teacher got the deleted student's number
    assert "runs/tiny/02" in kdedge("eval").out
    shutil.rmtree("runs/tiny/05")
    Path("runs/gone").rename("runs/tiny/05")
    for folder, code, message in (("test", 2, "share 20 images"), ("pool", 3, "in a class folder")):
        wrong = ("name=new", "student.one_pass_first=true", f"data.validation={{folder: {folder}}}")
        for command in ("check", "distill"):
            done = kdedge(command, "r.yaml", *options(*wrong))
            assert (done.code, message in done.err) == (code, True)
    assert not Path("runs/new").exists()  # no teacher was trained before
    # A student of another recipe is not taken, though it is the same
    assert kdedge("distill", "r.yaml", *options(*stuck, "name=other")).code == 0
    assert read("runs/other/01/provenance.json")["method"] == "ridge"


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (("logit_adjustment={prior: {cat: 0.5, dog: 0.2}}",), 2, "sums to 0.7"),
        (("logit_adjustment={prior: {cat: 0.5, dog: 0.5}}",), 2, "lacks 'red fox'"),
        (("logit_adjustment={prior: {cat: 0.5, wolf: 0.5}}",), 2, "logit_adjustment.prior lacks"),
        (("logit_adjustment={prior: labels}", "data.labeled=null"), 2, "data.labeled"),
        (("logit_adjustment={prior: equal}",), 2, "logit_adjustment.prior"),
        (("logit_adjustment={strength: 2}",), 2, "logit_adjustment.strength"),
        (("student.settings.outputs=features",), 2, "outputs: logits"),
        (("teacher.settings.outputs=features",), 2, "outputs: logits"),
        (("data.split=base-to-novel",), 2, "was trained on 2 of 4 classes"),
    ],
)
def test_what_is_wrong_is_one_message(
    kdedge: Run, settings: tuple[str, ...], code: int, message: str
) -> None:
    small = "student={method: ridge, weights: student.pt, settings: {labeled_weight: 1}}"
    done = kdedge("distill", "r.yaml", *options("data.split=all", TEACHER, small, *settings))
    assert done.code == code, done.err
    assert message in done.err
    assert not list(Path("runs").glob("tiny/*"))  # nothing was trained before


def test_a_pool_of_ten_equal_images_is_solved(kdedge: Run) -> None:
    """There is nothing to learn but the teacher's answer for them; nothing is divided by zero."""
    data = Path("pool/0_0.jpg").read_bytes()
    for path in Path("pool").iterdir():
        path.unlink()
    for number in range(10):
        Path(f"pool/{number}.jpg").write_bytes(data)
    kdedge("distill", "r.yaml", *options(*OWN, "logit_adjustment={prior: auto}")).succeeds()
