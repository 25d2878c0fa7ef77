"""The commands one after the other on a small project."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
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

Run = Callable[..., Any]
Done = Any  # of conftest.py: how a command ended


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def accuracies(text: str) -> dict[str, str]:
    """Rows of an accuracy table: label -> figures."""
    rows = re.findall(r"^(.+?)  +((?:[\d.-]+ *){3,})$", text, re.MULTILINE)
    return {label: " ".join(figures.split()) for label, figures in rows}


def test_check_goes_through_both_trainings_and_writes_nothing(kdedge, project) -> None:
    before = tree(project)
    done = kdedge("check", "r.yaml").succeeds()
    assert done.err == ""
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


@dataclass(frozen=True)
class Flow:
    """What the main commands said, one after the other, and the project that they leave."""

    folder: Path
    taught: Done
    distilled: Done
    measured: Done
    shown: Done

    def said_by_all_of_the_student(self) -> str:
        """The sentence with the verdict, which must be the same in all three."""
        sentences = set()
        for done in (self.distilled, self.measured, self.shown):
            sentences |= {x for x in done.out.splitlines() if x.startswith("The student is")}
        (sentence,) = sentences
        return sentence


@pytest.fixture(scope="module")
def flow(blank_project, copy_of, kdedge_in, tmp_path_factory) -> Flow:
    """teach, distill, eval and show; not to be changed."""
    folder = copy_of(blank_project, tmp_path_factory.mktemp("flow") / "project")
    return Flow(
        folder=folder,
        taught=kdedge_in(folder, "teach", "r.yaml").succeeds(),
        distilled=kdedge_in(folder, "distill", "r.yaml").succeeds(),
        measured=kdedge_in(folder, "eval", "--per-class").succeeds(),
        shown=kdedge_in(folder, "show", "tiny/02").succeeds(),
    )


def test_teach_names_what_it_wrote_and_distill_as_the_next_command(flow: Flow) -> None:
    assert flow.taught.err == ""
    assert flow.taught.out.endswith(
        "Wrote runs/tiny/01 (teacher.safetensors, class_vectors.safetensors)\n"
        "Next: kdedge distill r.yaml\n"
    )


def test_distill_says_which_teacher_it_uses_and_how_both_score(flow: Flow) -> None:
    means = {label: row.split()[2] for label, row in accuracies(flow.distilled.out).items()}
    assert stages(flow.distilled.err) == [
        "Teacher 1/2: using runs/tiny/01, trained with the same settings and data: harmonic mean"
        f" {means['teacher']} %.",
        "Student 2/2: training promptkd on student.",
        f"Student 2/2 done: harmonic mean {means['student']} %.",
    ]


def test_distill_ends_with_what_it_wrote_the_headline_of_show_and_the_next_command(
    flow: Flow,
) -> None:
    headline = flow.shown.out.split("\n\n")[1]
    assert flow.distilled.out.endswith(
        "Used runs/tiny/01 (teacher.safetensors, class_vectors.safetensors)\n"
        "Wrote runs/tiny/02 (student.safetensors, class_vectors.safetensors)\n"
        f"{headline}\n"
        "Next: kdedge report runs/tiny/02\n"  # of a model that is not to be used
    )


def test_a_bare_eval_measures_the_newest_finished_student_and_says_so(flow: Flow) -> None:
    assert flow.measured.err == "Using runs/tiny/02, the newest finished student.\n"
    assert re.search(r"^red fox +\d+\.\d\d$", flow.measured.out, re.MULTILINE)


def test_every_command_gives_the_same_accuracies(flow: Flow, kdedge_in) -> None:
    teacher = accuracies(flow.distilled.out)["teacher"]
    student = accuracies(flow.distilled.out)["student"]
    assert accuracies(flow.taught.out)["teacher"] == teacher
    assert accuracies(flow.measured.out)["teacher"] == teacher
    assert accuracies(kdedge_in(flow.folder, "eval", "tiny/01").out)["teacher"] == teacher
    assert accuracies(flow.measured.out)["student"] == student
    assert accuracies(flow.shown.out)["student"] == student


def test_show_says_what_a_run_is_and_who_taught_it(flow: Flow) -> None:
    assert flow.shown.out.startswith("runs/tiny/02: student, finished\n")
    assert re.search(r"^teacher +tiny/01$", flow.shown.out, re.MULTILINE)


def test_show_lists_files_only_where_all_is_asked_for(flow: Flow, kdedge_in) -> None:
    assert "student.safetensors" not in flow.shown.out
    assert "student.safetensors" in kdedge_in(flow.folder, "show", "tiny/02", "--all").out


def test_the_tables_of_show_fit_into_80_columns(flow: Flow) -> None:
    tables = flow.shown.out.split("\n\n")[2:]  # without the headline
    assert max(map(len, "\n".join(tables).splitlines())) <= 80


def test_distill_eval_and_show_say_alike_that_a_student_below_zero_shot_clip_is_not_to_be_used(
    flow: Flow,
) -> None:
    results = json.loads((flow.folder / "runs/tiny/02/eval.json").read_text())
    lost = results["zeroshot"]["harmonic_mean"] - results["student"]["harmonic_mean"]
    expected = f"The student is {lost:.1f} points below zero-shot CLIP: do not use it"
    assert flow.said_by_all_of_the_student().startswith(expected)


def test_distill_trains_the_teacher_first_where_there_is_none(kdedge, project) -> None:
    done = kdedge("distill", "r.yaml", "--json").succeeds()
    begun = [line.partition(" on ")[0].partition(":")[0] for line in stages(done.err)]
    assert begun == ["Teacher 1/2", "Teacher 1/2 done", "Student 2/2", "Student 2/2 done"]
    assert "Teacher 1/2: training promptsrc on teacher.\n" in done.err
    record = json.loads(done.out)
    assert record["teacher"]["path"] == "runs/tiny/01"
    assert record["student"]["path"] == "runs/tiny/02"
    assert record["student"]["teacher_run"] == "tiny/01"
    assert record["student"]["evaluation"]["student"]["n_images"] == 20


@pytest.mark.parametrize(
    ("run", "weights"),
    [("tiny/01", "teacher.safetensors"), ("tiny/02", "student.safetensors")],
    ids=["teacher", "student"],
)
def test_a_run_holds_what_the_contract_names(trained, run, weights) -> None:
    folder = trained / "runs" / run
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.")}
    assert names == {
        ".lock",
        "checkpoints",
        "class_vectors.safetensors",
        "eval.json",
        "eval_details.json",
        "log.txt",
        "metrics.jsonl",
        "provenance.json",
        "recipe.yaml",
        "skipped.csv",
        weights,
    }
    assert next(folder.glob("events.out.tfevents.*")).stat().st_size > 0


def test_the_resolved_recipe_of_a_run_gives_the_same_run_again(kdedge, trained) -> None:
    # Its hashes find the teacher again, and the student is the same to the last bit
    assert kdedge("distill", "runs/tiny/02/recipe.yaml").code == 0
    first = Path("runs/tiny/02/student.safetensors").read_bytes()
    assert Path("runs/tiny/03/student.safetensors").read_bytes() == first


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
    run = shlex.split(distilled.out.splitlines()[-1])[-1]
    # The run is found, and the folder is refused, as it is not empty
    kdedge("export", run, "--output", "all runs").fails(2, "all runs")


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
    kdedge("eval", "--output", "out.json").fails(2, "nothing is overwritten")
    assert Path("out.json").read_text() == result
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


WITHOUT_LABELS = (
    "--set=data.labeled=null",
    "--set=teacher.method=zeroshot",
    "--set=teacher.settings={}",
    "--set=data.test=null",
)
"""What `kdedge init` writes where no labeled images are named."""


def test_check_says_that_a_zeroshot_teacher_needs_no_labels_and_no_training(
    kdedge, project
) -> None:
    checked = kdedge("check", "r.yaml", *WITHOUT_LABELS).succeeds()
    assert checked.err == ""
    assert re.search(r"^teacher: images +none are needed$", checked.out, re.MULTILINE)
    assert re.search(r"^teacher: method +zeroshot, nothing to train$", checked.out, re.MULTILINE)


def test_without_labels_a_zeroshot_teacher_teaches(kdedge, project) -> None:
    done = kdedge("distill", "r.yaml", *WITHOUT_LABELS).succeeds()
    assert "Teacher 1/2: zeroshot on teacher, which needs no training.\n" in done.err
    assert "Teacher 1/2 done.\n" in done.err
    assert Path("runs/tiny/02/student.safetensors").exists()
    assert "40 of 40 images of data.unlabeled, trained on" in done.out
    assert "agrees with its teacher on" in done.out
    assert done.out.endswith("\nNext: kdedge export runs/tiny/02 --cpu\n")


# A run without test images, which is judged on images that are held out


HOLDS_OUT = ("--set=data.test=null", "--set=data.unlabeled.hold_out=25%")


@dataclass(frozen=True)
class Unlabeled:
    """A project whose runs have no test images, and what was measured on 10 images held out."""

    folder: Path
    distilled: Done

    @property
    def provenance(self) -> dict[str, Any]:
        return json.loads((self.folder / "runs/tiny/02/provenance.json").read_text())

    @property
    def measured(self) -> dict[str, Any]:
        return json.loads((self.folder / "runs/tiny/02/eval_unlabeled.json").read_text())


@pytest.fixture(scope="module")
def untested_project(blank_project, copy_of, kdedge_in, tmp_path_factory) -> Unlabeled:
    """Trained once; not to be changed."""
    folder = copy_of(blank_project, tmp_path_factory.mktemp("untested") / "project")
    return Unlabeled(folder, kdedge_in(folder, "distill", "r.yaml", *HOLDS_OUT).succeeds())


@pytest.fixture
def untested(untested_project, enter) -> Unlabeled:
    """That project, of the test's own, as the current folder."""
    return Unlabeled(enter(untested_project.folder, "untested"), untested_project.distilled)


def test_check_says_that_agreement_is_measured_where_there_are_no_test_images(
    kdedge, project
) -> None:
    checked = kdedge("check", "r.yaml", *HOLDS_OUT).out
    assert "used of 40" in checked
    assert "none: agreement with the teacher is measured instead" in checked


def test_distill_says_that_ten_images_are_too_few_to_measure_a_student(untested_project) -> None:
    said = "10 of data.unlabeled are too few to measure the student"
    assert said in untested_project.distilled.err


def test_images_that_are_held_out_are_not_trained_on(untested_project) -> None:
    epochs, batches = 2, 30 // 4
    assert untested_project.provenance["summary"]["training"]["steps"] == epochs * batches


def test_the_record_counts_the_parameters_of_image_encoder_and_method(untested) -> None:
    run = RunFolder.open(Path("runs/tiny/02"))
    student = load_run(run, Workspace(Path("runs"), set_up_device("cpu")))
    weights = [*student.backbone.visual.parameters(), *student.method.module.parameters()]
    n_parameters = sum(values.numel() for values in weights)
    assert untested.provenance["summary"]["parameters"] == n_parameters


def test_agreement_is_that_of_the_classes_which_student_and_teacher_name(untested_project) -> None:
    measured = untested_project.measured
    assert measured["images"] == "10 of 10 images held out of data.unlabeled"
    assert sum(measured["predicted"].values()) == 10
    assert sum(measured["teacher_predicted"].values()) == 10
    assert len(measured["samples"]) == 10
    differ = [one for one in measured["samples"] if one["teacher"] != one["top"][0][0]]
    assert measured["agreement_percent"] == 100 - 10 * len(differ)


def test_eval_writes_the_measurement_of_held_out_images_again(kdedge, untested) -> None:
    before = untested.measured
    file = Path("runs/tiny/02/eval_unlabeled.json")
    file.unlink()
    assert f"Wrote {file}" in kdedge("eval", "tiny/02", "--per-class").succeeds().err
    assert untested.measured == before


def test_eval_with_more_held_out_images_measures_those_that_the_run_did_not_train_on(
    kdedge, untested
) -> None:
    more = ("--set", "data.unlabeled.hold_out=50%", "--set", "seed=2")
    measured = json.loads(kdedge("eval", *more, "--json").out)
    assert measured["images"] == untested.measured["images"]


def test_show_gives_the_agreement_of_a_run_without_test_images(kdedge, untested) -> None:
    percent = untested.measured["agreement_percent"]
    assert f"teacher agrees     {percent:.2f} %" in kdedge("show").out


def test_eval_measures_all_images_of_another_unlabeled_source(kdedge, untested) -> None:
    other = json.loads(kdedge("eval", "--set", "data.unlabeled.folder=labeled", "--json").out)
    assert other["images"] == "24 of 24 images of data.unlabeled as overridden"


def test_the_report_of_a_run_without_test_images_shows_the_held_out_ones_and_how_to_test(
    kdedge, untested
) -> None:
    kdedge("report").succeeds()
    page = Path("runs/tiny/02/report/01/index.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 10
    assert "kdedge eval runs/tiny/02 --set data.test.folder=FOLDER" in page
    assert "teacher agrees" in page


@pytest.mark.parametrize("change", ["seed=2", "data.unlabeled=null"])
def test_eval_on_test_images_is_not_kept_where_more_is_changed(kdedge, untested, change) -> None:
    kdedge("eval", "--set", "data.test.folder=test", "--set", change).succeeds()
    assert not Path("runs/tiny/02/eval.json").exists()


def test_eval_on_test_images_is_kept_with_a_run_that_had_none(kdedge, untested) -> None:
    kdedge("eval", "--set", "data.test.folder=test").succeeds()
    kept = json.loads(Path("runs/tiny/02/eval.json").read_text())
    assert kept["student"]["n_images"] == 20


def test_of_another_source_all_images_are_measured_although_some_would_be_held_out(
    kdedge, trained
) -> None:
    options = (*HOLDS_OUT, "--set=data.unlabeled.folder=labeled")
    result = json.loads(kdedge("eval", "tiny/02", *options, "--json").out)
    assert result["images"] == "24 of 24 images of data.unlabeled as overridden"


def measured_images(kdedge, *options: str) -> set[str]:
    """The images on which `kdedge eval` measures the newest student."""
    measured = json.loads(kdedge("eval", *options, "--json").succeeds().out)
    return {sample["image"] for sample in measured["samples"]}


@pytest.mark.parametrize(
    "changes",
    [
        ("--set=data.unlabeled.hold_out=50%", "--set=seed=2"),
        ("--set=data.unlabeled.per_class=1",),
        ("--set=data.unlabeled.include_test=true",),
    ],
    ids=["more and another seed", "fewer per class", "with test images"],
)
def test_eval_keeps_to_a_runs_own_held_out_images(kdedge, untested, changes) -> None:
    own = {sample["image"] for sample in untested.measured["samples"]}
    assert measured_images(kdedge, *changes) == own


def test_among_other_images_eval_draws_by_the_seed_that_is_given(kdedge, untested) -> None:
    others = "--set=data.unlabeled={folder: labeled, per_class: 2, include_test: true}"
    first = measured_images(kdedge, others, "--set=seed=1")
    assert measured_images(kdedge, others, "--set=seed=2") != first


def held_out(n: int = 8, seed: int = 1) -> set[str]:
    """Digests of the images that the project's recipe holds out of its pool."""
    overrides = [f"data.unlabeled.hold_out={n}", f"seed={seed}"]
    loaded = load_recipe("r.yaml", parse_overrides(overrides))
    classes = load_classes(loaded.recipe)
    workspace = Workspace(Path("runs"), set_up_device("cpu"))
    images = RecipeImages(loaded.recipe, classes, workspace).held_out()
    return {images.digests[index] for index in images.indices}


def test_more_held_out_images_are_the_same_ones_and_others(project) -> None:
    assert len(held_out(n=8)) == 8
    assert held_out(n=8) < held_out(n=12)


def test_another_seed_holds_out_other_images(project) -> None:
    assert held_out(seed=1) != held_out(seed=2)


def test_labeled_images_are_not_held_out_while_there_are_others(project) -> None:
    shutil.copytree("labeled", "pool/labeled")
    assert len(held_out(n=60)) <= 40


def test_labeled_images_are_held_out_where_all_are_labeled(project) -> None:
    shutil.rmtree("pool")
    shutil.copytree("labeled", "pool")
    assert len(held_out(n=8)) == 8


def test_what_is_held_out_does_not_follow_the_names_of_files(project) -> None:
    before = held_out()
    for number, picture in enumerate(sorted(Path("pool").iterdir())):
        picture.rename(picture.with_name(f"{99 - number}.jpg"))
    assert held_out() == before


def test_copies_of_an_image_are_held_out_together_as_far_as_they_fit_into_the_number(
    project,
) -> None:
    pictures = sorted(Path("pool").iterdir())
    contents = [picture.read_bytes() for picture in pictures[:3]]
    for number, picture in enumerate(pictures):  # 14, 13 and 13 copies
        picture.write_bytes(contents[number % 3])
    assert held_out(n=2) == set()
    assert len(held_out(n=14)) == 1


def test_a_pool_that_is_held_out_whole_is_refused(kdedge, project) -> None:
    done = kdedge("distill", "r.yaml", "--set", "data.unlabeled.hold_out=100%")
    done.fails(3, "leaves none to train on")


def test_test_images_in_the_unlabeled_pool_are_left_out_and_named(kdedge, project) -> None:
    shutil.copy("test/cat/0.jpg", "pool/copy.jpg")
    done = kdedge("check", "r.yaml", "--json").succeeds()
    left_out = (
        '1 of 41 images of data.unlabeled are in data.test, too, and are left out: "copy.jpg"'
    )
    assert done.err.count(left_out) == 1
    findings = {one["what"]: one["result"] for one in json.loads(done.out)["findings"]}
    assert findings["student: images"] == "40 used of 41; few: a student needs hundreds"


def test_test_images_in_the_unlabeled_pool_are_used_where_the_recipe_includes_them(
    kdedge, project
) -> None:
    shutil.copy("test/cat/0.jpg", "pool/copy.jpg")
    done = kdedge("check", "r.yaml", "--set", "data.unlabeled.include_test=true")
    assert "left out" not in done.err
    assert re.search("student: images +41 used of 41", done.out)


def test_a_pool_of_test_images_alone_is_refused(kdedge, project) -> None:
    done = kdedge("check", "r.yaml", "--set", "data.unlabeled.folder=test")
    done.fails(3, "All images of data.unlabeled are in data.test")


@pytest.fixture
def killed(trained: Path) -> Path:
    """The record of a third run, tiny/03, a student's, which something killed."""
    shutil.copytree("runs/tiny/02", "runs/tiny/03")
    record = Path("runs/tiny/03/provenance.json")
    record.write_text(record.read_text().replace('"finished"', '"running"'))
    Path("runs/tiny/03/eval.json").unlink()
    return record


def set_command(record: Path, *command: str) -> None:
    """Writes which command made a run into its record."""
    record.write_text(json.dumps({**json.loads(record.read_text()), "command": command}))


def test_runs_gives_role_method_and_status_of_each(kdedge, killed) -> None:
    listed = json.loads(kdedge("runs", "--json").out)["runs"]
    found = [f"{one['run']}: {one['role']}, {one['method']}, {one['status']}" for one in listed]
    assert found == [
        "tiny/01: teacher, promptsrc, finished",
        "tiny/02: student, promptkd, finished",
        "tiny/03: student, promptkd, interrupted",
    ]


def test_runs_gives_accuracy_and_size_of_a_finished_one(kdedge, killed) -> None:
    listed = json.loads(kdedge("runs", "--json").out)["runs"]
    (student,) = [one for one in listed if one["run"] == "tiny/02"]
    result = json.loads(Path("runs/tiny/02/eval.json").read_text())["student"]
    assert student["measure"] == "HM"
    assert student["percent"] == result["harmonic_mean"]
    assert student["n_images"] == 20
    files = [path for path in Path("runs/tiny/02").rglob("*") if path.is_file()]
    assert student["n_bytes"] == sum(x.stat().st_size for x in files if x.name != ".lock")


def test_the_table_of_runs_has_an_accuracy_for_each_finished_one(kdedge, killed) -> None:
    percent = json.loads(Path("runs/tiny/02/eval.json").read_text())["student"]["harmonic_mean"]
    shown = kdedge("runs", "tiny").out
    assert re.search(rf"^tiny/02 .* {percent:.2f} +HM +20 ", shown, re.MULTILINE)
    assert re.search(r"^tiny/03 .*interrupted +- +- +- ", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "next_command"),
    [("distill", "distill r.yaml --resume"), ("pseudo-label", "pseudo-label r.yaml")],
)
def test_runs_names_the_command_that_continues_an_interrupted_one(
    kdedge, killed, command, next_command
) -> None:
    set_command(killed, "kdedge", command, "r.yaml")
    assert kdedge("runs").out.endswith(f"Next: kdedge {next_command}\n")


def test_runs_goes_on_with_show_where_the_command_of_the_interrupted_one_is_not_known(
    kdedge, killed
) -> None:
    set_command(killed)  # of a script that hides its own
    assert "Next: kdedge show " in kdedge("runs").out


def test_runs_goes_on_with_show_where_a_later_one_of_the_kind_is_finished(kdedge, killed) -> None:
    set_command(killed, "kdedge", "distill", "r.yaml")
    shutil.copytree("runs/tiny/02", "runs/tiny/04")
    assert "Next: kdedge show " in kdedge("runs").out


def test_runs_names_a_record_that_cannot_be_read(kdedge, killed) -> None:
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


def test_another_template_set_of_a_zeroshot_teacher_makes_another_student(kdedge: Run) -> None:
    command = ("distill", "r.yaml", "--set=teacher.method=zeroshot")
    kdedge(*command, "--set=teacher.settings={templates: single}").succeeds()
    kdedge(*command, "--set=teacher.settings={templates: ensemble7}", "--resume").succeeds()
    students = [path.read_bytes() for path in Path("runs").glob("*/*/student.safetensors")]
    assert len(students) == 2
    assert students[0] != students[1]


def test_validation_without_base_classes_chooses_nothing(kdedge: Run) -> None:
    """Their labels are the novel classes', which nothing may look at."""
    rows = [f"{path},red fox\n" for path in Path("labeled/red fox").glob("*.jpg")]
    Path("held-out.csv").write_text("path,label\n" + "".join(rows))
    done = kdedge(
        "teach",
        "r.yaml",
        "--set=data.validation={list: held-out.csv}",
        "--set=optim.selection=validation",
    )
    done.fails(3, "data.validation has no image of a base class")
    assert not list(Path().glob("runs/tiny/*"))  # it is said before anything is trained


def test_all_models_of_a_recipe_are_chosen_by_the_same_validation_images(kdedge: Run) -> None:
    """Also a student's, which draws no labeled images before them."""
    shutil.copytree("labeled", "held-out")
    done = kdedge(
        "distill",
        "r.yaml",
        "--set=data.validation={folder: held-out, shots: 2}",
        "--set=optim.selection=validation",
    ).succeeds()
    said = "selected on 3 images of data.validation that are also labels to train on"
    assert said in done.err
    lists = [
        json.loads(path.read_text())["hashes"]["validation_list"]
        for path in Path("runs/tiny").glob("*/provenance.json")
    ]
    assert len(lists) == 2
    assert lists[0] == lists[1]


# A run that trains and chooses as PromptKD's public code does


OFFICIAL = ("--set", "official=true", "--set", "student.optim.epochs=3")


@dataclass(frozen=True)
class OfficialRun:
    """A project with a student that was trained with `official`.

    Attributes:
        folder: the project's.
        measure: the accuracy that chooses the epoch, in eval.json.
        options: of `kdedge distill`.
    """

    folder: Path
    measure: str
    options: tuple[str, ...]

    def read(self, name: str) -> Any:
        """A record of the student's."""
        return json.loads((self.folder / "runs/tiny/02" / name).read_text())

    def scores(self) -> list[float]:
        """Its accuracy after each epoch, on the images that choose."""
        lines = (self.folder / "runs/tiny/02/metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [row["validation_percent"] for row in rows if "validation_percent" in row]


@pytest.fixture(
    scope="module",
    params=[("base-to-novel", "base"), ("all", "all")],
    ids=["base-to-novel", "all"],
)
def official(request, blank_project, copy_of, kdedge_in, tmp_path_factory) -> OfficialRun:
    """Trained once for each way to split the classes; not to be changed."""
    split, measure = request.param
    folder = copy_of(blank_project, tmp_path_factory.mktemp("official") / "project")
    options = (*OFFICIAL, "--set", f"data.split={split}")
    kdedge_in(folder, "distill", "r.yaml", *options).succeeds()
    return OfficialRun(folder, measure, options)


def test_the_student_is_that_of_the_epoch_that_is_best_on_test_images(
    official: OfficialRun,
) -> None:
    training = official.read("provenance.json")["summary"]["training"]
    scores = official.scores()
    assert len(scores) == 3
    assert training["kept"] == "epoch"
    assert training["best_epoch"] == scores.index(max(scores)) + 1
    assert official.read("eval.json")["student"][official.measure] == max(scores)


def test_an_evaluation_says_which_model_the_test_images_chose(official: OfficialRun) -> None:
    found = official.read("eval.json")
    assert found["student"]["selection"] == "test"
    assert found["zeroshot"]["selection"] == "last"


def test_the_record_of_an_official_run_says_so_and_has_the_hash_of_the_test_images(
    official: OfficialRun,
) -> None:
    record = official.read("provenance.json")
    assert record["official"] is True
    assert "test_list" in record["hashes"]


def test_resume_of_a_finished_official_run_trains_nothing(
    official: OfficialRun, kdedge_in: Run
) -> None:
    again = kdedge_in(official.folder, "distill", "r.yaml", *official.options, "--resume")
    assert "is already finished: there is nothing to resume" in again.err


def test_what_the_public_code_keeps_in_half_is_in_half(official: OfficialRun) -> None:
    runs = official.folder / "runs"
    run = RunFolder.open(runs / "tiny/02")
    model = load_run(run, Workspace(runs, set_up_device("cpu")))
    module: Any = model.method.module
    assert model.method.half_parameters()
    for parameter in model.method.half_parameters():
        assert (parameter == parameter.half().float()).all()
    assert (module.visual_prompts != module.visual_prompts.half().float()).any()


def test_official_results_are_marked_where_they_are_shown(kdedge: Run, trained: Path) -> None:
    done = kdedge("distill", "r.yaml", *OFFICIAL)
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
        kdedge(command, "r.yaml", *OFFICIAL, "--set", "data.test=null").fails(
            2, "The recipe has no data.test, and selection: test chooses the epoch on it"
        )
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached
