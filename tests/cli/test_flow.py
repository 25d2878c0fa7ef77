"""The commands one after the other on a small project."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdedge.api.run import open_run
from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import load_recipe, parse_overrides
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import load_run
from kdedge.setup.classes import load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.workspace import Workspace, set_up_device

pytestmark = pytest.mark.usefixtures("project")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def accuracies(text: str) -> dict[str, str]:
    """Rows of an accuracy table: label -> figures."""
    rows = re.findall(r"^(.+?)  +((?:[\d.-]+ *){3,})$", text, re.MULTILINE)
    return {label: " ".join(figures.split()) for label, figures in rows}


def test_check_goes_through_both_trainings_and_writes_nothing(kdedge, project) -> None:
    before = tree(project)
    done = kdedge("check", "r.yaml")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^teacher: images +8 used of 24$", done.out, re.MULTILINE)
    assert re.search(
        r"^student: images +40 used of 40; few: a student needs hundreds$", done.out, re.MULTILINE
    )
    assert re.search(
        r"^student: method +promptkd, [\d,]+ parameters, 2 epochs of 10", done.out, re.MULTILINE
    )
    assert done.out.endswith("\nNext: kdedge distill r.yaml\n")
    assert tree(project) == before


def stages(err: str) -> list[str]:
    """The lines about teacher and student; a few steps may train a model that only guesses."""
    return [line for line in err.splitlines() if line.startswith(("Teacher", "Student"))]


def test_teach_then_distill_then_eval_then_show(kdedge, project) -> None:
    taught = kdedge("teach", "r.yaml")
    assert (taught.code, taught.err) == (0, "")
    assert taught.out.endswith(
        "Wrote runs/tiny/01 (teacher.safetensors, class_vectors.safetensors)\n"
        "Next: kdedge distill r.yaml\n"
    )
    distilled = kdedge("distill", "r.yaml").succeeds()
    means = [accuracies(distilled.out)[role].split()[2] for role in ("teacher", "student")]
    assert stages(distilled.err) == [
        "Teacher 1/2: using runs/tiny/01, trained with the same settings and data: harmonic mean"
        f" {means[0]} %.",
        "Student 2/2: training promptkd on student.",
        f"Student 2/2 done: harmonic mean {means[1]} %.",
    ]
    assert distilled.out.endswith(
        "Used runs/tiny/01 (teacher.safetensors, class_vectors.safetensors)\n"
        "Wrote runs/tiny/02 (student.safetensors, class_vectors.safetensors)\n"
        + kdedge("show", "tiny/02").out.split("\n\n")[1]
        + "\nNext: kdedge report runs/tiny/02\n"  # of a model that is not to be used
    )
    rows = accuracies(distilled.out)
    assert rows["teacher"] == accuracies(taught.out)["teacher"]
    measured = kdedge("eval", "--per-class")
    assert (measured.code, measured.err) == (
        0,
        "Using runs/tiny/02, the newest finished student.\n",
    )
    assert accuracies(measured.out)["student"] == rows["student"]
    assert accuracies(measured.out)["teacher"] == rows["teacher"]
    assert re.search(r"^red fox +\d+\.\d\d$", measured.out, re.MULTILINE)
    assert accuracies(kdedge("eval", "tiny/01").out)["teacher"] == rows["teacher"]
    shown = kdedge("show", "tiny/02")
    assert shown.out.startswith("runs/tiny/02: student, finished\n")
    assert re.search(r"^teacher +tiny/01$", shown.out, re.MULTILINE)
    assert accuracies(shown.out)["student"] == rows["student"]
    assert "student.safetensors" in kdedge("show", "tiny/02", "--all").out
    assert "student.safetensors" not in shown.out
    tables = shown.out.split("\n\n")[2:]  # without the headline
    assert max(map(len, "\n".join(tables).splitlines())) <= 80
    results = json.loads(Path("runs/tiny/02/eval.json").read_text())
    lost = results["zeroshot"]["harmonic_mean"] - results["student"]["harmonic_mean"]
    (said,) = {
        line
        for done in (distilled, measured, shown)
        for line in done.out.splitlines()
        if line.startswith("The student is")
    }
    assert said.startswith(f"The student is {lost:.1f} points below zero-shot CLIP: do not use it")


def test_distill_trains_the_teacher_first_where_there_is_none(kdedge, project) -> None:
    done = kdedge("distill", "r.yaml", "--json").succeeds()
    begun = [line.partition(" on ")[0].partition(":")[0] for line in stages(done.err)]
    assert begun == ["Teacher 1/2", "Teacher 1/2 done", "Student 2/2", "Student 2/2 done"]
    assert "Teacher 1/2: training promptsrc on teacher.\n" in done.err
    record = json.loads(done.out)
    assert (record["teacher"]["path"], record["student"]["path"]) == (
        "runs/tiny/01",
        "runs/tiny/02",
    )
    assert record["student"]["teacher_run"] == "tiny/01"
    assert record["student"]["evaluation"]["student"]["n_images"] == 20


def test_a_run_holds_what_the_contract_names(trained) -> None:
    for run, weights in (("01", "teacher.safetensors"), ("02", "student.safetensors")):
        folder = trained / "runs" / "tiny" / run
        names = {path.name for path in folder.iterdir() if not path.name.startswith("events.")}
        assert names == {
            *(
                "recipe.yaml",
                "provenance.json",
                "log.txt",
                "metrics.jsonl",
                "skipped.csv",
                "eval.json",
                "eval_details.json",
            ),
            *("checkpoints", "class_vectors.safetensors", ".lock", weights),
        }
        assert next(folder.glob("events.out.tfevents.*")).stat().st_size > 0


def test_the_resolved_recipe_of_a_run_gives_the_same_run_again(kdedge, trained) -> None:
    # Its hashes find the teacher again, and the student is the same to the last bit
    assert kdedge("distill", "runs/tiny/02/recipe.yaml").code == 0
    first, second = (Path(f"runs/tiny/0{n}/student.safetensors") for n in (2, 3))
    assert first.read_bytes() == second.read_bytes()


def test_resume_of_a_finished_run_trains_nothing(kdedge, trained) -> None:
    before = tree(trained)
    done = kdedge("distill", "r.yaml", "--resume").succeeds()
    assert "runs/tiny/02 is already finished: there is nothing to resume.\n" in done.err
    assert "\nUsed runs/tiny/02 (" in done.out
    assert tree(trained) == before


def test_next_repeats_what_the_recipe_does_not_say(kdedge, project, quick_machine) -> None:
    Path("my r.yaml").write_text(Path("r.yaml").read_text())
    options = ("--set", "data.test.folder=test", "--set", "name=a-b", "--runs", "all runs")
    done = kdedge("teach", "my r.yaml", *options)
    assert done.out.endswith(
        "Wrote all runs/a-b/01 (teacher.safetensors, class_vectors.safetensors)\n"
        "Next: kdedge distill 'my r.yaml' --set data.test.folder=test --set name=a-b"
        " --runs 'all runs'\n"
    )
    command = shlex.split(done.out.splitlines()[-1].removeprefix("Next: kdedge "))
    distilled = kdedge(*command).succeeds()
    assert "\nUsed all runs/a-b/01 (" in distilled.out
    assert distilled.out.endswith("\nNext: kdedge report 'all runs/a-b/02'\n")
    _, _, _, run = shlex.split(distilled.out.splitlines()[-1])
    listed = kdedge("export", run, "--output", "all runs")  # the run is found, the folder not empty
    assert (listed.code, "all runs" in listed.err) == (2, True)


def test_a_teacher_of_another_folder_of_runs_is_used(kdedge, trained) -> None:
    done = kdedge("distill", "r.yaml", "--set", "teacher.run=runs/tiny/01", "--runs", "other")
    assert done.code == 0, done.err
    assert "tiny/01 (teacher.safetensors" in done.out
    assert re.findall(r"^(Used|Wrote) ", done.out, re.MULTILINE) == ["Used", "Wrote"]
    teacher = open_run("other/tiny/01").teacher  # and not the student, which has its number
    assert teacher.path.resolve() == Path("runs/tiny/01").resolve()
    Path("more.txt").write_text("cat\nforklift\nred fox\nschool bus\n")
    kdedge("export", "other/tiny/01", "--classes", "more.txt").succeeds()


def test_eval_writes_its_result_to_a_file_and_overwrites_none(kdedge, trained) -> None:
    done = kdedge("eval", "--output", "out.json")
    assert done.out.endswith("\nWrote out.json\nNext: kdedge report runs/tiny/02\n")
    result = Path("out.json").read_text()
    assert json.loads(result) == json.loads(Path("runs/tiny/02/eval.json").read_text())["student"]
    again = kdedge("eval", "--output", "out.json")
    assert (again.code, Path("out.json").read_text()) == (2, result)
    assert "nothing is overwritten" in again.err
    nowhere = kdedge("eval", "--output", "results/out.json")
    nowhere.fails(2, "results/out.json cannot be written: the folder results does not exist.")


def test_a_stored_teacher_may_have_its_names_in_another_order(kdedge, trained) -> None:
    Path("classes.txt").write_text("school bus\nred fox\ncat\ndog\n")
    kdedge("distill", "r.yaml", "--set", "teacher.run=runs/tiny/01").succeeds()
    theirs = load_class_vectors(Path("runs/tiny/01/class_vectors.safetensors"))
    ours = load_class_vectors(Path("runs/tiny/03/class_vectors.safetensors"))
    assert ours.class_names == ("school bus", "red fox", "cat", "dog")
    assert torch.equal(ours.vectors, theirs.vectors[[3, 2, 0, 1]])


@pytest.mark.parametrize("run", ["tiny/01", "tiny/02"])
def test_the_order_of_the_class_list_changes_no_class_accuracy(kdedge, trained, run) -> None:
    before = json.loads(kdedge("eval", run, "--json").out)
    Path("classes.txt").write_text("school bus\nred fox\ncat\ndog\n")
    done = kdedge("eval", run, "--json")
    assert done.err.count("differs from the run's: its order, or fewer names") == (run == "tiny/02")
    assert len(done.err.splitlines()) <= 1
    after = json.loads(done.out)
    assert list(after["per_class"]) == ["school bus", "red fox", "cat", "dog"]
    assert after["per_class"] == before["per_class"]
    # Both halves hold other classes now, in another order
    assert after["all"] == before["all"]


def test_a_teacher_measures_classes_that_it_has_no_stored_vector_for(kdedge, trained) -> None:
    Path("classes.txt").write_text("cat\ndog\nred fox\nlorry\n")
    Path("test/school bus").rename("test/lorry")
    assert list(json.loads(kdedge("eval", "tiny/01", "--json").out)["per_class"])[3] == "lorry"
    done = kdedge("eval", "tiny/02").succeeds()
    assert "differs from the run's: 1 of its names are new" in done.err
    shutil.rmtree("runs/tiny/01")
    kdedge("eval", "tiny/02").fails(3, "no stored vector, first 'lorry'")


def test_without_labels_a_zeroshot_teacher_teaches(kdedge, project) -> None:
    """What `kdedge init` writes where no labeled images are named."""
    options = ("--set", "data.labeled=null", "--set", "teacher.method=zeroshot")
    options += ("--set", "teacher.settings={}", "--set", "data.test=null")
    checked = kdedge("check", "r.yaml", *options)
    assert (checked.code, checked.err) == (0, "")
    assert re.search(r"^teacher: images +none are needed$", checked.out, re.MULTILINE)
    assert re.search(r"^teacher: method +zeroshot, nothing to train$", checked.out, re.MULTILINE)
    done = kdedge("distill", "r.yaml", *options).succeeds()
    assert "Teacher 1/2: zeroshot on teacher, which needs no training.\n" in done.err
    assert "Teacher 1/2 done.\n" in done.err
    assert Path("runs/tiny/02/student.safetensors").exists()
    assert "40 of 40 images of data.unlabeled, trained on" in done.out
    assert "agrees with its teacher on" in done.out
    assert done.out.endswith("\nNext: kdedge export runs/tiny/02 --cpu\n")


def test_a_run_without_labels_is_judged_on_images_that_are_held_out(kdedge, project) -> None:
    options = ("--set", "data.test=null", "--set", "data.unlabeled.hold_out=25%")
    checked = kdedge("check", "r.yaml", *options).out
    assert "used of 40" in checked
    assert "none: agreement with the teacher is measured instead" in checked
    done = kdedge("distill", "r.yaml", *options).succeeds()
    assert "10 of data.unlabeled are too few to measure the student" in done.err
    record = json.loads(Path("runs/tiny/02/provenance.json").read_text())
    assert record["summary"]["training"]["steps"] == 2 * (30 // 4)
    run, workspace = Path("runs/tiny/02"), Workspace(Path("runs"), set_up_device("cpu"))
    student = load_run(RunFolder.open(run), workspace)
    weights = [*student.backbone.visual.parameters(), *student.method.module.parameters()]
    assert record["summary"]["parameters"] == sum(values.numel() for values in weights)
    file = Path("runs/tiny/02/eval_unlabeled.json")
    written = json.loads(file.read_text())
    assert written["images"] == "10 of 10 images held out of data.unlabeled"
    assert sum(written["predicted"].values()) == sum(written["teacher_predicted"].values()) == 10
    differ = [sample for sample in written["samples"] if sample["teacher"] != sample["top"][0][0]]
    assert written["agreement_percent"] == 100 - 10 * len(differ)
    file.unlink()
    assert f"Wrote {file}" in kdedge("eval", "tiny/02", "--per-class").succeeds().err
    assert json.loads(file.read_text()) == written
    more = ("--set", "data.unlabeled.hold_out=50%", "--set", "seed=2")  # of them, 10 are untrained
    assert json.loads(kdedge("eval", *more, "--json").out)["images"] == written["images"]
    assert f"teacher agrees     {written['agreement_percent']:.2f} %" in kdedge("show").out
    other = json.loads(kdedge("eval", "--set", "data.unlabeled.folder=labeled", "--json").out)
    assert other["images"] == "24 of 24 images of data.unlabeled as overridden"
    assert kdedge("report").code == 0
    page = Path("runs/tiny/02/report/01/index.html").read_text()
    assert page.count('<img src="data:image/jpeg') == len(written["samples"]) == 10
    assert "kdedge eval runs/tiny/02 --set data.test.folder=FOLDER" in page
    for others in ("seed=2", "data.unlabeled=null"):
        assert kdedge("eval", "--set", "data.test.folder=test", "--set", others).code == 0
        assert not Path("runs/tiny/02/eval.json").exists()
    assert kdedge("eval", "--set", "data.test.folder=test").code == 0
    assert json.loads(Path("runs/tiny/02/eval.json").read_text())["student"]["n_images"] == 20
    assert "teacher agrees" in page


def test_of_another_source_all_images_are_measured_although_some_would_be_held_out(
    kdedge, trained
) -> None:
    keys = ("data.test=null", "data.unlabeled.folder=labeled", "data.unlabeled.hold_out=25%")
    options = [word for key in keys for word in ("--set", key)]
    result = json.loads(kdedge("eval", "tiny/02", *options, "--json").out)
    assert result["images"] == "24 of 24 images of data.unlabeled as overridden"


def test_eval_keeps_to_a_runs_own_held_out_images_and_draws_from_other_ones(
    kdedge, project
) -> None:
    options = ("--set", "data.test=null", "--set", "data.unlabeled.hold_out=25%")
    kdedge("distill", "r.yaml", *options).succeeds()
    written = json.loads(Path("runs/tiny/02/eval_unlabeled.json").read_text())
    own = {sample["image"] for sample in written["samples"]}

    def measured_on(*keys: str) -> set[str]:
        given = [part for key in keys for part in ("--set", key)]
        done = kdedge("eval", *given, "--json").succeeds()
        return {sample["image"] for sample in json.loads(done.out)["samples"]}

    for changes in (
        ("data.unlabeled.hold_out=50%", "seed=2"),
        ("data.unlabeled.per_class=1",),
        ("data.unlabeled.include_test=true",),
    ):
        assert measured_on(*changes) == own
    # Among other images, the seed that is given draws
    others = "data.unlabeled={folder: labeled, per_class: 2, include_test: true}"
    drawn = [measured_on(others, f"seed={seed}") for seed in (1, 2)]
    assert drawn[0] != drawn[1]


def test_what_is_held_out_is_chosen_by_seed_and_contents(kdedge, project) -> None:
    def digests(**options: object) -> set[str]:
        given = [f"data.unlabeled.hold_out={options.get('n', 8)}", f"seed={options.get('seed', 1)}"]
        loaded = load_recipe("r.yaml", parse_overrides(given))
        classes = load_classes(loaded.recipe)
        workspace = Workspace(Path("runs"), set_up_device("cpu"))
        held_out = RecipeImages(loaded.recipe, classes, workspace).held_out()
        return {held_out.digests[index] for index in held_out.indices}

    first = digests()
    assert len(first) == 8
    assert first < digests(n=12)
    assert first != digests(seed=2)
    shutil.copytree("labeled", "pool/labeled")
    assert len(digests(n=60)) <= 40  # the labeled ones may be trained on
    shutil.rmtree("pool/labeled")
    shutil.move("pool", "kept")
    shutil.copytree("labeled", "pool")
    assert len(digests()) == 8  # but if all are labeled, those
    shutil.rmtree("pool")
    shutil.move("kept", "pool")
    for number, picture in enumerate(sorted(Path("pool").iterdir())):
        picture.rename(picture.with_name(f"{99 - number}.jpg"))
    assert digests() == first
    # Copies stay together: as many as fit into the number are held out
    contents = [picture.read_bytes() for picture in list(Path("pool").iterdir())[:3]]
    for number, picture in enumerate(Path("pool").iterdir()):
        picture.write_bytes(contents[number % 3])
    assert (digests(n=2), len(digests(n=14))) == (set(), 1)
    done = kdedge("distill", "r.yaml", "--set", "data.unlabeled.hold_out=100%")
    assert (done.code, "leaves none to train on" in done.err) == (3, True)


def test_test_images_in_the_unlabeled_pool_are_left_out_and_named(kdedge, project) -> None:
    shutil.copy("test/cat/0.jpg", "pool/copy.jpg")
    done = kdedge("check", "r.yaml", "--json").succeeds()
    left_out = (
        '1 of 41 images of data.unlabeled are in data.test, too, and are left out: "copy.jpg"'
    )
    assert done.err.count(left_out) == 1
    findings = {one["what"]: one["result"] for one in json.loads(done.out)["findings"]}
    assert findings["student: images"] == "40 used of 41; few: a student needs hundreds"
    done = kdedge("check", "r.yaml", "--set", "data.unlabeled.include_test=true")
    assert "left out" not in done.err
    assert re.search("student: images +41 used of 41", done.out)
    done = kdedge("check", "r.yaml", "--set", "data.unlabeled.folder=test")
    assert (done.code, "All images of data.unlabeled are in data.test" in done.err) == (3, True)


def test_runs_are_listed_with_status_accuracy_and_size(kdedge, trained) -> None:
    shutil.copytree("runs/tiny/02", "runs/tiny/03")
    killed = Path("runs/tiny/03/provenance.json")
    killed.write_text(killed.read_text().replace('"finished"', '"running"'))
    Path("runs/tiny/03/eval.json").unlink()
    found = {one["run"]: one for one in json.loads(kdedge("runs", "--json").out)["runs"]}
    assert [(one["role"], one["method"], one["status"]) for one in found.values()] == [
        ("teacher", "promptsrc", "finished"),
        ("student", "promptkd", "finished"),
        ("student", "promptkd", "interrupted"),
    ]
    result = json.loads(Path("runs/tiny/02/eval.json").read_text())["student"]
    one = found["tiny/02"]
    assert (one["measure"], one["percent"], one["n_images"]) == ("HM", result["harmonic_mean"], 20)
    files = [path for path in Path("runs/tiny/02").rglob("*") if path.is_file()]
    assert one["n_bytes"] == sum(path.stat().st_size for path in files if path.name != ".lock")
    shown = kdedge("runs", "tiny").out
    assert re.search(rf"^tiny/02 .* {result['harmonic_mean']:.2f} +HM +20 ", shown, re.MULTILINE)
    assert re.search(r"^tiny/03 .*interrupted +- +- +- ", shown, re.MULTILINE)
    record = json.loads(killed.read_text())
    for command, option in (("distill", " --resume"), ("pseudo-label", "")):
        killed.write_text(json.dumps(record | {"command": ["kdedge", command, "r.yaml"]}))
        assert kdedge("runs").out.endswith(f"Next: kdedge {command} r.yaml{option}\n")
    killed.write_text(json.dumps(record | {"command": []}))  # of a script that hides its own
    assert "Next: kdedge show " in kdedge("runs").out
    shutil.copytree("runs/tiny/02", "runs/tiny/04")  # a later one of its kind is finished
    assert "Next: kdedge show " in kdedge("runs").out
    shutil.rmtree("runs/tiny/04")
    killed.write_text("{")
    done = kdedge("runs", "other")
    assert "There is no run of other" in done.out
    assert "runs/tiny/03/provenance.json is not valid JSON" in done.err


def test_a_damaged_evaluation_is_said_in_the_list_of_runs(kdedge, trained) -> None:
    Path("runs/tiny/02/eval.json").write_text("{")
    done = kdedge("runs")
    assert re.search(r"^tiny/01 .* finished +\d+\.\d\d +HM ", done.out, re.MULTILINE)
    assert re.search(r"^tiny/02 .* finished +- +- +- ", done.out, re.MULTILINE)
    assert "runs/tiny/02/eval.json is not valid JSON" in done.err
    assert "`kdedge eval RUN` writes a new one" in done.err


# What counts as the same student, and what chooses


Run = Callable[..., Any]


def test_another_template_set_of_a_zeroshot_teacher_makes_another_student(kdedge: Run) -> None:
    zeroshot = ("--set", "teacher.method=zeroshot", "--set")
    single = kdedge("distill", "r.yaml", *zeroshot, "teacher.settings={templates: single}")
    seven = kdedge(
        "distill", "r.yaml", "--resume", *zeroshot, "teacher.settings={templates: ensemble7}"
    )
    assert (single.code, seven.code) == (0, 0), single.err + seven.err
    students = [path.read_bytes() for path in Path("runs").glob("*/*/student.safetensors")]
    assert len(students) == 2
    assert students[0] != students[1]


def test_validation_without_base_classes_chooses_nothing(kdedge: Run) -> None:
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


def test_all_models_of_a_recipe_are_chosen_by_the_same_validation_images(kdedge: Run) -> None:
    """Also a student's, which draws no labeled images before them."""
    shutil.copytree("labeled", "held-out")
    options = ("data.validation={folder: held-out, shots: 2}", "optim.selection=validation")
    texts = [part for option in options for part in ("--set", option)]
    said = "selected on 3 images of data.validation that are also labels to train on"
    assert said in kdedge("distill", "r.yaml", *texts).succeeds().err
    lists = [
        json.loads(path.read_text())["hashes"]["validation_list"]
        for path in Path("runs/tiny").glob("*/provenance.json")
    ]
    assert len(lists) == 2
    assert lists[0] == lists[1]


# A run that trains and chooses as PromptKD's public code does


OPTIONS = ("--set", "official=true", "--set", "student.optim.epochs=3")


@pytest.mark.parametrize("split", ["base-to-novel", "all"])
def test_the_student_is_that_of_the_epoch_that_is_best_on_test_images(
    kdedge: Run, split: str
) -> None:
    kdedge("distill", "r.yaml", *OPTIONS, "--set", f"data.split={split}").succeeds()
    run = Path("runs/tiny/02")
    record = json.loads((run / "provenance.json").read_text())
    found = json.loads((run / "eval.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation_percent"] for row in rows if "validation_percent" in row]
    training = record["summary"]["training"]
    assert len(scores) == 3
    assert (training["kept"], training["best_epoch"]) == ("epoch", scores.index(max(scores)) + 1)
    assert found["student"]["selection"] == "test"
    assert found["student"]["base" if split == "base-to-novel" else "all"] == max(scores)
    assert found["zeroshot"]["selection"] == "last"
    assert record["official"] is True
    assert "test_list" in record["hashes"]
    again = kdedge("distill", "r.yaml", *OPTIONS, "--set", f"data.split={split}", "--resume")
    assert "is already finished: there is nothing to resume" in again.err
    # What the public code keeps in half is in half
    model = load_run(RunFolder.open(run), Workspace(Path("runs"), set_up_device("cpu")))
    module: Any = model.method.module
    assert model.method.half_parameters()
    for parameter in model.method.half_parameters():
        assert (parameter == parameter.half().float()).all()
    assert (module.visual_prompts != module.visual_prompts.half().float()).any()


def test_official_results_are_marked_where_they_are_shown(kdedge: Run, trained: Path) -> None:
    done = kdedge("distill", "r.yaml", *OPTIONS)
    assert "teacher, official" in done.out
    assert "student, official: its epoch was chosen on the test images" in done.out
    shown = kdedge("show", "tiny/04").out
    assert "official, as in the public code" in shown
    assert "student, official: its epoch was chosen on the test images" in shown
    assert "student, official: its epoch" in kdedge("eval", "tiny/04").out
    for command in (("show", "tiny/02"), ("eval", "tiny/02")):
        assert "official" not in kdedge(*command).out


def test_an_official_run_without_test_images_cannot_choose(kdedge: Run) -> None:
    for command in ("check", "distill"):
        kdedge(command, "r.yaml", *OPTIONS, "--set", "data.test=null").fails(
            2, "The recipe has no data.test, and selection: test chooses the epoch on it"
        )
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached
