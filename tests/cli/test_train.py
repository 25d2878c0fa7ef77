"""kdedge train: baselines on the student's backbone, and prompt methods as teachers."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import load_recipe
from kdedge.training.teacher import with_baseline

pytestmark = pytest.mark.usefixtures("project")

Run = Callable[..., Any]
SETTINGS = {
    "coop": "{n_ctx: 3}",
    "cocoop": "{n_ctx: 2}",
    "vpt": "{prompt_depth: 2}",
    "ivlp": "{prompt_depth_text: 2, prompt_depth_vision: 2}",
    "maple": "{prompt_depth: 2}",
    "promptsrc": "{}",
    "atprompt": "{prompt_depth_text: 2, prompt_depth_vision: 2, attributes: [shape]}",
}
LAFTER = {"lafter": "{n_ctx_vision: 2, n_text_steps: 5}"}
SHORT = "baseline.optim={epochs: 2, batch_size: 4, warmup_epochs: 0}"


def options(method: str, *more: str) -> list[str]:
    texts = (f"baseline.settings={(SETTINGS | LAFTER)[method]}", SHORT, *more)
    return ["--method", method, *(part for text in texts for part in ("--set", text))]


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_is_trained_on_the_students_backbone_and_measured_alike_again(
    kdedge: Run, method: str
) -> None:
    done = kdedge("train", "r.yaml", *options(method))
    assert (done.code, done.err) == (0, "")
    following = "show runs/tiny/01" if method == "cocoop" else "export runs/tiny/01 --cpu"
    assert done.out.endswith(
        "Wrote runs/tiny/01 (baseline.safetensors, class_vectors.safetensors)\n"
        f"Next: kdedge {following}\n"
    )
    row = rf"^{method} \(baseline\) +([\d.]+ .*)$"
    figures = re.search(row, done.out, re.MULTILINE)
    assert re.search(r"^zero-shot CLIP \(student's\) +\d", done.out, re.MULTILINE)
    measured = kdedge("eval", "tiny/01")
    assert measured.err == ""
    assert figures[1] == re.search(row, measured.out, re.MULTILINE)[1]
    assert json.loads(kdedge("eval", "--json").out)["n_images"] == 20


def test_the_run_says_what_a_table_needs(kdedge: Run) -> None:
    record = json.loads(kdedge("train", "r.yaml", *options("coop"), "--json").out)["baseline"]
    assert (record["role"], record["method"], record["seed"]) == ("baseline", "coop", 1)
    assert record["settings"]["n_ctx"] == 3
    assert record["summary"]["training"]["steps"] == 4
    assert set(record["evaluation"]) == {"baseline", "zeroshot"}
    assert record["evaluation"]["baseline"]["split"] == "base-to-novel"
    assert record == json.loads(kdedge("show", "tiny/01", "--json").out)
    student = json.loads(kdedge("distill", "r.yaml", "--json").out)["student"]
    for key in ("backbone", "class_list"):
        assert record["hashes"][key] == student["hashes"][key]
    assert record["evaluation"]["zeroshot"] == student["evaluation"]["zeroshot"]


def test_the_resolved_recipe_of_a_run_gives_the_same_run_again(kdedge: Run) -> None:
    assert kdedge("train", "r.yaml", *options("lafter")).code == 0
    assert kdedge("train", "runs/tiny/01/recipe.yaml").code == 0
    first, second = (Path(f"runs/tiny/0{n}/baseline.safetensors") for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    done = kdedge("train", "runs/tiny/01/recipe.yaml", "--resume")
    assert done.err.endswith("runs/tiny/02 is already finished: there is nothing to resume.\n")
    assert "\nUsed runs/tiny/02 (baseline.safetensors" in done.out


def test_an_interrupted_baseline_goes_on_to_the_same_weights(
    project: Path, start: Callable[..., Any]
) -> None:
    arguments = ["train", "r.yaml", *options("lafter", "baseline.optim.epochs=8")]
    arguments += ["--set", "baseline.optim.checkpoint_every_s=0.001"]
    process = start(*arguments)
    process.wait_until(lambda: list(project.glob("runs/tiny/01/checkpoints/e0*")))
    process.send(signal.SIGINT)
    assert process.wait() == 130, process.stderr
    assert "Run the same command with --resume" in process.stderr
    resumed = start(*arguments, "--resume")
    assert resumed.wait() == 0, resumed.stderr
    assert "runs/tiny/01: resuming where it stopped" in resumed.stderr
    whole = start(*arguments)
    assert whole.wait() == 0
    first, second = (Path(f"runs/tiny/0{n}/baseline.safetensors") for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()


# Settings


def test_the_teachers_method_keeps_the_teachers_settings_and_optimization() -> None:
    overrides = {"teacher.optim": {"lr": 0.03}, "baseline.settings.prompt_depth_vision": 1}
    baseline = with_baseline(load_recipe("r.yaml", overrides), "promptsrc").recipe.baseline
    assert baseline.settings == {
        "prompt_depth_text": 2,
        "prompt_depth_vision": 1,
        "n_anchor_templates": 4,
    }
    assert (baseline.optim.lr, baseline.optim.epochs, baseline.optim.batch_size) == (0.03, 2, 4)


def test_another_method_is_optimized_as_published_and_by_the_recipe_for_the_rest() -> None:
    overrides = {"optim.flip": False, "teacher.optim": {"lr": 0.03}}
    baseline = with_baseline(load_recipe("r.yaml", overrides), "coop").recipe.baseline
    assert baseline.settings == {}
    optim = baseline.optim
    assert (optim.lr, optim.epochs, optim.batch_size) == (0.002, 200, 32)
    assert (optim.warmup_epochs, optim.flip, optim.momentum) == (0, False, 0.9)
    own = with_baseline(load_recipe("r.yaml", {"baseline.optim.epochs": 7}), "coop").recipe.baseline
    assert (own.optim.lr, own.optim.epochs) == (0.002, 7)


def test_the_recipe_may_name_its_baseline(kdedge: Run) -> None:
    section = f"baseline: {{method: vpt, settings: {SETTINGS['vpt']}, optim: {{epochs: 1}}}}\n"
    with Path("r.yaml").open("a") as recipe:
        recipe.write(section)
    checked = kdedge("check", "r.yaml")
    assert re.search(r"^baseline: method +vpt, 1,024 parameters, 1 epochs of 2", checked.out, re.M)
    unnamed = kdedge("check", "r.yaml", "--set", "baseline.method=null")
    assert unnamed.code == 0
    assert "\nbaseline:" not in unnamed.out
    assert kdedge("train", "r.yaml").code == 0
    assert load_recipe("runs/tiny/01/recipe.yaml").recipe.baseline.method == "vpt"
    maple = ("train", "r.yaml", "--method", "maple", "--epochs", "1", "--set")
    done = kdedge(*maple, "baseline.method=vpt")
    done.fails(2, "--set baseline.method: baseline.method is vpt, but maple was asked for.")
    done = kdedge(*maple, "baseline.settings.prompt_depth=1")
    assert "r.yaml:16: baseline.method is vpt: maple does not use that section." in done.err
    baseline = load_recipe("runs/tiny/02/recipe.yaml").recipe.baseline
    assert (baseline.settings, baseline.optim.epochs) == ({"prompt_depth": 1}, 1)


def test_zeroshot_has_nothing_to_train_and_is_measured_without_labeled_images(kdedge: Run) -> None:
    templates = "baseline.settings.templates=ensemble7"
    done = kdedge(
        *("train", "r.yaml", "--method", "zeroshot", "--set", templates),
        *("--set", "data.labeled=null", "--json"),
    )
    assert done.code == 0, done.err
    record = json.loads(done.out)["baseline"]
    assert record["summary"] == {}
    assert record["evaluation"]["baseline"] != record["evaluation"]["zeroshot"]


# What users get wrong


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--method", "copo"], 2, 'There is no method "copo".\n  Did you mean coop?'),
        ([], 2, "The recipe tiny has no baseline.\n  Choose --method or baseline.method"),
        (["--method", "promptkd"], 2, "promptkd learns from a teacher"),
        (["--method", "coop", "--set", "data.labeled=null"], 2, "no data.labeled, and a baseline"),
        (["--method", "coop", "--set", "student=null"], 2, "has no section student"),
        (
            ["--method", "coop", "--set", "baseline.settings.n_ctx=90"],
            2,
            'n_ctx is 90, but with the class name "red fox" this CLIP\'s 77 positions have'
            " room for only 72 context tokens.\n  Set n_ctx to 72 or less.",
        ),
        (
            ["--method", "coop", "--set", "baseline.settings.class_specific=true"],
            2,
            "2 of 4 classes are not trained",
        ),
        (["--method", "coop", "--set", "optim.selection=validation"], 2, "no data.validation"),
    ],
)
def test_what_cannot_be_trained_is_said_before_a_run_is_made(
    kdedge: Run, arguments: list[str], code: int, message: str
) -> None:
    kdedge("train", "r.yaml", *arguments).fails(code, message)
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached


def test_a_class_without_labels_is_no_wrong_answer(kdedge: Run) -> None:
    """Without labels of a class, training is as if it were not in the class list."""
    shutil.rmtree("labeled/dog")
    plain = options("coop", "data.split=all", "data.test=null")
    assert kdedge("train", "r.yaml", *plain).code == 0
    names = ("--set", "classes=[cat, red fox, school bus]", "--set", "name=three")
    assert kdedge("train", "r.yaml", *plain, *names).code == 0
    found, expected = (
        load_file(f"runs/{name}/01/baseline.safetensors") for name in ("tiny", "three")
    )
    torch.testing.assert_close(found, expected)
    record = json.loads(Path("runs/tiny/01/provenance.json").read_text())
    assert "train_classes" in record["hashes"]


# Class lists that changed


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_a_baseline_is_measured_on_names_in_another_order_and_on_new_ones(
    kdedge: Run, method: str
) -> None:
    assert kdedge("train", "r.yaml", *options(method)).code == 0
    before = json.loads(kdedge("eval", "--json").out)
    Path("classes.txt").write_text("school bus\nred fox\ncat\ndog\n")
    after = json.loads(kdedge("eval", "--json").out)
    assert after["per_class"] == before["per_class"]
    Path("classes.txt").write_text("cat\ndog\nred fox\nlorry\n")
    Path("test/school bus").rename("test/lorry")
    assert list(json.loads(kdedge("eval", "--json").out)["per_class"])[3] == "lorry"


def test_class_specific_contexts_go_by_name_and_know_no_other(kdedge: Run) -> None:
    specific = ("data.split=all", "baseline.settings.class_specific=true")
    assert kdedge("train", "r.yaml", *options("coop", *specific)).code == 0
    # What a run is measured on does not change which classes it has trained
    halves = kdedge("eval", "--set", "data.split=base-to-novel", "--json")
    assert json.loads(halves.out)["novel"] is not None
    before = json.loads(kdedge("eval", "--json").out)
    Path("classes.txt").write_text("school bus\nred fox\ncat\ndog\n")
    assert json.loads(kdedge("eval", "--json").out)["per_class"] == before["per_class"]
    Path("classes.txt").write_text("cat\ndog\nred fox\nlorry\n")
    Path("test/school bus").rename("test/lorry")
    done = kdedge("eval")
    done.fails(3, "1 class names have no tensors in runs/tiny/01/baseline", "first 'lorry'")


# Prompt methods as teachers


def test_a_prompt_method_teaches_the_student(kdedge: Run) -> None:
    teacher = ("--set", "teacher.method=ivlp", "--set", f"teacher.settings={SETTINGS['ivlp']}")
    taught = kdedge("teach", "r.yaml", *teacher, "--json")
    assert taught.code == 0, taught.err
    accuracy = json.loads(taught.out)["teacher"]["evaluation"]["teacher"]
    assert json.loads(kdedge("eval", "tiny/01", "--json").out) == {
        "run": "runs/tiny/01",
        **accuracy,
    }
    distilled = kdedge("distill", "r.yaml", *teacher)
    assert (
        "Teacher 1/2: using runs/tiny/01, trained with the same settings and data: "
        in distilled.err
    )
    theirs, ours = (
        load_class_vectors(Path(f"runs/tiny/0{n}/class_vectors.safetensors")) for n in (1, 2)
    )
    assert (theirs.vectors_hash, theirs.vectors.shape) == (ours.vectors_hash, (4, 40))


def test_another_teacher_says_what_changed(kdedge: Run) -> None:
    assert kdedge("teach", "r.yaml").code == 0
    names = Path("classes.txt").read_text().split("\n")[:-1]
    Path("classes.txt").write_text("\n".join(reversed(names)))
    done = kdedge("distill", "r.yaml")
    said = "training another one than runs/tiny/01, which had different class names, or another"
    assert f"Teacher 1/2: {said}" in done.err


@pytest.mark.parametrize(
    ("command", "own"),
    [
        (["teach"], ["teacher.optim.epochs=4"]),
        (["check"], ["teacher.optim.epochs=4", "student.optim.epochs=3"]),
        (["distill"], ["teacher.optim.epochs=4", "student.optim.epochs=3"]),
        (["distill", "--set", "teacher.run=runs/tiny/01"], ["student.optim.epochs=3"]),
        (["train", "--method", "coop"], ["baseline.optim.epochs=200"]),  # as it was published
    ],
)
def test_an_override_that_no_model_follows_is_named(
    kdedge: Run, command: list[str], own: list[str]
) -> None:
    Path("runs/tiny/01").mkdir(parents=True)
    given = [*own, "optim.epochs=2", "optim.selection=validation"]  # so that nothing is trained
    done = kdedge(*command[:1], "r.yaml", *command[1:], *(f"--set={text}" for text in given))
    told = f"warning: optim.epochs=2 has no effect, overridden by {' and '.join(own)}.\n"
    instead = " and ".join(f"{text.partition('=')[0]}=2" for text in own)
    done.fails(2, told + f"  Set that instead: {instead}\n")
    assert done.err.count("has no effect") == 1


def test_an_override_that_one_model_follows_is_not_named(kdedge: Run) -> None:
    given = ("student.optim.epochs=3", "optim.epochs=2", "optim.selection=validation")
    done = kdedge("distill", "r.yaml", *(f"--set={text}" for text in given))
    done.fails(2, "no data.validation")
    assert "has no effect" not in done.err


def test_a_warm_up_that_takes_all_epochs_is_said(kdedge: Run) -> None:
    optim = "{epochs: 1, batch_size: 4, warmup_epochs: 1}"
    done = kdedge("train", "r.yaml", *options("vpt", f"baseline.optim={optim}"))
    assert done.code == 0, done.err
    assert "warning: The baseline's warm-up covers all of its epochs (1)," in done.err


def draw_tests(draw_image: Any, n_images: int, *, label: Callable[[int], int]) -> None:
    for index, name in enumerate(("cat", "dog", "red fox", "school bus")):
        for number in range(n_images):
            draw_image(Path(f"test/{name}/{number}.jpg"), label=label(index), number=number)


def test_a_model_no_better_than_guessing_is_warned_of(kdedge: Run, draw_image: Any) -> None:
    draw_tests(draw_image, 25, label=lambda index: (index + 1) % 4)
    done = kdedge("train", "r.yaml", "--method", "zeroshot")
    assert done.code == 0
    assert re.search(
        r"warning: The baseline is right on [\d.]+ % of 100 test images, which is no better than"
        r" guessing among 4 classes\.\n  Check",
        done.err,
    )


def test_a_model_that_always_answers_the_same_is_warned_of(kdedge: Run, draw_image: Any) -> None:
    shutil.rmtree("test")
    draw_tests(draw_image, 1, label=lambda index: 0)  # one image
    done = kdedge("train", "r.yaml", "--method", "zeroshot")
    assert done.code == 0
    assert "warning: The baseline predicts '" in done.err


# `--epochs`, `--batch-size`, `--lr` and `--seed`: short for `--set` of a model's keys


def provenance(run: str) -> Any:
    return json.loads(Path("runs", run, "provenance.json").read_text())


def test_distill_sets_the_students(kdedge: Run, trained: Path) -> None:
    done = kdedge("distill", "r.yaml", "--epochs", "1", "--lr", "0.5", "--batch-size", "20")
    assert done.code == 0, done.err
    assert "runs/tiny/01" in done.err  # the teacher is the one from before
    training = provenance("tiny/03")["summary"]["training"]
    assert (training["epochs"], training["steps"]) == (1, 2)
    student = load_recipe("runs/tiny/03/recipe.yaml").recipe.student
    assert student.optim.lr == 0.5


def test_teach_sets_the_teachers_and_passes_them_on(kdedge: Run, project: Path) -> None:
    (project / "r.yaml").write_text(
        (project / "r.yaml").read_text().replace("student:\n", "  optim: {epochs: 9}\nstudent:\n")
    )
    done = kdedge("teach", "r.yaml", "--epochs", "1", "--seed", "3")
    assert done.code == 0, done.err
    made = provenance("tiny/01")
    assert (made["summary"]["training"]["epochs"], made["seed"]) == (1, 3)
    following = "Next: kdedge distill r.yaml --set teacher.optim.epochs=1 --set seed=3\n"
    assert done.out.endswith(following)


def test_train_sets_the_baselines_whatever_its_method_declares(kdedge: Run) -> None:
    done = kdedge("train", "r.yaml", "--method", "coop", "--epochs", "1", "--batch-size", "8")
    assert done.code == 0, done.err
    training = provenance("tiny/01")["summary"]["training"]
    assert (training["epochs"], training["steps"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "0"), "student.optim.epochs must be at least 1, got 0."),
        (("--lr", "nan"), "student.optim.lr must be a finite number, got nan."),
        (
            ("--temperature", "2"),
            "Set a key of the recipe with --set KEY=VALUE; `kdedge schema` lists the keys.",
        ),
        (("--epoch", "2"), "Did you mean"),
        (("--precison", "int8"), "No such option '--precison'.\n"),
    ],
)
def test_what_cannot_be_set_is_told(kdedge: Run, options: tuple[str, ...], message: str) -> None:
    done = kdedge("distill", "r.yaml", *options)
    done.fails(2, message)
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached
