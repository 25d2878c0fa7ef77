"""kdedge pseudo-label, training on its files, and the methods that choose their own."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("project")

Run = Callable[..., Any]
LABELS = "labels.jsonl"
SHORT = ("--set", "baseline.optim={epochs: 2, batch_size: 4, warmup_epochs: 0}")
COOP = ("train", "r.yaml", "--method", "coop", "--set", "baseline.settings={n_ctx: 3}", *SHORT)
LEARNER = "promptsrc: {prompt_depth_text: 2, prompt_depth_vision: 2, n_anchor_templates: 4}"
"""Of the teacher's settings in the recipe."""


def write(kdedge: Run, *more: str, per_class: int = 3, path: str = LABELS) -> Any:
    method = () if "--method" in more else ("--method", "zeroshot")
    arguments = ("r.yaml", "--per-class", str(per_class), "-o", path, *method, *more)
    return kdedge("pseudo-label", *arguments)


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def baseline_record(kdedge: Run, *arguments: str) -> dict[str, Any]:
    return json.loads(kdedge(*arguments, "--json").succeeds().out)["baseline"]


def rounds_of(variant: str, *more: str, rounds: int = 3) -> tuple[str, ...]:
    settings = (
        f"baseline.settings={{variant: {variant}, rounds: {rounds}, per_class: 4, {LEARNER}}}"
    )
    return ("train", "r.yaml", "--method", "pseudo_label", "--set", settings, *SHORT, *more)


# Files


def test_a_method_in_closed_form_is_solved_before_it_labels(kdedge: Run) -> None:
    changed = ("--set", "data.split=all", "--set", "optim.lr=9", "--set", "teacher.optim.lr=9")
    warned = write(kdedge, "--method", "ridge", *changed).succeeds().err
    assert "optim.lr has no effect: ridge is solved in one pass" in warned
    assert "teacher.optim" not in warned
    assert json.loads(Path("runs/tiny/01/provenance.json").read_text())["method"] == "ridge"


def test_zero_shot_labels_are_written_and_the_command_that_trains_on_them_works(
    kdedge: Run, project: Path
) -> None:
    done = write(kdedge).succeeds()
    assert done.out == (
        "12 images of 4 classes by zeroshot.\n"
        "Wrote labels.jsonl\n"
        "Next: kdedge distill r.yaml --set data.pseudo_labels=labels.jsonl\n"
    )
    origin, *labels = lines_of(LABELS)
    assert origin["method"] == "zeroshot"
    assert len(origin["made_by"]) == 64
    assert Counter(one["class"] for one in labels) == dict.fromkeys(
        ("cat", "dog", "red fox", "school bus"), 3
    )
    assert len({one["image"] for one in labels}) == 12
    # Another command may be waiting for the lock of the logits, which are deleted
    left = [path.name for path in Path("runs/.cache/logits").rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", "store.json"]
    assert all((project / "pool" / one["image"]).is_file() for one in labels)
    write(kdedge, path="again.jsonl").succeeds()
    assert Path("again.jsonl").read_bytes() == Path(LABELS).read_bytes()
    assert (
        write(kdedge, "--set", "logit_adjustment={prior: uniform}", path="balanced.jsonl").code == 0
    )
    assert lines_of("balanced.jsonl")[0]["made_by"] != origin["made_by"]
    record = baseline_record(kdedge, *COOP, "--set", f"data.pseudo_labels={LABELS}")
    # 8 labeled images of 2 base classes and 12 pseudo-labeled ones of 4, 4 a step, 2 epochs
    assert record["summary"]["training"]["steps"] == 10
    assert len(record["hashes"]["pseudo_labels"]) == 64
    assert kdedge("eval").code == 0


def test_a_trained_methods_labels_use_a_finished_run_and_name_it(kdedge: Run) -> None:
    short = ("--method", "coop", *SHORT, "--set", "baseline.settings={n_ctx: 3}")
    first = json.loads(write(kdedge, *short, "--json").out)
    assert first["run"] == "runs/tiny/01"
    assert first["accuracy_percent"] is None
    second = json.loads(write(kdedge, *short, "--json", path="second.jsonl").out)
    assert second["run"] == "runs/tiny/01"
    assert Path("second.jsonl").read_bytes() == Path(LABELS).read_bytes()
    assert write(kdedge, path="plain.jsonl").code == 0
    assert lines_of(LABELS)[0]["made_by"] != lines_of("plain.jsonl")[0]["made_by"]


def test_the_teacher_labels_where_there_are_labels_to_train_it(kdedge: Run, trained: Path) -> None:
    done = kdedge("pseudo-label", "r.yaml", "--per-class", "3", "-o", LABELS).succeeds()
    assert "12 images of 4 classes by teacher.\n" in done.out
    assert "using runs/tiny/01" in done.err
    assert write(kdedge, path="zeroshot.jsonl").code == 0
    assert lines_of(LABELS) != lines_of("zeroshot.jsonl")
    Path("turned.txt").write_text("school bus\nred fox\ndog\ncat\n")
    turned = ("--set", "teacher.run=runs/tiny/01", "--set", "classes.file=turned.txt")
    kdedge("pseudo-label", "r.yaml", "--per-class", "3", "-o", "turned.jsonl", *turned).succeeds()
    ours, theirs = (
        {(one["image"], one["class"]) for one in lines_of(path)[1:]}
        for path in ("turned.jsonl", LABELS)
    )
    assert ours == theirs
    assert lines_of("turned.jsonl")[0]["made_by"] != lines_of(LABELS)[0]["made_by"]
    without = ("--set", "data.labeled=null", "--set", "data.split=all")
    for key, expected in (
        ("teacher.weights=teacher.pt", "zeroshot"),  # its method learns from labels
        ("teacher={method: zeroshot, weights: teacher.pt}", "teacher"),
        ("teacher={file: r.yaml}", "zeroshot"),
    ):
        more = ("--per-class", "3", "-o", f"{len(key)}.jsonl", "--set", key, *without)
        assert f"by {expected}." in kdedge("pseudo-label", "r.yaml", *more).out


def test_a_teacher_that_cannot_teach_the_student_labels_all_the_same(
    kdedge: Run, write_clip: Callable[..., Path], tiny_sizes: dict[str, int]
) -> None:
    """It has no class vectors for the student, and takes larger images."""
    shutil.copy(write_clip({**tiny_sizes, "image_size": 24}, tag=3), "small.pt")
    given = ("--method", "teacher", "--set", "teacher={method: ridge, weights: teacher.pt}")
    write(kdedge, *given).fails(2, "ridge was trained on 2 of 4 classes, without 'red fox'")
    assert not any(Path("runs").glob("[!.]*"))
    given = (*given, "--set", "data.split=all", "--set", "student.weights=small.pt")
    kdedge("distill", "r.yaml", *given[2:]).fails(2, "takes images of 32 pixels")
    done = write(kdedge, *given).succeeds()
    assert "step of the student" not in done.err
    done = kdedge("pseudo-label", "r.yaml", "--per-class", "3", "-o", "alone.jsonl", *given[2:],
                  "--set", "student=null")  # fmt: skip
    assert done.code == 0, done.err
    assert "Teacher: using runs/tiny/01" in done.err
    assert Path("alone.jsonl").read_bytes() == Path(LABELS).read_bytes()


def test_the_next_command_trains_whatever_made_the_labels(kdedge: Run) -> None:
    lines = Path("r.yaml").read_text().splitlines()
    first, last = lines.index("teacher:"), lines.index("student:")
    kept = [*lines[:first], *lines[last:], "baseline: {method: vpt, settings: {prompt_depth: 2}}"]
    Path("r.yaml").write_text("\n".join([*kept, ""]))
    settings = "baseline.settings={prompt_depth_text: 2, prompt_depth_vision: 2}"
    done = write(kdedge, "--method", "ivlp", "--set", settings, *SHORT, "--set", "seed=3")
    assert done.code == 0, done.err
    assert "to resume" not in done.err
    following = done.out.splitlines()[-1]
    assert following == (
        "Next: kdedge train r.yaml --method coop --set seed=3 --set data.pseudo_labels=labels.jsonl"
    )
    record = baseline_record(kdedge, *shlex.split(following)[2:], *SHORT)
    assert (record["settings"]["n_ctx"], record["seed"]) == (4, 3)
    # Zero-shot CLIP, which no option has to name, has the recipe's baseline in its way no more
    done = write(kdedge, "--set", f"data.pseudo_labels={LABELS}", path="b: 2.jsonl").succeeds()
    assert done.out.endswith("""--set 'data.pseudo_labels="b: 2.jsonl"'\n"""), done.out


def test_settings_of_a_baseline_section_are_those_of_its_method_alone(kdedge: Run) -> None:
    with Path("r.yaml").open("a") as recipe:
        recipe.write("baseline: {method: coop, settings: {n_ctx: 3}}\n")
    write(kdedge, "--method", "coop", *SHORT).succeeds()
    assert json.loads(kdedge("show", "tiny/01", "--json").out)["settings"]["n_ctx"] == 3
    asked = ("--method", "vpt", "--set", "baseline.method=coop")
    write(kdedge, *asked, path="b.jsonl").fails(2, "vpt was asked for")


def test_where_the_pool_has_labels_it_is_said_how_many_are_right(kdedge: Run) -> None:
    pool = ("--set", "data.unlabeled={folder: labeled}")
    found = json.loads(write(kdedge, *pool, "--json").out)
    labels = lines_of(LABELS)[1:]
    right = sum(one["image"].startswith(f"{one['class']}/") for one in labels)
    assert found["accuracy_percent"] == pytest.approx(100 * right / len(labels))


def test_an_image_with_a_label_keeps_it(kdedge: Run) -> None:
    pool = ("--set", "data.unlabeled={folder: labeled}")
    shots = ("--set", "data.labeled.shots=6")  # all of both base classes
    assert write(kdedge, *pool).code == 0
    written = [one["image"] for one in lines_of(LABELS)[1:]]
    n_novel = sum(image.startswith(("red fox/", "school bus/")) for image in written)
    assert 0 < n_novel < 12
    optim = ("--set", "baseline.optim={epochs: 1, batch_size: 1, warmup_epochs: 0}")
    given = ("--set", f"data.pseudo_labels={LABELS}")
    record = baseline_record(kdedge, *COOP, *pool, *shots, *given, *optim)
    assert record["summary"]["training"]["steps"] == 12 + n_novel


def test_pseudo_labels_that_no_model_would_read_are_refused_and_next_names_what_reads_them(
    kdedge: Run,
) -> None:
    zero_shot = ("--set", "teacher.method=zeroshot", "--set", "teacher.settings={}")
    without = (*zero_shot, "--set", "data.labeled=null", "--set", "student.optim.epochs=1")
    done = write(kdedge, *without).succeeds()
    given = ("--set", f"data.pseudo_labels={LABELS}")
    kdedge("distill", "r.yaml", *without, *given).fails(2, "labeled_weight: 1.0")
    following = shlex.split(done.out.partition("Next: kdedge ")[2])
    assert "student.settings.labeled_weight=1.0" in following
    taught = kdedge(*following, "--json").succeeds()
    # A ridge on labels that zero-shot CLIP gave would only repeat these
    assert "labels_alone" not in json.loads(taught.out)["student"]["evaluation"]


def test_a_teacher_is_not_judged_by_labels_that_a_model_gave(kdedge: Run) -> None:
    assert write(kdedge, "--set", "data.split=all").code == 0
    given = ("--set", f"data.pseudo_labels={LABELS}", "--set", "data.split=all")
    done = kdedge("teach", "r.yaml", *given, "--set", "teacher.optim.epochs=1").succeeds()
    assert "mean over classes" not in done.err


def test_pseudo_labels_alone_are_enough_for_a_closed_form(kdedge: Run) -> None:
    assert write(kdedge).code == 0
    alone = ("--set", f"data.pseudo_labels={LABELS}", "--set", "data.labeled=null")
    record = baseline_record(kdedge, "train", "r.yaml", "--method", "ridge", *alone, *SHORT)
    assert "labeled_list" in record["hashes"]


def test_another_class_is_another_training_and_the_order_of_the_lines_is_none(kdedge: Run) -> None:
    assert write(kdedge).code == 0
    alone = ("--set", f"data.pseudo_labels={LABELS}", "--set", "data.labeled=null")
    record = baseline_record(kdedge, *COOP, *alone)
    assert record["summary"]["training"]["steps"] == 6
    specific = ("--set", "baseline.settings.class_specific=true")
    assert baseline_record(kdedge, *COOP, *alone, *specific)["settings"]["class_specific"]
    assert kdedge("eval", "tiny/02").code == 0
    assert kdedge("teach", "r.yaml", *alone).code == 0
    _, first, *others = Path(LABELS).read_text().splitlines(keepends=True)
    origin = Path(LABELS).read_text().splitlines(keepends=True)[0]
    Path(LABELS).write_text(origin + "".join([*others, first]))
    done = kdedge(*COOP, *alone, "--resume")
    assert "runs/tiny/01 is already finished" in done.err
    student = ("distill", "r.yaml", *alone, "--set", "student.settings.labeled_weight=1")
    student = (*student, "--set", "teacher={method: zeroshot, weights: teacher.pt}", "--resume")
    assert kdedge(*student).code == 0
    Path(LABELS).write_text(origin + first.replace("cat", "dog") + "".join(others))
    done = kdedge(*COOP, *alone, "--resume")
    assert "Starting a new run" in done.err
    assert "student to resume. Starting a new run" in kdedge(*student).err


# What users get wrong


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--per-class", "0"], 2, "0 is not in the range x>=1"),
        (["--per-class", "11"], 3, "There are 40 unlabeled images, but 11 for each of 4 classes"),
        (["--method", "zero"], 2, 'There is no method "zero"'),
        (["--method", "promptkd"], 2, "promptkd learns from a teacher"),
        (["--method", "ridge"], 2, "ridge was trained on 2 of 4 classes"),
        (["--set", "data.unlabeled=null"], 2, "no data.unlabeled, and they are to get"),
        (["-o", "nowhere/labels.jsonl"], 2, "nowhere for labels.jsonl does not exist"),
        (["-o", "r.yaml"], 2, "r.yaml exists, and nothing is overwritten"),
        (["--set", "classes=[cat]"], 2, "at least 2"),
    ],
)
def test_what_cannot_be_labeled_is_said_before_anything_is_written(
    kdedge: Run, arguments: list[str], code: int, message: str
) -> None:
    before = Path("r.yaml").read_bytes()
    write(kdedge, *arguments).fails(code, message)
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached
    assert not Path(LABELS).exists()
    assert Path("r.yaml").read_bytes() == before


def test_a_file_made_for_other_classes_or_images_is_refused(kdedge: Run, project: Path) -> None:
    assert write(kdedge).code == 0
    given = ("--set", f"data.pseudo_labels={LABELS}")
    other = ("--set", "classes=[dog, cat, red fox, school bus]")
    kdedge(*COOP, *given, *other).fails(3, f"{project / LABELS} was made for another class list")
    shutil.copy("pool/0_0.jpg", "pool/new.jpg")
    kdedge(*COOP, *given).fails(3, "was made for other images than the 41 of data.unlabeled")
    Path("pool/new.jpg").unlink()
    shutil.copy("pool/0_0.jpg", "pool/0_1.jpg")
    kdedge(*COOP, *given).fails(3, "was made for other images than the 40 of data.unlabeled")
    assert not list(Path("runs").rglob("provenance.json"))


def test_a_file_without_the_images_that_it_is_of_is_refused(kdedge: Run, project: Path) -> None:
    given = ("--set", f"data.pseudo_labels={LABELS}")
    kdedge(*COOP, *given).fails(3, f"there is no file {project / LABELS}")
    Path(LABELS).touch()
    kdedge(*COOP, *given, "--set", "data.unlabeled=null").fails(2, "pseudo_labels without unl")
    kdedge(*rounds_of("fpl"), *given).fails(2, "pseudo_label makes its own pseudo-labels")


# Methods that choose their own


def test_upl_learns_without_a_label_and_is_measured_alike_again(kdedge: Run) -> None:
    settings = "baseline.settings={n_runs: 2, n_ctx: 3, per_class: 4}"
    arguments = ("train", "r.yaml", "--method", "upl", "--set", settings, *SHORT)
    record = baseline_record(kdedge, *arguments, "--set", "data.labeled=null")
    (only,) = record["summary"]["rounds"]
    labels = lines_of("runs/tiny/01/rounds/01/pseudo_labels.jsonl")[1:]
    assert only["n_images"] == len(labels) == len({one["image"] for one in labels})
    assert max(Counter(one["class"] for one in labels).values()) <= 4
    assert only["n_classes"] == len({one["class"] for one in labels})
    measured = json.loads(kdedge("eval", "tiny/01", "--json").out)
    assert measured.items() >= record["evaluation"]["baseline"].items()
    assert "pseudo-labels" in kdedge("show", "tiny/01").out
    pytest.importorskip("onnx")
    done = kdedge("export", "tiny/01")  # the average of its runs as one head
    assert done.code == 0, done.err
    (file,) = json.loads(Path("runs/tiny/01/artifacts/01/artifact.json").read_text())["files"]
    assert file["parity"]["agreement_percent"] == 100


def test_a_class_that_no_image_is_predicted_as_is_named(kdedge: Run) -> None:
    picture = Path("pool/0_0.jpg").read_bytes()
    for file in Path("pool").glob("*.jpg"):
        file.write_bytes(picture)
    done = kdedge(
        "train", "r.yaml", "--method", "upl", "--set", "baseline.settings.n_ctx=3", *SHORT
    ).succeeds()
    assert "No unlabeled image is predicted as" in done.err
    (only,) = json.loads(kdedge("show", "tiny/01", "--json").out)["summary"]["rounds"]
    assert only["n_classes"] == 1
    assert "No unlabeled image is predicted as" in write(kdedge).err


def test_ifpl_labels_novel_classes_alone_in_every_round(kdedge: Run) -> None:
    record = baseline_record(kdedge, *rounds_of("ifpl"))
    # The pool's folder does not say how many are right
    counts = [(one["n_images"], one["accuracy_percent"]) for one in record["summary"]["rounds"]]
    assert counts == [(8, None)] * 3
    # 8 labeled images and 8 pseudo-labeled ones, 4 a step, 2 epochs a round
    assert record["summary"]["training"]["steps"] == 8 * 3
    for number in (1, 2, 3):
        origin, *labels = lines_of(f"runs/tiny/01/rounds/0{number}/pseudo_labels.jsonl")
        assert origin["method"] == ("zeroshot" if number == 1 else "pseudo_label")
        found = Counter(one["class"] for one in labels)
        assert found == {"red fox": 4, "school bus": 4}


def test_without_a_split_all_classes_get_pseudo_labels_in_fpls_one_round(kdedge: Run) -> None:
    record = baseline_record(kdedge, *rounds_of("fpl"), "--set", "data.split=all")
    (only,) = record["summary"]["rounds"]
    assert (only["n_images"], only["n_classes"]) == (16, 4)


def test_grip_takes_more_images_each_round_and_says_how_many_are_right(kdedge: Run) -> None:
    Path("all").mkdir()
    for name, label in (("cat", 0), ("dog", 1), ("red fox", 2), ("school bus", 3)):
        folder = Path("all", name)
        folder.mkdir()
        for file in Path("pool").glob(f"{label}_*.jpg"):
            shutil.copy(file, folder)
    pool = ("--set", "data.unlabeled={folder: all}")
    done = kdedge(*rounds_of("grip"), *pool).succeeds()
    record = json.loads(kdedge("show", "tiny/01", "--json").out)
    rounds = record["summary"]["rounds"]
    # floor(t * floor(40 / 3) / 4) images of each of 2 novel classes
    assert [one["n_images"] for one in rounds] == [2 * (13 * t // 4) for t in (1, 2, 3)]
    for number, one in enumerate(rounds, 1):
        labels = lines_of(f"runs/tiny/01/rounds/0{number}/pseudo_labels.jsonl")[1:]
        right = sum(label["image"].startswith(f"{label['class']}/") for label in labels)
        assert one["accuracy_percent"] == pytest.approx(100 * right / len(labels))
        said = f"{len(labels)} pseudo-labels, {one['accuracy_percent']:.2f} % of them correct."
        assert f"Round {number} of 3: {said}" in done.err


def test_labeled_images_get_no_pseudo_label(kdedge: Run) -> None:
    pool = ("--set", "data.unlabeled={folder: labeled}")
    few = "baseline.settings={variant: grip, rounds: 1, coop: {n_ctx: 3}}"
    arguments = ("train", "r.yaml", "--method", "pseudo_label", "--set", few, *SHORT, *pool)
    record = baseline_record(kdedge, *arguments)
    # 24 images, 8 of them labeled: 16 are left, 4 for each of 4 classes
    assert record["summary"]["rounds"][0]["n_images"] == 8
    assert record["summary"]["rounds"][0]["accuracy_percent"] is not None


def test_too_few_unlabeled_images_are_said_before_a_run_is_made(kdedge: Run) -> None:
    many = ("--set", "baseline.settings.per_class=21")
    kdedge(*rounds_of("fpl"), *many).fails(
        3,
        "There are 40 unlabeled images, but 21 for each of 2 classes need 42.",
        "set per_class to 20 or less",
    )
    kdedge(*rounds_of("fpl"), "--set", "baseline.settings.per_class=0").fails(2, "at least 1")
    same = ("--set", "data.unlabeled={folder: labeled}", "--set", "data.labeled={folder: labeled}")
    kdedge(*rounds_of("grip"), *same, "--set", "data.split=all").fails(
        3,
        "There are 0 unlabeled images, but 1 for each of 4 classes need 4.",
        "labeled ones are not counted",
    )
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached


def test_check_times_a_round_and_says_how_many_there_are(kdedge: Run) -> None:
    arguments = [word for word in rounds_of("grip") if word not in {"train", "--method"}]
    arguments = ["check", *(word for word in arguments if word != "pseudo_label")]
    done = kdedge(*arguments, "--set", "baseline.method=pseudo_label").succeeds()
    assert "3 rounds of about 2 epochs of" in done.out
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--set", "baseline={method: upl, settings: {n_ctx: 3, n_runs: 2}}"), "4"),
        (("--set", "baseline={method: coop, settings: {n_ctx: 3}}"), "4, labels of the first 2"),
        (
            ("--set", "data.split=all", "--set", "baseline={method: coop, settings: {n_ctx: 3}}"),
            "4",
        ),
    ],
)
def test_check_says_whose_labels_are_read(kdedge: Run, more: tuple[str, ...], says: str) -> None:
    done = kdedge("check", "r.yaml", *more).succeeds()
    (line,) = [line for line in done.out.splitlines() if line.startswith("baseline: classes")]
    assert line.partition("classes")[2].strip().removesuffix(" are used") == says


def test_rounds_that_were_interrupted_and_killed_go_on_to_the_same_weights(
    project: Path, start: Callable[..., Any]
) -> None:
    often = ("--set", "baseline.optim.epochs=4", "--set", "baseline.optim.checkpoint_every_s=0.001")
    arguments = (*rounds_of("grip", *often), "--resume")
    folder = project / "runs/tiny/01/rounds"
    for signum, number in ((signal.SIGINT, 2), (signal.SIGKILL, 3)):
        process = start(*arguments)
        begun = folder / f"0{number}/checkpoints"
        process.wait_until(lambda begun=begun: list(begun.glob("e02-*")))
        process.send(signum)
        assert process.wait() in {130, -9}, process.stderr
        assert not (folder / f"0{number + 1}").exists()
    resumed = start(*arguments)
    assert resumed.wait() == 0, resumed.stderr
    assert "runs/tiny/01: resuming where it stopped" in resumed.stderr
    assert "rounds/01 is already trained: nothing to do" in resumed.stderr
    whole = start(*arguments[:-1])
    assert whole.wait() == 0, whole.stderr
    for name in ("baseline.safetensors", "rounds/03/pseudo_labels.jsonl"):
        first, again = (Path(f"runs/tiny/0{n}/{name}") for n in (1, 2))
        assert first.read_bytes() == again.read_bytes()
    summaries = [json.loads(Path(f"runs/tiny/0{n}/provenance.json").read_text()) for n in (1, 2)]
    one, other = (record["summary"]["training"] for record in summaries)
    assert (one["steps"], one["epochs"]) == (other["steps"], other["epochs"])


def test_labeling_that_was_interrupted_goes_on_when_it_is_run_again(
    project: Path, start: Callable[..., Any]
) -> None:
    often = "baseline.optim={epochs: 4, batch_size: 2, checkpoint_every_s: 0.001}"
    learner = ("--method", "coop", "--set", "baseline.settings.n_ctx=3", "--set", often)
    arguments = ("pseudo-label", "r.yaml", "--per-class", "3", "-o", LABELS, *learner)
    process = start(*arguments)
    checkpoints = project / "runs/tiny/01/checkpoints"
    process.wait_until(lambda: len(list(checkpoints.glob("e02-*"))) > 0)
    process.send(signal.SIGINT)
    assert process.wait() == 130, process.stderr
    assert "Run the same command again: it resumes from there." in process.stderr
    assert "--resume" not in process.stderr
    assert not (project / LABELS).exists()
    again = start(*arguments)
    assert again.wait() == 0, again.stderr
    assert "runs/tiny/01: resuming where it stopped" in again.stderr
    assert len(lines_of(project / LABELS)) == 13
