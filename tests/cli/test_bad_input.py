"""What users get wrong and disks damage: each ends with an exit code and a message of its own."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kdedge.config.load import load_recipe, shipped_recipes
from kdedge.setup.method import choose_method
from kdedge.training.loop.checkpoint import load_newest

pytestmark = pytest.mark.usefixtures("project")

Run = Callable[..., Any]


def runs() -> list[str]:
    return sorted(str(path) for path in Path("runs").glob("*/[0-9]*"))


def keep(folder: str, n_images: int) -> None:
    for path in sorted(Path(folder).rglob("*.jpg"))[n_images:]:
        path.unlink()


def cut(path: Path | str, n_bytes: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:n_bytes])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)


def replace(path: str, other: str) -> None:
    """Puts another file in a linked one's place."""
    Path(path).unlink()
    shutil.copy(other, path)


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


# What no training can work with


def halve(path: str) -> None:
    """Puts the first half of a linked file in its place."""
    whole = Path(path).read_bytes()
    Path(path).unlink()
    Path(path).write_bytes(whole[: len(whole) // 2])


@dataclass(frozen=True)
class Case:
    """Something that is wrong with a project or with what a user asks for.

    Attributes:
        name: what is wrong, in words.
        code: the exit code.
        says: parts of the message.
        break_it: makes the files wrong.
        overrides: make the recipe wrong.
    """

    name: str
    code: int
    says: Sequence[str]
    break_it: Callable[[], object] = lambda: None
    overrides: Sequence[str] = ()


def cut_two_images_of_the_pool() -> None:
    for path in sorted(Path("pool").iterdir())[:2]:
        cut(path, 100)


LONG = "水母" * 40


def call_the_red_fox_by_a_long_name() -> None:
    Path("classes.txt").write_text(f"cat\ndog\n{LONG}\nschool bus\n")
    Path("labeled/red fox").rename(f"labeled/{LONG}")
    Path("test/red fox").rename(f"test/{LONG}")


REFUSED = [
    Case(
        name="no image",
        break_it=lambda: keep("pool", 0),
        code=3,
        says=["pool has no image files; found nothing at"],
    ),
    Case(
        name="one image",
        break_it=lambda: keep("pool", 1),
        code=3,
        says=["at least 2 unlabeled images in a batch"],
    ),
    Case(
        name="no labeled image",
        break_it=lambda: keep("labeled", 0),
        code=3,
        says=["labeled has no image files"],
    ),
    Case(
        name="one labeled image",
        break_it=lambda: keep("labeled", 1),
        code=3,
        says=["data.labeled has images of 1 of the 2 base classes, and a teacher"],
    ),
    Case(
        name="unreadable images",
        break_it=cut_two_images_of_the_pool,
        code=3,
        says=[
            "data.unlabeled: 2 of 40 images are unreadable, and the limit is 1: 1% of 40",
            "\n  0_0.jpg: ",
            "raise data.max_bad_images",
        ],
    ),
    Case(
        name="no label of a readable image",
        break_it=lambda: Path("t.csv").write_text("path,label\nr.yaml,cat\npool/0_0.jpg,\n"),
        overrides=["data.test={list: t.csv}"],
        code=3,
        says=["data.test has no readable image with a label: 2 images, 1 of them unreadable."],
    ),
    Case(
        name="a folder of no class",
        break_it=lambda: Path("test/dog").rename("test/dgo"),
        code=3,
        says=['Missing: "dog". Unknown: "dgo" (nearest: "dog").'],
    ),
    Case(
        name="a class twice",
        break_it=lambda: Path("classes.txt").write_text("cat\ndog\nred fox\ndog\n"),
        code=3,
        says=['classes.txt: "dog" (line 2) and "dog" (line 4) are one'],
    ),
    Case(
        name="a class name longer than the context",
        break_it=call_the_red_fox_by_a_long_name,
        code=3,
        says=["needs 247 tokens, but this CLIP has only 77", f"a photo of a {LONG}.", "Shorten"],
    ),
    Case(
        name="validation on test images",
        overrides=["data.validation={folder: test}", "student.optim.selection=validation"],
        code=2,
        says=["data.validation and data.test share 20 images", "use other images"],
    ),
    Case(
        name="a wrong setting",
        break_it=lambda: edit("r.yaml", "{prompt_depth: 2}", "{promt_depth: 2}"),
        code=2,
        says=[
            "r.yaml:13: student.settings.promt_depth is not a known key.\n  Did you mean prompt_de"
        ],
    ),
    Case(
        name="an unknown method",
        break_it=lambda: edit("r.yaml", "settings: {prompt_depth: 2}", "method: promtkd"),
        code=2,
        says=['r.yaml:13: There is no method "promtkd".\n  Did you mean promptkd?'],
    ),
    Case(
        name="a wrong key",
        break_it=lambda: edit("r.yaml", "optim:", "opitm:"),
        code=2,
        says=["r.yaml:14: opitm is not a known key.\n  Did you mean optim?"],
    ),
    Case(
        name="a wrong value",
        break_it=lambda: edit("r.yaml", "epochs: 2", "epochs: two"),
        code=2,
        says=["r.yaml:14: optim.epochs must be a whole number, got"],
    ),
    Case(
        name="all sizes at once",
        break_it=lambda: edit("r.yaml", "_text: 2, prompt_depth_vision: 2", "_vision: 5"),
        overrides=["student.settings.prompt_depth=6"],
        code=2,
        says=[
            "r.yaml:10: teacher.settings.prompt_depth_text is 9, but the text encoder of teacher"
            " has 3 layers.\n  Set it to 3 or less.",
            "r.yaml:10: teacher.settings.prompt_depth_vision is 5, but the image encoder",
            "--set student.settings.prompt_depth: student.settings.prompt_depth is 6, but the image"
            " encoder of student has 3 layers.",
        ],
    ),
    Case(
        name="more merged tokens than half of each block's",
        overrides=["student.settings={prompt_depth: 2, merge_tokens: 6}"],
        code=2,
        says=["16 patch tokens and 3 blocks: a block merges at most half", "to 5 or less."],
    ),
    Case(
        name="the same in fewer blocks",
        overrides=["student.settings={prompt_depth: 2, depth: 2, merge_tokens: 9}"],
        code=2,
        says=["16 patch tokens and 2 blocks", "to 8 or less"],
    ),
    Case(
        name="more blocks than there are",
        overrides=["student.settings={prompt_depth: 2, depth: 4, merge_tokens: 4}"],
        code=2,
        says=["student.settings.depth is 4, but the image encoder of student has 3 layers."],
    ),
    Case(
        name="a batch of one",
        overrides=["student.optim.batch_size=1"],
        code=3,
        says=["raise optim.batch_size"],
    ),
    Case(
        name="no such weights",
        overrides=["student.weights=gone.pt"],
        code=3,
        says=["--set student.weights cannot be read: there is no file"],
    ),
    Case(
        name="weights that are a text",
        overrides=["student.weights=classes.txt"],
        code=2,
        says=["got only the weights classes.txt"],
    ),
    Case(
        name="weights that are cut off",
        break_it=lambda: halve("student.pt"),
        code=3,
        says=["student.pt begins like a torch file but has no end"],
    ),
    Case(
        name="no teacher",
        overrides=["teacher=null"],
        code=2,
        says=["has no section teacher"],
    ),
    Case(
        name="no pool",
        overrides=["data.unlabeled=null"],
        code=2,
        says=["The recipe has no data.unlabeled"],
    ),
    Case(
        name="no labels",
        overrides=["data.labeled=null"],
        code=2,
        says=["The recipe has no data.labeled"],
    ),
    Case(
        name="no such run",
        overrides=["teacher.run=pool"],
        code=2,
        says=["pool is neither a run folder nor the"],
    ),
    Case(
        name="a template without a name",
        overrides=["classes.template=a photo"],
        code=2,
        says=["must hold {} once"],
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_check_refuses_distill_refuses_alike_before_a_teacher_is_trained(
    kdedge: Run, case: Case
) -> None:
    case.break_it()
    options = [f"--set={override}" for override in case.overrides]
    for command in ("check", "distill"):
        kdedge(command, "r.yaml", *options).fails(case.code, *case.says)
    assert runs() == []


def test_a_backbone_with_values_that_are_not_finite_is_refused(kdedge: Run) -> None:
    state = torch.load("student.pt", weights_only=True)
    state["visual.proj"][0, 0] = float("nan")
    torch.save(state, "poisoned.pt")
    done = kdedge("distill", "r.yaml", "--set", "student.weights=poisoned.pt")
    done.fails(3, "visual.proj holds values that are not finite")
    assert runs() == []


# Images


def test_few_unreadable_images_are_skipped_and_listed(kdedge: Run) -> None:
    cut("pool/0_0.jpg", 100)
    done = kdedge("distill", "r.yaml", "--set", "data.max_bad_images=5%").succeeds()
    start = "warning: 1 of 40 images of data.unlabeled cannot be read and are skipped. The first is"
    assert f"{start} 0_0.jpg: " in done.err
    heading, line = Path("runs/tiny/02/skipped.csv").read_text().splitlines()
    assert heading == "source,key,reason"
    assert line.split(",")[:2] == ["unlabeled", "0_0.jpg"]
    assert Path("runs/tiny/01/skipped.csv").read_text() == "source,key,reason\n"


# init

IMAGES_AND_CLASSES = ("--images", "pool", "--classes", "classes.txt")
FILES = (*IMAGES_AND_CLASSES, "--labeled", "labeled")
INIT = ("init", "line3", *FILES)


def cut_every_image_of_the_pool() -> None:
    for path in Path("pool").iterdir():
        cut(path, 50)


def put_a_folder_in_place_of_the_class_list() -> None:
    Path("classes.txt").unlink()
    Path("classes.txt").mkdir()


def leave_labels_of_the_school_bus_alone() -> None:
    for name in ("cat", "dog", "red fox"):
        shutil.rmtree(f"labeled/{name}")


def name_the_labeled_images_as_test_images() -> None:
    shutil.rmtree("test")
    Path("test").symlink_to("labeled")


CANNOT_WORK = [
    Case(
        name="one image",
        break_it=lambda: keep("pool", 1),
        code=3,
        says=["pool has 1 image, and two or more are needed."],
    ),
    Case(
        name="no readable image",
        break_it=cut_every_image_of_the_pool,
        code=3,
        says=["pool: none of 40 images can be read.\n  0_0.jpg: "],
    ),
    Case(
        name="one class",
        break_it=lambda: Path("classes.txt").write_text("cat\n"),
        code=3,
        says=["classes.txt has 1 class name,"],
    ),
    Case(
        name="a folder as the class list",
        break_it=put_a_folder_in_place_of_the_class_list,
        code=3,
        says=[
            "classes.txt cannot be read: is a directory.",
            "Name a text file with one class name per line",
        ],
    ),
    Case(
        name="a class twice",
        break_it=lambda: Path("classes.txt").write_text("Cat\ndog\ncat \n"),
        code=3,
        says=[
            '"Cat" (line 1) and "cat" (line 3) are one class name.',
            "Remove or rename one.",
        ],
    ),
    Case(
        name="a folder of no class",
        break_it=lambda: Path("labeled/dog").rename("labeled/dgo"),
        code=3,
        says=['Unknown: "dgo" (nearest: "dog")', "Folder names must equal class names"],
    ),
    Case(
        name="labels of one class",
        break_it=leave_labels_of_the_school_bus_alone,
        code=3,
        says=["labeled has images of 1 class, and two or more are needed."],
    ),
    Case(
        name="one folder for training and test",
        break_it=name_the_labeled_images_as_test_images,
        code=2,
        says=["test is named for training and for test images:", "Move a part of each class"],
    ),
]


@pytest.mark.parametrize("case", CANNOT_WORK, ids=lambda case: case.name)
def test_init_writes_nothing_that_cannot_work(kdedge: Run, case: Case) -> None:
    case.break_it()
    kdedge(*INIT, "--test", "test").fails(case.code, *case.says)
    assert not Path("line3.yaml").exists()


def test_init_in_a_folder_that_may_not_be_written_is_no_bug(
    kdedge: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is gone, which not even root may write to."""
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    Path("../gone").rmdir()
    done = kdedge(
        "init",
        "line3",
        f"--images={project / 'pool'}",
        f"--classes={project / 'classes.txt'}",
        f"--labeled={project / 'labeled'}",
    )
    done.fails(7, "line3.yaml could not be written: no such file")
    monkeypatch.chdir(project)


@pytest.fixture
def labels_but_for_one_class(project: Path) -> None:
    """A project in which init has something to say about each folder."""
    shutil.rmtree("labeled/red fox")
    Path("pool/notes.txt").touch()
    shutil.copy("pool/0_0.jpg", "pool/0_0.png")  # as a mask may be called
    Path("labeled/cat").rename("labeled/CAT")


TINY_CLIPS = ("--teacher", "teacher.pt", "--student", "student.pt")


@pytest.mark.usefixtures("labels_but_for_one_class")
def test_init_says_what_it_found(kdedge: Run) -> None:
    done = kdedge(*INIT, *TINY_CLIPS).succeeds()
    assert done.out.splitlines()[:8] == [
        "classes  4 in classes.txt",
        "images   41, of 40x40",
        "         1 of 41 are copies of others",
        "         1 image has the name of another one, such as 0_0.png: masks?",
        "         They count as images; move them out of the folder.",
        "         skipped: 1 .txt",
        "labeled  18, of 40x40",
        "         6 images per class, 3 classes",
    ]
    assert 'no images of "red fox"' in done.out
    assert 'promptsrc teaches, as "red fox" has no labels' in done.out


@pytest.mark.usefixtures("labels_but_for_one_class")
def test_the_recipe_of_init_fits_the_images_and_the_models_and_passes_the_check(
    kdedge: Run,
) -> None:
    kdedge(*INIT, *TINY_CLIPS).succeeds()
    text = Path("line3.yaml").read_text()
    assert "method: promptsrc" in text  # one class has no labels
    assert "prompt_depth_vision: 4" in text  # the teacher has four image layers
    assert "prompt_depth: 3" in text  # for tune: prompts
    assert len(text.splitlines()) < 40
    kdedge("check", "line3.yaml", "--set=teacher.settings.n_anchor_templates=2").succeeds()


def test_init_removes_a_recipe_whose_weights_are_not_there(kdedge: Run) -> None:
    kdedge(*INIT, "--student", "ViT-B-16:gone.pt").fails(3, "there is no file")
    kdedge(*INIT, "--student", "ViT-B-16:teacher.pt").fails(
        3, "ViT-B-16: the file does not fit the model", "Name the model that the weights"
    )
    kdedge(*INIT, "--student", "ViT-B-61:openai").fails(2, "ViT-B-61", "ViT-B-16")
    assert not Path("line3.yaml").exists()


def test_init_refuses_a_teacher_without_layers_that_take_prompts(kdedge: Run) -> None:
    shutil.rmtree("labeled/dog")  # with labels of all classes, no prompts are trained
    kdedge(*INIT, "--teacher", "RN50:openai").fails(2, "no layers that take them")
    assert not Path("line3.yaml").exists()


@pytest.mark.parametrize(
    "teacher", ["efficientnet-lite2", "timm/resnet18.a1_in1k:pretrained", "MobileCLIP-S1:gone"]
)
def test_init_refuses_an_image_encoder_alone_as_teacher_where_labels_do_not_teach_all_classes(
    kdedge: Run, teacher: str
) -> None:
    shutil.rmtree("labeled/dog")
    said = (f"{teacher} is an image encoder alone", "a teacher that knows classes by their")
    kdedge(*INIT, "--teacher", teacher).fails(2, *said, '"dog" has no labels.')
    kdedge("init", "line3", *IMAGES_AND_CLASSES, "--teacher", teacher).fails(2, *said)
    assert not Path("line3.yaml").exists()


def test_labels_of_every_class_make_a_short_recipe_without_epochs(kdedge: Run) -> None:
    """Written as the shipped recipe is, and with every key."""
    Path("pool").rename("cams")
    names = ("--images", "cams", "--classes", "classes.txt")
    given = (*names, "--labeled", "labeled", "--test", "test")
    done = kdedge("init", "own-images", *given).succeeds()
    assert "weights  ViT-L-14:openai and ViT-B-16:openai: kdedge check fetches them." in done.out
    assert "--student efficientnet-lite0" in done.out
    shipped = shipped_recipes()["own-images"].read_text()
    assert Path("own-images.yaml").read_text() == shipped
    assert len(shipped.splitlines()) <= 30
    assert kdedge("init", "long", "--all-keys", *given).code == 0
    short, long = (load_recipe(name).recipe for name in ("own-images.yaml", "long.yaml"))
    assert long.model_copy(update={"name": short.name, "optim": short.optim}) == short


def test_init_writes_a_student_by_size_or_one_that_is_named(kdedge: Run) -> None:
    assert " MobileCLIP2-S0:dfndr2b: kdedge check" in kdedge(*INIT, "--size", "nano").succeeds().out
    text = Path("line3.yaml").read_text()
    assert "  backbone: MobileCLIP2-S0\n" in text
    assert "method: ridge" in text
    both = ("--size", "nano", "--student", "student.pt")
    kdedge("init", "other", *FILES, *both).fails(2, "Give only one of them.")


@pytest.mark.parametrize(
    ("scale", "text_loss_weight", "image_loss_weight", "lr"),
    [
        pytest.param(100.0, 25.0, 10.0, 0.005, id="CLIP's own scale"),
        pytest.param(15.0, 3.8, 1.5, 0.033, id="a smaller scale"),
    ],
)
def test_init_follows_the_logit_scale_where_prompts_are_trained(
    kdedge: Run, scale: float, text_loss_weight: float, image_loss_weight: float, lr: float
) -> None:
    state = torch.load("teacher.pt")
    torch.save({**state, "logit_scale": torch.tensor(scale).log()}, "scaled.pt")
    shutil.rmtree("labeled/dog")
    kdedge(*INIT, "--teacher", "scaled.pt", "--student", "student.pt").succeeds()
    loaded = load_recipe("line3.yaml")
    kept = choose_method(loaded, "teacher")
    assert kept.settings.text_loss_weight == text_loss_weight
    assert kept.settings.image_loss_weight == image_loss_weight
    assert kept.optim.lr == lr


# Labels and class names


def test_a_photo_with_two_labels_is_named(kdedge: Run) -> None:
    shutil.copy("labeled/cat/0.jpg", "labeled/dog/twin.jpg")
    done = kdedge("check", "r.yaml", "--set", "data.split=all").succeeds()
    line = "data.labeled: 1 of 25 images are the same as one with another label, and are used with"
    assert f'{line} both: "dog/twin.jpg".' in done.err


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_a_class_without_labels_is_named_and_the_others_are_taught(kdedge: Run, kind: str) -> None:
    keep("labeled/dog", 0)
    Path("labeled/notes.txt").touch()
    shutil.copy("labeled/cat/0.jpg", "labeled/loose.jpg")
    files = sorted(Path("labeled").glob("*/[0-9].jpg"))
    rows = [f"{file},{file.parent.name}\n" for file in files]
    Path("labels.csv").write_text("".join(["image,class\n", *rows, "labeled/loose.jpg,\n"]))
    labeled = {"folder": "{folder: labeled}", "list": "{list: labels.csv}"}[kind]
    done = kdedge("check", "r.yaml", "--set", "data.split=all", "--set", f"data.labeled={labeled}")
    assert done.code == 0, done.err
    assert 'data.labeled has no images of 1 of 4 classes: "dog".' in done.err
    assert "data.labeled: 1 of 19 images have no label and are skipped; the first is" in done.err
    is_said = "data.labeled: files that are not read as images are skipped: 1 .txt." in done.err
    assert is_said == (kind == "folder")
    assert re.search(r"teacher: images +18 used of 19", done.out)


def test_labeled_images_that_are_test_images_are_left_out(kdedge: Run) -> None:
    shutil.copy("test/cat/0.jpg", "labeled/cat/again.jpg")
    done = kdedge("check", "r.yaml")
    shared = 'of data.labeled are in data.test, too, and are left out: "cat/again.jpg".'
    assert done.err.count(shared) == 1
    done = kdedge("teach", "r.yaml", "--set", "data.test={folder: labeled}")
    done.fails(3, "All images of data.labeled are in data.test, too", "Name others.")


def test_class_names_may_hold_commas_quotes_braces_and_emoji(kdedge: Run) -> None:
    names = ['cat, the "big" one', "dög 'x'", "🦊 {} %s", "école bus"]
    Path("classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    for folder in ("labeled", "test"):
        for old, new in zip(("cat", "dog", "red fox", "school bus"), names, strict=True):
            Path(folder, old).rename(Path(folder, new))
    assert kdedge("distill", "r.yaml").code == 0
    done = kdedge("eval", "--per-class")
    for name in names:
        assert f"\n{name} " in done.out
    assert list(json.loads(kdedge("eval", "--json").out)["per_class"]) == names


# Recipes


def test_check_counts_no_training_of_a_teacher_that_is_finished(kdedge: Run, trained: Path) -> None:
    known = kdedge("check", "r.yaml").out
    assert re.search(r"^teacher +runs/tiny/01 is finished and is used$", known, re.MULTILINE)
    assert re.findall(r"^\w+: time", known, re.MULTILINE) == ["student: time"]
    new = kdedge("check", "r.yaml", "--set", "seed=7").out
    assert re.findall(r"^\w+: time", new, re.MULTILINE) == ["teacher: time", "student: time"]


def test_a_machine_without_a_network_says_at_once_which_file_to_fetch_and_where_to_put_it(
    kdedge: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project / "hub"))
    monkeypatch.setenv("HOME", str(project))  # CLIP's own weights are cached in ~/.cache/clip

    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", no_network)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    options = ("--set", "student.backbone=ViT-B-16", "--set", "student.weights=openai")
    done = kdedge("distill", "r.yaml", *options)
    assert sum(slept) < 5
    done.fails(
        4,
        "The weights openai of ViT-B-16 are not on this machine and could not be fetched: Name or",
        "Fetch https://",
        "set it in the recipe next to backbone: weights: /path/to/file",
    )
    assert runs() == []


# Runs whose files were damaged or replaced


@dataclass(frozen=True)
class Damage:
    """What a disk did to a file of a run.

    Attributes:
        name: what happened to which file, in words.
        file: in the run's folder; {kind} stands for teacher or student.
        damage: does it to a path.
        code: the exit code of `kdedge eval`.
        says: a part of its message.
    """

    name: str
    file: str
    damage: Callable[[Path], object]
    code: int
    says: str


DAMAGES = [
    Damage(
        name="a bit of the class vectors flipped",
        file="class_vectors.safetensors",
        damage=flip,
        code=3,
        says="is damaged: its contents do not match their SHA-256.",
    ),
    Damage(
        name="class vectors cut off",
        file="class_vectors.safetensors",
        damage=lambda path: cut(path, 300),
        code=3,
        says="class_vectors.safetensors cannot be read",
    ),
    Damage(
        name="class vectors gone",
        file="class_vectors.safetensors",
        damage=Path.unlink,
        code=3,
        says="class_vectors.safetensors cannot be read",
    ),
    Damage(
        name="a bit of the weights flipped",
        file="{kind}.safetensors",
        damage=flip,
        code=3,
        says="is damaged: its contents do not match their SHA-256.",
    ),
    Damage(
        name="weights cut off",
        file="{kind}.safetensors",
        damage=lambda path: cut(path, 900),
        code=3,
        says="{kind}.safetensors cannot be read",
    ),
    Damage(
        name="weights gone",
        file="{kind}.safetensors",
        damage=Path.unlink,
        code=3,
        says="{kind}.safetensors cannot be read",
    ),
    Damage(
        name="provenance cut off",
        file="provenance.json",
        damage=lambda path: cut(path, 90),
        code=3,
        says="provenance.json is not valid JSON",
    ),
    Damage(
        name="provenance gone",
        file="provenance.json",
        damage=Path.unlink,
        code=2,
        says="is neither a run folder nor the name of a run",
    ),
    Damage(
        name="an empty recipe",
        file="recipe.yaml",
        damage=lambda path: cut(path, 0),
        code=2,
        says="recipe.yaml is empty",
    ),
]


@pytest.mark.parametrize(
    ("run", "kind"), [("tiny/01", "teacher"), ("tiny/02", "student")], ids=["teacher", "student"]
)
def test_eval_refuses_every_damaged_file_of_a_run(
    kdedge: Run, trained: Path, run: str, kind: str
) -> None:
    for case in DAMAGES:
        path = trained / "runs" / run / case.file.format(kind=kind)
        whole = path.read_bytes()
        case.damage(path)
        kdedge("eval", run).fails(case.code, case.says.format(kind=kind), "\n  ")
        path.write_bytes(whole)
    assert kdedge("eval", run).code == 0


@pytest.mark.parametrize("name", ["student.safetensors", "class_vectors.safetensors"])
def test_resuming_a_finished_student_whose_tensors_are_missing_says_how_to_get_them(
    kdedge: Run, trained: Path, name: str
) -> None:
    kdedge("distill", "r.yaml", "--resume").succeeds()
    (trained / "runs/tiny/02" / name).unlink()
    kdedge("distill", "r.yaml", "--resume").fails(
        3,
        f"runs/tiny/02 is already finished, but runs/tiny/02/{name} cannot be read",
        "Run the same command without --resume to train again.",
    )
    assert runs() == ["runs/tiny/01", "runs/tiny/02"]
    kdedge("distill", "r.yaml").succeeds()  # the way out that the message names
    kdedge("distill", "r.yaml", "--resume").succeeds()


def test_a_damaged_teacher_stops_its_student_before_anything_is_written(
    kdedge: Run, trained: Path
) -> None:
    for name in ("class_vectors.safetensors", "teacher.safetensors"):
        path = trained / "runs/tiny/01" / name
        whole = path.read_bytes()
        flip(path)
        kdedge("distill", "r.yaml").fails(3, name, "Train or import again")
        path.write_bytes(whole)
    assert runs() == ["runs/tiny/01", "runs/tiny/02"]
    # The way out that the message names
    flip(trained / "runs/tiny/01/teacher.safetensors")
    assert kdedge("teach", "r.yaml").code == 0
    assert "Teacher 1/2: using runs/tiny/03" in kdedge("distill", "r.yaml").err


def test_class_vectors_of_another_teacher_are_refused(kdedge: Run, trained: Path) -> None:
    assert kdedge("teach", "r.yaml", "--set", "seed=2").code == 0
    name = "class_vectors.safetensors"
    replace(f"runs/tiny/02/{name}", f"runs/tiny/03/{name}")
    kdedge("eval", "tiny/02").fails(
        3,
        "student.safetensors was trained with other class vectors than those in",
    )
    # Vectors that were stored before the weights were loaded look like this
    replace("runs/tiny/01/teacher.safetensors", "runs/tiny/03/teacher.safetensors")
    shutil.rmtree("runs/tiny/03")
    message = "teacher.safetensors was trained with other class vectors than those in"
    kdedge("eval", "tiny/01").fails(3, message)
    kdedge("distill", "r.yaml").fails(3, message)
    assert runs() == ["runs/tiny/01", "runs/tiny/02"]


def test_backbone_weights_that_were_replaced_after_training_are_refused(
    kdedge: Run, trained: Path
) -> None:
    state = torch.load("student.pt", weights_only=True)
    state["visual.proj"] = state["visual.proj"] + 0.01
    torch.save(state, "other.pt")
    replace("student.pt", "other.pt")
    message = "student.safetensors was trained on another backbone "
    kdedge("eval", "tiny/02").fails(3, message, "recipe.yaml names.")
    replace("student.pt", "teacher.pt")  # of other sizes
    kdedge("eval", "tiny/02").fails(3, message)
    replace("teacher.pt", "other.pt")
    kdedge("eval", "tiny/01").fails(3, "teacher.safetensors was trained on another backbone ")


def test_a_damaged_evaluation_costs_the_table_and_nothing_else(kdedge: Run, trained: Path) -> None:
    cut("runs/tiny/01/eval.json", 50)
    done = kdedge("distill", "r.yaml", "--set", "student.optim.epochs=1").succeeds()
    assert done.err.count("eval.json is not valid JSON") == 1
    assert "`kdedge eval RUN` writes a new one" in done.err
    assert "Wrote runs/tiny/03" in done.out
    assert json.loads(kdedge("show", "tiny/01", "--json").out)["evaluation"] is None


# Folders and divergence


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param(("predict", "tiny", "x.jpg"), 3, id="predict"),
        pytest.param(("show", "tiny"), 2, id="show"),
        pytest.param(("eval",), 2, id="eval"),
    ],
)
def test_from_another_folder_a_run_is_missed_with_the_folder_that_was_searched(
    kdedge: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], code: int
) -> None:
    (trained / "elsewhere").mkdir()
    monkeypatch.chdir(trained / "elsewhere")
    kdedge(*command).fails(code, f"in {trained}/elsewhere/runs", ": --runs DIR")
    monkeypatch.chdir(trained)


def test_a_runs_folder_that_cannot_be_written_is_refused(kdedge: Run) -> None:
    Path("file").write_text("x")
    for command in ("check", "teach", "distill"):
        kdedge(command, "r.yaml", "--runs", "file/runs").fails(7, "file/runs", "\n  ")
    said = f"There is no finished run in {Path('file/runs').absolute()}."
    kdedge("eval", "--runs", "file/runs").fails(2, said)
    Path("runs").mkdir()
    Path("runs/.cache").write_text("x")
    kdedge("teach", "r.yaml").fails(7, "runs/.cache/text_features could not be written")


DIVERGING = (
    "--set=student.optim={lr: 10, warmup_epochs: 0}",
    "--set=student.settings.losses.kl.weight=1e38",
)


def test_divergence_names_the_images_and_keeps_the_state_before(kdedge: Run, trained: Path) -> None:
    done = kdedge("distill", "r.yaml", *DIVERGING)
    done.fails(5, "training diverged at epoch 1, step ", "lower optim.lr (now 10)")
    named = done.err.split("Images: ")[1].split(".\n")[0].split(", ")
    assert len(named) == 4
    assert all(Path("pool", name).is_file() for name in named)
    state = load_newest(Path("runs/tiny/03/checkpoints"))
    assert all(bool(tensor.float().isfinite().all()) for tensor in state.module.values())


def test_a_diverged_run_is_not_taken_for_the_newest_finished_one(
    kdedge: Run, trained: Path
) -> None:
    assert kdedge("distill", "r.yaml", *DIVERGING).code == 5
    assert "runs/tiny/02" in kdedge("eval").out
    kdedge("eval", "tiny/03").fails(2, "tiny/03 is not finished")
