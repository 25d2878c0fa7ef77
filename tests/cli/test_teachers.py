"""A teacher of each kind: a run, a classifier on any encoder, a file; and wrong ones."""

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

from kdedge.config.load import load_recipe, parse_overrides
from kdedge.data.sources import folder
from kdedge.errors import RecipeError
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_evaluation
from kdedge.setup.workspace import Workspace
from kdedge.training.distill import distill_student
from kdedge.training.job import Job
from kdedge.training.student import student_job

pytestmark = pytest.mark.usefixtures("trained")

NAMES = ("cat", "dog", "red fox", "school bus")
PROBE = "{method: ridge, weights: student.pt}"
FILE = "{file: pool.csv}"
CPU = torch.device("cpu")
Start = Callable[..., Any]


def write_recipe(teacher: str, *, has_own_texts: bool = True) -> str:
    """The tiny project's recipe, for all classes, with another teacher; gives its name."""
    head, _, tail = Path("r.yaml").read_text().partition("teacher:\n")
    student = tail.partition("student:")[2]
    if has_own_texts:
        own = "class_vectors: student, prompt_depth_text: 2, prompt_depth: 2"
        student = student.replace("prompt_depth: 2", own)
    text = f"{head}teacher: {teacher}\nstudent:{student}"
    Path("t.yaml").write_text(text.replace("base-to-novel", "all"))
    return "t.yaml"


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


def distilled(recipe: str, *overrides: str) -> RunFolder:
    loaded = load_recipe(recipe, parse_overrides(overrides))
    return distill_student(loaded, Workspace(Path("runs"), CPU))


def job_of(recipe: str, *overrides: str) -> Job:
    loaded = load_recipe(recipe, parse_overrides(overrides))
    return student_job(loaded, Workspace(Path("runs"), CPU))[0]


def test_a_probe_on_another_encoder_teaches_by_its_probabilities_stored_as_live(
    write_clip: Callable[..., Path], tiny_sizes: dict[str, int]
) -> None:
    shutil.copy(write_clip({**tiny_sizes, "image_size": 24}, tag=3), "small.pt")
    recipe = write_recipe(PROBE.replace("student.pt", "small.pt"))  # prepares images otherwise
    stored = distilled(recipe, "student.views=2")
    job = job_of(recipe, "student.views=2")
    assert not job.filler.store.load()
    teacher, prepared = job.teacher, job.setup.backbone.preprocess
    warm, live = (next(job.batches(2, 3, features=f)) for f in (job.filler.store.read, None))
    assert torch.equal(warm.images, live.images)
    assert torch.equal(teacher.class_vectors(), torch.eye(4))
    kept = teacher.teacher_logits(warm.teacher_features, warm.keys)
    asked = teacher.teacher_logits(teacher.teacher_features(live.images, prepared), live.keys)
    assert kept.shape == (4, 4)
    torch.testing.assert_close(kept.softmax(1), asked.softmax(1), atol=0.01, rtol=0)
    again = distilled(recipe, "student.views=2", "name=again")
    assert again.weights.read_bytes() == stored.weights.read_bytes()
    probe = RunFolder.open(Path("runs/tiny/03"))
    assert read_evaluation(stored)["teacher"] == read_evaluation(probe)["teacher"]
    recipe = write_recipe(PROBE)
    with pytest.raises(RecipeError, match="takes images of 32 pixels, and student small of 24"):
        job_of(recipe, "student.weights=small.pt")


def test_a_teacher_with_class_vectors_gives_its_cosines() -> None:
    job = job_of("r.yaml")
    teacher = job.teacher
    features = torch.nn.functional.normalize(torch.randn(3, teacher.class_vectors().shape[1]))
    expected = teacher.scale * features @ teacher.class_vectors().T
    torch.testing.assert_close(teacher.teacher_logits(features, ("a", "b", "c")), expected)


def test_a_file_of_probabilities_teaches_and_is_judged(kdedge: Any) -> None:
    write_probabilities("pool.csv", "pool")
    done = kdedge("distill", write_recipe(FILE), "--set", "data.unlabeled.hold_out=10%", "--json")
    assert done.code == 0, done.err
    assert re.search(r"Teacher 1/2: using the probabilities of .*pool\.csv", done.err)
    assert "Student 2/2: training promptkd" in done.err
    assert json.loads(done.out)["teacher"] is None
    student = RunFolder.open(Path("runs/tiny/03"))
    assert list(read_evaluation(student)) == ["student", "zeroshot"]
    assert student.read_provenance().teacher_run is None
    again = load_recipe(student.recipe).recipe
    assert again.teacher.file == Path("pool.csv").absolute()
    job = job_of("t.yaml")
    batch = next(job.batches(1, 0))
    teacher, prepared = job.teacher, job.setup.backbone.preprocess
    found = teacher.teacher_logits(teacher.teacher_features(batch.images, prepared), batch.keys)
    lines = {row[0]: row[1:] for row in csv.reader(Path("pool.csv").read_text().splitlines())}
    expected = torch.tensor([[float(value) for value in lines[key]] for key in batch.keys])
    torch.testing.assert_close(found.exp(), expected)
    for command in (["show"], ["eval"]):
        assert kdedge(*command, "tiny/03").code == 0
    unlabeled = kdedge("distill", "t.yaml", "--set", "data.test=null", "--set", "data.labeled=null",
                       "--set", "data.unlabeled.hold_out=10%")  # fmt: skip
    assert unlabeled.code == 0, unlabeled.err
    judged = json.loads(RunFolder.open(Path("runs/tiny/04")).unlabeled_evaluation.read_text())
    assert judged["agreement_percent"] is not None


def test_a_rounded_probability_is_no_certainty() -> None:
    source = folder.open_source(Path("pool"), class_names=NAMES, labeled=False)
    rows = ["image," + ",".join(NAMES), *(f"{item.key},1,0,0,0" for item in source.items)]
    Path("pool.csv").write_text("\n".join(rows))
    teacher, key = job_of(write_recipe(FILE)).teacher, source.items[0].key
    found = teacher.teacher_logits(torch.empty(1, 0), [key])[0]
    torch.testing.assert_close(found, torch.tensor([1.0, 1e-4, 1e-4, 1e-4]).log())


def test_a_file_is_measured_where_the_test_images_are_among_its_images() -> None:
    for path in Path("test").rglob("*.jpg"):
        shutil.copy(path, f"pool/{path.parent.name}-{path.name}")
    write_probabilities("pool.csv", "pool")
    run = distilled(write_recipe(FILE), "data.unlabeled.include_test=true")
    assert "teacher" in read_evaluation(run)


def test_a_student_may_teach(kdedge: Any) -> None:
    recipe = write_recipe("{run: runs/tiny/02}", has_own_texts=False)
    changes = ("--set", "student.views=1", "--set", "data.split=base-to-novel")
    shown = kdedge("distill", recipe, *changes).out
    teacher, student = (RunFolder.open(Path(f"runs/tiny/{number}")) for number in ("02", "03"))
    assert read_evaluation(student)["teacher"] == read_evaluation(teacher)["student"]
    assert all(f"\nstudent tiny/{number} " in shown for number in ("02", "03"))
    first = job_of(recipe).hashes()["teacher"]
    other = write_recipe("{run: runs/tiny/03}", has_own_texts=False)
    assert job_of(other).hashes()["teacher"] != first  # though their class vectors are the same


def test_class_lists_in_another_order_go_by_name(kdedge: Any) -> None:
    """The same probe of the same classes in another order says the same of each class."""
    assert kdedge("teach", write_recipe(PROBE)).code == 0
    recipe = write_recipe("{run: runs/tiny/03}")
    Path("turned.txt").write_text("\n".join(reversed(NAMES)) + "\n")
    runs = [distilled(recipe, *other) for other in ((), ("classes.file=turned.txt",))]
    one, other = (read_evaluation(run)["teacher"] for run in runs)
    assert (one.all, one.per_class) == (other.all, other.per_class)


def test_check_says_what_teaches_and_writes_nothing(kdedge: Any) -> None:
    write_probabilities("pool.csv", "pool")
    before = sorted(Path("runs").rglob("*"))
    for teacher in (FILE, PROBE):
        kdedge("check", write_recipe(teacher)).succeeds()
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize(
    ("teacher", "options", "wrong", "code", "message"),
    [
        (PROBE, ("student.settings.class_vectors=teacher",), None, 2,
         "ridge, which gives logits, has no class vectors(?s:.)*"
         "Set student.settings.class_vectors: student"),
        (FILE, ("student.settings.class_vectors=teacher",), None, 2,
         r"pool\.csv, a file of probabilities, has no class vectors"),
        (PROBE, ("data.split=base-to-novel",), None, 2,
         "was trained on 2 of 4 classes, without 'red fox'"),
        (FILE, ("student.views=2",), None, 2, "student.views needs the image features"),
        ("{method: promptkd, weights: student.pt}", (), None, 2, "needs a teacher itself"),
        ("{method: cocoop, weights: student.pt}", (), None, 2, "cocoop computes its logits"),
        ("{run: nowhere}", (), None, 3, r"teacher\.run cannot be read: there is no folder"),
        (FILE, (), "rm", 3, r"teacher\.file cannot be read: there is no file"),
        (FILE, (), "image,cat,dog,wolf", 3, 'Not in the class list: "wolf"'),
        (FILE, (), "image,cat,red fox", 3, 'Missing: "dog"'),
        (FILE, (), "0_0.jpg,1,1,0,0", 3, "with the sum 2"),
        (FILE, (), "other.jpg,1,0,0,0", 3, "has no line for 1 of 40 images"),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_said_before_anything_is_trained(
    kdedge: Any, teacher: str, options: tuple[str, ...], wrong: str | None, code: int, message: str
) -> None:
    write_probabilities("pool.csv", "pool")
    if wrong == "rm":
        Path("pool.csv").unlink()
    elif wrong is not None:
        lines = Path("pool.csv").read_text().splitlines()
        lines[0 if wrong.startswith("image") else 1] = wrong
        Path("pool.csv").write_text("\n".join(lines) + "\n")
    before = sorted(path.name for path in Path("runs/tiny").iterdir())
    given = [part for option in options for part in ("--set", option)]
    recipe = write_recipe(teacher)
    for command in ("check", "distill"):
        done = kdedge(command, recipe, *given)
        assert done.code == code, done.err
        assert re.search(message, done.err)
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == before


def test_a_file_leaves_nothing_to_teach_and_nothing_to_store(kdedge: Any) -> None:
    write_probabilities("pool.csv", "pool")
    kdedge("teach", write_recipe(FILE)).fails(2, "is a file: there is nothing to train")
    kdedge("teach", "t.yaml", "--store", "--set", "student.views=1").fails(2, "student.views needs")


def test_a_file_that_changed_is_named_as_the_reason_for_a_new_run(kdedge: Any) -> None:
    write_probabilities("pool.csv", "pool")
    recipe = write_recipe(FILE)
    assert kdedge("distill", recipe).code == 0
    run = RunFolder.open(Path("runs/tiny/03"))
    run.provenance.write_text(run.provenance.read_text().replace('"finished"', '"interrupted"'))
    write_probabilities("pool.csv", "pool", seed=5)
    done = kdedge("distill", recipe, "--resume").succeeds()
    assert "was interrupted with different teacher." in done.err


def steps_done(run: Path) -> int:
    names = [path.name for path in run.glob("checkpoints/e*-s*.safetensors")]
    return max((10 * (int(name[1:3]) - 1) + int(name[5:10]) for name in names), default=-1)


def test_a_run_killed_at_each_stage_ends_as_an_undisturbed_one(trained: Path, start: Start) -> None:
    options = ("--set", "student.views=2", "--set", "optim.epochs=3", "--set", "seed=2")
    command = ("distill", write_recipe(PROBE), *options)
    first = start(*command)
    assert first.wait() == 0, first.stderr
    probe, student = (trained / f"runs/tiny/{number:02}" for number in (3, 4))
    expected = (student / "student.safetensors").read_bytes()
    cache = trained / "runs/.cache/teacher_store"
    for path in (probe, student, cache):
        shutil.rmtree(path)
    often = ("--set", "optim.checkpoint_every_s=0.001", "--resume")
    moments: list[Callable[[], object]] = [
        lambda: steps_done(probe) > 2,
        lambda: any(cache.glob("*/view-*/*.safetensors")),
        lambda: steps_done(student) > 12,
    ]
    for moment in moments:
        process = start(*command, *often)
        process.wait_until(moment)
        process.send(signal.SIGKILL)
        process.wait()
        # The store is gone in the middle of a run: what is computed again is the same
        shutil.rmtree(cache, ignore_errors=True)
    process = start(*command, *often)
    assert process.wait() == 0, process.stderr
    assert (student / "student.safetensors").read_bytes() == expected
