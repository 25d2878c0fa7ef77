"""Several teachers: one as before, stored as live, resumed, recorded, and wrong ones."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdedge.config.load import load_recipe
from kdedge.data.sources import folder
from kdedge.methods.protocol import CombinesTeachers
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_evaluation
from kdedge.setup.workspace import Workspace
from kdedge.training.distill import distill
from kdedge.training.find_teachers import open_teacher
from kdedge.training.job.job import batches_of
from kdedge.training.student import student_job, student_parts, teaching_of

NAMES = ("cat", "dog", "red fox", "school bus")
TRAINED = "{run: runs/tiny/01}"
PROMPTED = (
    "{weights: teacher.pt, settings: {prompt_depth_text: 2, prompt_depth_vision: 2,"
    " n_anchor_templates: 4}}"
)
ZERO_SHOT = "{method: zeroshot, weights: student.pt}"
PROBE = "{method: linear_probe, weights: student.pt, optim: {batch_size: 4}}"
FILE = "{probabilities: {unlabeled: pool.csv}}"
FILES = "{probabilities: {unlabeled: pool.csv, test: test.csv}}"
CPU = torch.device("cpu")
Start = Callable[..., Any]


def write_recipe(*teachers: str, ensemble: str = "", **data: str) -> str:
    """The tiny project's recipe with a list of teachers; gives its name."""
    text = Path("r.yaml").read_text()
    head, _, tail = text.partition("teacher:\n")
    listed = "teachers: [{}]\n".format(", ".join(teachers))
    together = f"ensemble: {ensemble}\n" if ensemble else ""
    Path("several.yaml").write_text(
        f"{head}{listed}{together}student:{tail.partition('student:')[2]}"
    )
    return "several.yaml"


def write_probabilities(
    path: str, images: str, *, names: Sequence[str] = NAMES, seed: int = 0
) -> None:
    source = folder.open_source(Path(images), class_names=NAMES, labeled=False)
    rng = np.random.default_rng(seed)
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *names])
        for item in source.items:
            writer.writerow([item.key, *rng.dirichlet([0.5] * len(names))])


def taught(recipe: str, *overrides: str, root: str = "runs") -> RunFolder:
    _, student = distill(load_recipe(recipe, overrides), Workspace(Path(root), CPU))
    return student


def record(run: RunFolder) -> dict[str, Any]:
    return json.loads(run.provenance.read_text())


def assert_close(one: RunFolder, other: RunFolder, *, atol: float) -> None:
    first, second = load_file(one.weights), load_file(other.weights)
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], atol=atol, rtol=1e-4)


def test_a_list_of_one_teacher_is_that_teacher_bit_for_bit(trained: Path) -> None:
    alone = taught("r.yaml", "teacher.run=runs/tiny/01")
    listed = taught(write_recipe(TRAINED))
    assert listed.weights.read_bytes() == alone.weights.read_bytes()
    assert record(listed)["key"] == record(alone)["key"]
    assert record(listed)["hashes"] == record(alone)["hashes"]


@pytest.mark.parametrize("weights", ["equal", "entropy", "confidence"])
def test_two_equal_teachers_give_what_one_gives(trained: Path, weights: str) -> None:
    alone = taught("r.yaml", "teacher.run=runs/tiny/01")
    twice = taught(write_recipe(TRAINED, TRAINED, ensemble=f"{{weights: {weights}}}"))
    assert_close(alone, twice, atol=2e-5)
    teachers = record(twice)["summary"]["teachers"]
    assert [one["temperature"] for one in teachers] == [1, 1]
    assert [one["weight_percent"] for one in teachers] == [50, 50]
    assert [one["followed_percent"] for one in teachers] == [100, 100]


def test_stored_features_of_each_teacher_give_what_live_teachers_give(
    trained: Path, write_clip: Callable[..., Path], tiny_sizes: dict[str, int]
) -> None:
    shutil.copy(write_clip({**tiny_sizes, "image_size": 24}, tag=3), "small.pt")
    small = "{method: zeroshot, weights: small.pt}"  # prepares images in another way
    write_probabilities("pool.csv", "pool")
    recipe = write_recipe(TRAINED, small, PROBE, FILE, ensemble="{weights: entropy}")
    stored = taught(recipe, "student.views=2")
    loaded = load_recipe(recipe, ["student.views=2"])
    parts = student_parts(loaded, Workspace(Path("runs"), CPU))
    runs = [RunFolder.open(Path(f"runs/tiny/{number:02}")) for number in (1, 3, 4)]
    job = student_job(parts, teaching_of([open_teacher(run, parts) for run in runs], parts))
    for filler in job.fillers:
        filler.fill()
    assert job.teaching is not None
    teacher = job.teaching.teacher_of(job.setup.backbone)
    assert isinstance(teacher, CombinesTeachers)
    warm, live = (next(batches_of(job, 2, 3, features=f)) for f in (job.stored_features(), None))
    assert torch.equal(warm.images, live.images)
    kept = teacher.combine(warm.teacher_features, warm.keys)
    asked = teacher.combine(teacher.forward_features(live.images), live.keys)
    torch.testing.assert_close(kept[0], asked[0], atol=2**-11, rtol=0)  # features in float16
    torch.testing.assert_close(kept[1].exp(), asked[1].exp(), atol=0.01, rtol=0)
    stores = sorted(Path("runs/.cache/teacher_store").iterdir())
    assert len(stores) == 3
    shutil.rmtree(stores[0])  # one of the teachers has no store any more
    again = taught(recipe, "student.views=2")
    assert again.weights.read_bytes() == stored.weights.read_bytes()


def test_a_teachers_own_confidence_counts_where_it_is_not_matched(trained: Path) -> None:
    matched, own = (
        taught(write_recipe(TRAINED, PROBE, ensemble=f"{{match_confidence: {value}}}"))
        for value in ("true", "false")
    )
    found = [record(run)["summary"]["teachers"][1]["temperature"] for run in (matched, own)]
    assert found[0] != 1
    assert found[1] == 1


def test_what_the_teachers_reached_and_how_often_each_was_followed_is_told(
    trained: Path, kdedge: Any
) -> None:
    write_probabilities("pool.csv", "pool")
    write_probabilities("test.csv", "test", seed=1)
    recipe = write_recipe(TRAINED, PROBE, FILES, ensemble="{weights: confidence}")
    done = kdedge("distill", recipe)
    assert done.code == 0, done.err
    assert re.search(r"Teacher 1/3: using .*tiny/01, which the recipe names", done.err)
    assert "Teacher 2/3: training linear_probe on " in done.err
    assert "Student 3/3: training promptkd" in done.err
    student = RunFolder.open(Path("runs/tiny/04"))
    results = read_evaluation(student)
    names = [name for name in results if name.startswith("teacher")]
    assert [name.partition(" on ")[0] for name in names] == [
        *("teacher", "teacher 1: promptsrc", "teacher 2: linear_probe", "teacher 3: pool.csv")
    ]
    own = read_evaluation(RunFolder.open(Path("runs/tiny/01")))["teacher"]
    assert results[names[1]].all == own.all
    probe = results[names[2]]
    assert probe.novel == 50, "it chooses among two classes that it does not know by chance"
    teachers = record(student)["summary"]["teachers"]
    assert [one["run"] for one in teachers] == ["tiny/01", "tiny/03", None]
    assert sum(one["weight_percent"] for one in teachers) == pytest.approx(100)
    assert {one["n_images"] for one in teachers} == {20}
    assert teachers[0]["temperature"] == 1
    shown = kdedge("show", "tiny/04")
    assert re.search(r"teacher +tiny/01 and tiny/03 and pool\.csv", shown.out)
    assert "teachers together" in shown.out
    assert re.search(r"followed +promptsrc on .* \d+\.\d\d %, linear_probe", shown.out)
    assert kdedge("eval", "tiny/04").code == 0
    pytest.importorskip("matplotlib")
    assert kdedge("report", "tiny/04").code == 0
    (page,) = student.path.glob("report/*/*.html")
    assert "mean weight, %" in page.read_text()


def test_check_says_what_teaches_and_writes_nothing(trained: Path, kdedge: Any) -> None:
    write_probabilities("pool.csv", "pool")
    recipe = write_recipe(TRAINED, ZERO_SHOT, FILE)
    before = sorted(Path("runs").rglob("*"))
    done = kdedge("check", recipe, "--set", "student.views=1")
    assert done.code == 0, done.err
    assert re.search(r"student: teachers +3 together, weights equal: promptsrc on ", done.out)
    assert len(re.findall(r"^student: teacher store", done.out, re.MULTILINE)) == 2
    assert sorted(Path("runs").rglob("*")) == before


def test_without_test_images_of_a_file_the_teachers_together_are_not_measured(
    trained: Path, kdedge: Any
) -> None:
    write_probabilities("pool.csv", "pool")
    done = kdedge("distill", write_recipe(TRAINED, FILE))
    assert done.code == 0, done.err
    assert "The accuracy of the teachers together is not measured" in done.err
    student = RunFolder.open(Path("runs/tiny/03"))
    assert [name.partition(":")[0] for name in read_evaluation(student)] == [
        *("student", "teacher 1", "zeroshot")
    ]
    assert "teachers" not in record(student)["summary"]


def test_without_any_labels_several_teachers_teach_and_are_judged(
    trained: Path, kdedge: Any
) -> None:
    larger = "{method: zeroshot, weights: teacher.pt}"
    recipe = write_recipe(larger, ZERO_SHOT, ensemble="{weights: entropy}")
    options = ("data.labeled=null", "data.test=null", "data.split=all")
    done = kdedge("distill", recipe, *(part for one in options for part in ("--set", one)))
    assert done.code == 0, done.err
    student = RunFolder.open(Path("runs/tiny/05"))
    assert json.loads(student.unlabeled_evaluation.read_text())["agreement_percent"] is not None
    assert [one["n_images"] for one in record(student)["summary"]["teachers"]] == [40, 40]


def test_a_student_may_teach_beside_others(trained: Path, kdedge: Any) -> None:
    recipe = write_recipe(TRAINED, "{run: runs/tiny/02}")
    done = kdedge("distill", recipe, "--set", "student.views=1")
    student = RunFolder.open(Path("runs/tiny/03"))
    names = list(read_evaluation(student))
    assert any(name.startswith("teacher 2: promptkd on ") for name in names)
    said = [line for line in done.out.splitlines() if "fewer operations" in line]
    assert len(said) == 1, "the one that teaches is not told of again"
    assert "The most similar store, " in done.err


def test_a_student_may_teach_alone(trained: Path) -> None:
    student = taught(write_recipe("{run: runs/tiny/02}"), "student.views=1")
    assert (
        read_evaluation(student)["teacher"]
        == read_evaluation(RunFolder.open(Path("runs/tiny/02")))["student"]
    )


def test_class_lists_in_another_order_go_by_name(trained: Path) -> None:
    """The same teachers of the same classes in another order say the same of each class."""
    recipe = write_recipe(TRAINED, PROBE)
    options = ("data.split=all", "data.labeled.shots=6")
    taught(recipe, *options)
    probe = "{run: runs/tiny/03}"
    assert record(RunFolder.open(Path("runs/tiny/03")))["method"] == "linear_probe"
    Path("turned.txt").write_text("\n".join(reversed(NAMES)) + "\n")
    runs = [
        taught(write_recipe(TRAINED, probe), *options, *other)
        for other in ((), ("classes.file=turned.txt",))
    ]
    one, other = (read_evaluation(run) for run in runs)
    for name in ("teacher", *(key for key in one if key.startswith("teacher 2"))):
        assert one[name].all == other[name].all
        assert one[name].per_class == other[name].per_class


def replace_line(path: str, number: int, text: str) -> None:
    lines = Path(path).read_text().splitlines()
    lines[number] = text
    Path(path).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("teachers", "wrong", "code", "message"),
    [
        (
            (PROBE, TRAINED),
            None,
            2,
            "linear_probe classifies by a linear layer(?s:.)*list such a teacher before this one",
        ),
        (
            (TRAINED, "{method: promptkd, weights: student.pt}"),
            None,
            2,
            "needs a teacher itself, so it cannot be one",
        ),
        (
            (TRAINED, "{method: cocoop, weights: student.pt}"),
            None,
            2,
            "makes texts for every image",
        ),
        ((TRAINED, "{run: runs}"), None, 2, "runs"),
        ((TRAINED, "{run: nowhere}"), None, 3, r"teachers\.1\.run: there is no folder"),
        ((TRAINED, FILE), "rm", 3, r"teachers\.1\.probabilities\.unlabeled: there is no file"),
        ((TRAINED, FILE), "image,cat,dog,wolf", 3, "are not in the class list, first 'wolf'"),
        ((TRAINED, FILE), "image,cat,red fox", 3, "2 of 4 classes, without 'dog'"),
        ((TRAINED, FILE), "0_0.jpg,1,0,0,nan", 3, "a probability is not finite"),
        ((TRAINED, FILE), "0_0.jpg,2,-1,0,0", 3, "a probability is -1"),
        ((TRAINED, FILE), "0_0.jpg,1,1,0,0", 3, "the probabilities sum to 2"),
        ((TRAINED, FILE), "0_1.jpg,1,0,0,0", 3, "is there twice"),
        ((TRAINED, FILE), "other.jpg,1,0,0,0", 3, "has no line for 1 of 40 images"),
    ],
)
@pytest.mark.parametrize("command", ["check", "distill"])
def test_what_cannot_teach_is_said_before_anything_is_trained(
    trained: Path, kdedge: Any, command: str, teachers: tuple[str, ...], wrong: str | None,
    code: int, message: str,
) -> None:  # fmt: skip
    write_probabilities("pool.csv", "pool")
    if wrong == "rm":
        Path("pool.csv").unlink()
    elif wrong is not None:
        replace_line("pool.csv", 0 if wrong.startswith("image") else 1, wrong)
    before = sorted(path.name for path in Path("runs/tiny").iterdir())
    done = kdedge(command, write_recipe(*teachers))
    assert done.code == code, done.err
    assert re.search(message, done.err)
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == before


def test_teachers_that_changed_are_named_as_the_reason_for_a_new_run(
    trained: Path, kdedge: Any
) -> None:
    write_probabilities("pool.csv", "pool")
    recipe = write_recipe(TRAINED, FILE)
    assert kdedge("distill", recipe).code == 0
    run = RunFolder.open(Path("runs/tiny/03"))
    run.provenance.write_text(run.provenance.read_text().replace('"finished"', '"interrupted"'))
    write_probabilities("pool.csv", "pool", seed=5)
    done = kdedge("distill", recipe, "--resume")
    assert done.code == 0, done.err
    assert "was interrupted with different teachers, or another way to combine them." in done.err


def steps_done(run: Path) -> int:
    names = [path.name for path in run.glob("checkpoints/e*-s*.safetensors")]
    return max((10 * (int(name[1:3]) - 1) + int(name[5:10]) for name in names), default=-1)


def test_a_run_killed_at_each_stage_ends_as_an_undisturbed_one(trained: Path, start: Start) -> None:
    write_probabilities("pool.csv", "pool")
    recipe = write_recipe(PROMPTED, PROBE, FILE, ensemble="{weights: entropy}")
    options = ("--set", "student.views=2", "--set", "optim.epochs=3", "--set", "seed=2")
    command = ("distill", recipe, *options)
    first = start(*command)
    assert first.wait() == 0, first.stderr
    teacher, probe, student = (trained / f"runs/tiny/{number:02}" for number in (3, 4, 5))
    expected = (student / "student.safetensors").read_bytes()
    cache = trained / "runs/.cache/teacher_store"
    for path in (teacher, probe, student, cache):
        shutil.rmtree(path)
    often = ("--set", "optim.checkpoint_every_s=0.001", "--resume")
    moments: list[Callable[[], object]] = [
        lambda: steps_done(teacher) > 2,
        lambda: steps_done(probe) > 2,
        lambda: any(cache.glob("*/view-*/*.safetensors")),
        lambda: steps_done(student) > 12,
    ]
    for moment in moments:
        process = start(*command, *often)
        process.wait_until(moment)
        process.send(signal.SIGKILL)
        process.wait()
    process = start(*command, *often)
    assert process.wait() == 0, process.stderr
    assert (student / "student.safetensors").read_bytes() == expected


def test_teach_trains_each_teacher_of_a_list_and_stores_their_features(
    trained: Path, kdedge: Any
) -> None:
    recipe = write_recipe(TRAINED, ZERO_SHOT, PROBE)
    done = kdedge("teach", recipe, "--store", "--set", "student.views=1", "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert len(made["teachers"]) == len(made["stores"]) == 3
    again = kdedge("distill", recipe, "--set", "student.views=1")
    assert again.err.count("It is complete: the teacher is not run.") == 3
    nothing = kdedge("teach", write_recipe(TRAINED, TRAINED))
    assert nothing.code == 2
    assert "there is nothing to train" in nothing.err
