"""`kdedge predict`: a line an image, whatever else happens, in three formats."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import kdedge as package
from kdedge.api.inputs import open_inputs

pytestmark = pytest.mark.usefixtures("work")

Run = Callable[..., Any]


@pytest.fixture
def work(device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with an artifact and images, one of them broken."""
    device.write_artifact(tmp_path / "art")
    device.write_image(tmp_path / "pics/a.jpg", (250, 10, 10))
    device.write_image(tmp_path / "pics/sub/b.png", (0, 230, 0))
    device.write_image(tmp_path / "pics/z.jpg", (3, 0, 0))
    (tmp_path / "pics/broken.jpg").write_bytes((tmp_path / "pics/a.jpg").read_bytes()[:-40])
    (tmp_path / "pics/notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str, stdin: Any = None, **options: Any) -> subprocess.Popen[bytes]:
    """`kdedge ARGUMENTS` as a process of its own."""
    root = str(Path(package.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "kdedge", *arguments],
        stdin=stdin,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        **options,
    )


def feed(data: bytes, *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines on stdout, and stderr of a process that reads these bytes."""
    process = start(*arguments, stdin=subprocess.PIPE)
    out, err = process.communicate(data)
    return process.returncode, out.decode().splitlines(), err.decode()


def test_a_folder_is_searched_and_every_image_gets_a_line(kdedge: Run) -> None:
    done = kdedge("predict", "art", "pics").succeeds()
    first, second, *others = done.out.splitlines()
    assert second.startswith("pics/broken.jpg  unreadable: ")
    assert [line.split("  ")[:2] for line in (first, *others)] == [
        ["pics/a.jpg", "red"],
        ["pics/sub/b.png", "green"],
        ["pics/z.jpg", "dark thing"],
    ]
    assert "\t" not in done.out
    score = first.split("  ")[2]
    assert score.endswith(" %")
    assert 99 < float(score[:-2]) <= 100
    lines = done.err.splitlines()
    assert lines[0].startswith("Using art/model.onnx on onnxruntime")
    assert lines[-1] == "4 images: 3 classified, 1 unreadable"


def test_csv_has_a_heading_and_the_same_columns_in_every_row(kdedge: Run) -> None:
    done = kdedge("predict", "art", "pics", "--format", "csv", "--top", "2")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert list(rows[0]) == [
        *("image", "class", "score_percent", "class_2", "score_percent_2", "error")
    ]
    assert [row["class"] for row in rows] == ["red", "", "green", "dark thing"]
    assert [bool(row["error"]) for row in rows] == [False, True, False, False]
    assert all(None not in row and None not in row.values() for row in rows)


def test_jsonl_is_valid_where_stdout_is_not_utf_8(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    image = (work / "pics/a.jpg").rename(work / "gr\u00fcn \U0001f600.jpg").name
    out, _ = start("predict", "art", image, "--format", "jsonl").communicate()
    assert json.loads(out.decode("latin-1"))["image"] == image


def test_jsonl_is_one_object_a_line(kdedge: Run) -> None:
    done = kdedge("predict", "art", "pics", "--format", "jsonl", "--top", "99")
    assert kdedge("predict", "art", "pics", "--json", "--top", "99").out == done.out
    first, broken, *_ = map(json.loads, done.out.splitlines())
    assert list(first) == ["image", "class", "score_percent", "top"]
    assert (first["image"], first["class"]) == ("pics/a.jpg", "red")
    assert [entry["class"] for entry in first["top"]].index("red") == 0
    assert sum(entry["score_percent"] for entry in first["top"]) == pytest.approx(100)
    assert list(broken) == ["image", "error"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text", ["pics/a.jpg  red  ", "pics/z.jpg  -  "]),
        ("csv", ["image,class,score_percent,error", "pics/a.jpg,red,9", "pics/z.jpg,,6"]),
        (
            "jsonl",
            [
                '{"image": "pics/a.jpg", "class": "red", "score_percent": 9',
                '{"image": "pics/z.jpg", "class": null, "score_percent": 6',
            ],
        ),
    ],
)
def test_below_the_minimum_score_no_class_is_named_and_the_score_is_given(
    kdedge: Run, kind: str, expected: list[str]
) -> None:
    images = ("pics/a.jpg", "pics/z.jpg")
    done = kdedge("predict", "art", *images, "--min-score", "90", "--format", kind)
    lines = done.out.splitlines()
    assert [line[: len(begin)] for line, begin in zip(lines, expected, strict=True)] == expected
    assert "2 images: 2 classified, 1 of them below 90 %" in done.err
    assert done.code == 0
    unsure = kdedge("predict", "art", *images, "--min-score", "100", "--format", kind)
    assert (len(unsure.out.splitlines()), unsure.code) == (len(lines), 0)
    said = "2 images: 2 classified, 2 of them below 100 %"
    assert said in unsure.err
    options = ("--min-score", "100", "--uncertain", "1")
    assert said in kdedge("predict", "art", *images, *options).err


def test_a_score_that_just_reaches_the_minimum_is_enough(kdedge: Run) -> None:
    def predict(*options: str) -> Any:
        return json.loads(kdedge("predict", "art", "pics/z.jpg", "--format", "jsonl", *options).out)

    score = predict()["score_percent"]
    assert predict("--min-score", repr(score))["class"] == "dark thing"
    assert predict("--min-score", repr(math.nextafter(score, 100)))["class"] is None


def test_a_minimum_score_needs_scores(kdedge: Run, device: ModuleType) -> None:
    device.write_artifact(Path("ranks"), head="argmax")
    done = kdedge("predict", "ranks", "pics", "--min-score", "50")
    assert done.code == 2
    assert "head argmax" in done.err
    assert done.out == ""
    refused = kdedge("predict", "ranks", "pics", "--uncertain", "1")
    refused.fails(2, "--uncertain: ranks was exported with the head argmax")
    assert kdedge("predict", "ranks", "pics/a.jpg").out == "pics/a.jpg  red\n"


@pytest.mark.parametrize(("paths", "code"), [(("pics",), 0), (("pics/broken.jpg",), 3)])
def test_the_models_memory_is_given_back(
    kdedge: Run, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...], code: int
) -> None:
    import onnxruntime

    sessions: list[weakref.ref[Any]] = []

    class Remembered(onnxruntime.InferenceSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            sessions.append(weakref.ref(self))

    monkeypatch.setattr(onnxruntime, "InferenceSession", Remembered)
    assert kdedge("predict", "art", *paths).code == code
    assert [session() for session in sessions] == [None]


def test_an_output_file_gets_the_lines_and_stdout_none(kdedge: Run) -> None:
    wanted = kdedge("predict", "art", "pics", "--format", "csv").out
    done = kdedge("predict", "art", "pics", "--format", "csv", "--output", "o.csv")
    assert (done.out, Path("o.csv").read_text()) == ("", wanted)
    assert done.err.rstrip().endswith("Wrote o.csv")


def test_standard_input_may_be_no_larger_than_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = SimpleNamespace(buffer=SimpleNamespace(read=bytes), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", endless)
    (found,) = open_inputs(["-"])
    assert "larger than 512 MiB" in str(found.image)


def test_an_output_file_without_any_line_is_not_kept(work: Path) -> None:
    arguments = ("predict", "art", "-", "--format", "csv", "--output", "o.csv")
    code, lines, err = feed(b"", *arguments)
    assert (code, lines) == (3, [])
    assert "no image in standard input" in err
    assert not Path("o.csv").exists()
    assert feed((work / "pics/a.jpg").read_bytes(), *arguments)[0] == 0
    assert Path("o.csv").read_text().startswith("image,class,score_percent,error\nstdin,red,")
    code, lines, _ = feed((work / "pics/sub/b.png").read_bytes(), "predict", "art", "-")
    assert (code, lines[0].split("  ")[:2]) == (0, ["stdin", "green"])


@pytest.mark.parametrize(
    ("output", "code", "last_line"),
    [
        (["--output", "o.txt"], 0, "Wrote o.txt"),
        ([], 2, "Error: Standard output is closed. Name a file with --output."),
    ],
)
def test_with_stdout_closed_results_need_an_output_file(
    output: list[str], code: int, last_line: str
) -> None:
    command = [sys.executable, "-m", "kdedge", "predict", "art", "pics", *output]
    root = str(Path(package.__file__).parents[1])
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(command)} >&-"],
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, last_line)
    if output:
        assert len(Path("o.txt").read_text().splitlines()) == 4


def test_a_file_that_another_command_has_begun_meanwhile_is_not_overwritten(
    kdedge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path("o.csv")
    reads, writes = os.pipe()

    def begin() -> None:
        with os.fdopen(writes, "wb", buffering=0) as image:
            image.write(bytes(1 << 20))  # more than a pipe holds: the command reads its input now
            output.write_text("of the other\n")

    other = threading.Thread(target=begin)
    other.start()
    with os.fdopen(reads) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        done = kdedge("predict", "art", "-", "--format", "csv", "--output", "o.csv")
    other.join()
    assert (done.code, "o.csv exists, and nothing is overwritten" in done.err) == (2, True)
    assert output.read_text() == "of the other\n"


def test_a_full_disk_is_told_and_keeps_the_lines_that_found_room(
    work: Path, kdedge: Run, small_disk: Callable[[int], Path]
) -> None:
    for number in range(60):
        os.link(work / "pics/a.jpg", work / f"pics/{number:03d}{'x' * 200}.jpg")
    output = small_disk(8) / "o.txt"
    done = kdedge("predict", "art", "pics", "--output", str(output))
    assert done.code == 7
    assert f"{output} could not be written: the disk is full" in done.err
    assert "Wrote" not in done.err
    assert output.read_text().startswith("pics/000")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("art", ""), 2, "A path is empty.\n  Name an image or a folder"),
        (("art", "x" * 300), 3, "cannot be read: file name too long"),
        (("x" * 300, "pics"), 3, "file name too long"),
        (("art", "pics", "--output", "x" * 300), 7, "could not be written: file name too long"),
        (("art", "pics", "--output", "no/where.csv"), 2, "the folder no does not exist"),
        (("art",), 2, "Name images, a folder, or - for standard input."),
        (("art", "-", "pics"), 2, "cannot be combined"),
        (("art", "nowhere.jpg"), 3, "nowhere.jpg does not exist"),
        (("art", "empty"), 3, "empty has no image files; found nothing at all"),
        (("art", "texts"), 3, "texts has no image files; found 1 .txt"),
        (("art", "pics/broken.jpg"), 3, "None of 1 image could be classified"),
        (("pics", "pics"), 3, "pics is not an artifact, nor a run with one"),
        (("pics/a.jpg", "art"), 3, "a.jpg is not an artifact, nor a run with one"),
        (("art", "pics", "--backend", "tensort"), 2, 'no backend "tensort"'),
        (("art", "pics", "--backend", "tensorrt"), 2, "no file that tensorrt can run"),
        (("art", "pics", "--precision", "int8"), 2, "has no int8 file that can be run"),
        (("art", "pics", "--precision", "fp4"), 2, "'fp4' is not one of"),
        (("art", "pics", "--batch", "5"), 2, "takes 1 to 4 images"),
        (("art", "pics", "--batch", "0"), 2, "--batch"),
        (("art", "pics", "--min-score", "101"), 2, "--min-score"),
        (("art", "pics", "--xml"), 2, "No such option"),
    ],
)
def test_what_cannot_be_done_is_told(
    work: Path, kdedge: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (work / "empty").mkdir()
    (work / "texts").mkdir()
    (work / "texts/a.txt").write_text("x")
    done = kdedge("predict", *arguments)
    assert (done.code, message in done.err) == (code, True), done.err


@pytest.mark.parametrize(("precision", "hint"), [("fp16", "; float32 may not"), ("fp32", "")])
def test_answers_that_are_not_finite_have_a_count_and_a_reason(
    work: Path, kdedge: Run, device: ModuleType, precision: str, hint: str
) -> None:
    artifact = device.write_artifact(work / "overflow", factor=float("nan"))
    artifact.with_files(dataclasses.replace(artifact.files[0], precision=precision)).save()
    done = kdedge("predict", "overflow", "pics")
    broken = [line for line in done.out.splitlines() if "broken.jpg" in line]
    assert done.out.splitlines()[0] == (
        f"pics/a.jpg  no prediction: the model gives NaN or infinity{hint}"
    )
    assert broken[0].startswith("pics/broken.jpg  unreadable: ")
    assert "4 images: 0 classified, 1 unreadable, 3 without finite logits\n" in done.err
    assert done.err.endswith(
        "kdedge: None of 4 images could be classified with overflow/model.onnx.\n"
        f"  The first is pics/a.jpg: the model gives NaN or infinity{hint}.\n"
    )
    assert done.code == 3
    record = json.loads(
        kdedge("predict", "overflow", "pics", "--format", "jsonl").out.split("\n")[0]
    )
    assert record == {"image": "pics/a.jpg", "error": f"the model gives NaN or infinity{hint}"}


def test_a_class_name_that_would_steer_a_terminal_is_shown_escaped(
    work: Path, kdedge: Run, device: ModuleType
) -> None:
    artifact = device.write_artifact(work / "bidi")
    names = ("right\u202eleft", "green", "blue", "dark thing")
    dataclasses.replace(artifact, class_names=names).save()
    assert kdedge("predict", "bidi", "pics/a.jpg").out.startswith("pics/a.jpg  right\\u202eleft  ")


def test_an_image_that_may_not_be_read_or_has_an_odd_name_gets_its_line(
    work: Path, kdedge: Run
) -> None:
    (work / "odd").mkdir()
    os.link(work / "pics/a.jpg", os.fsencode(work / "odd") + b"/\xff\nx.jpg")
    (work / "odd/y.jpg").symlink_to("/proc/self/mem")  # reading it fails
    done = kdedge("predict", "art", "odd")
    second, first = done.out.splitlines()
    assert first.startswith("odd/\\xff\\nx.jpg  red")
    assert second.startswith("odd/y.jpg  unreadable: cannot be read")
    record = json.loads(kdedge("predict", "art", "odd", "--format", "jsonl").out.splitlines()[1])
    assert record["image"] == "odd/\\xff\nx.jpg"


def test_csv_quotes_the_line_breaks_of_a_file_name(work: Path, kdedge: Run) -> None:
    (work / "odd").mkdir()
    names = ["odd/a\nx.jpg", "odd/b\rx.jpg"]
    for name in names:
        os.link(work / "pics/a.jpg", work / name)
    kdedge("predict", "art", "odd", "--format", "csv", "--output", "o.csv")
    with Path("o.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["image", *names]


def test_an_artifact_in_a_folder_whose_name_is_not_utf_8(kdedge: Run) -> None:
    folder = os.fsdecode(b"b\xff")
    shutil.copytree("art", folder)
    done = kdedge("predict", folder, "pics/a.jpg")
    assert done.code == 3
    assert "udcff/model.onnx' is not UTF-8, and runtimes cannot open it" in done.err


def link(folder: Path, n_images: int) -> None:
    """A folder of the same image under many names."""
    folder.mkdir()
    for number in range(n_images):
        os.link("pics/a.jpg", folder / f"{number:05}.jpg")


def test_ctrl_c_keeps_the_lines_that_were_written() -> None:
    link(Path("many"), 20_000)  # more than are classified before the signal
    process = start("predict", "art", "many", "--format", "csv", "--output", "o.csv")
    written = Path("o.csv")
    while not written.exists() or written.read_text().count("\n") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert written.read_text().splitlines()[1].startswith("many/00000.jpg,red,")
    assert b" classified\n" in err


def test_ctrl_c_keeps_the_least_certain_images_so_far(kdedge: Run) -> None:
    link(Path("many"), 60)

    def interrupt(what: str, done: int, total: int | None) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with package.progress_to(interrupt):
        options = ("--uncertain", "3", "--format", "csv", "--output", "o.csv")
        done = kdedge("predict", "art", "many", *options)
    assert done.code == 130
    heading, *lines = Path("o.csv").read_text().splitlines()
    assert heading.startswith("image,class,")
    assert len(lines) == 3
    assert all(line.split(",")[1] == "red" for line in lines)
    assert "Wrote o.csv" in done.err


def test_a_reader_that_goes_away_ends_it_quietly(work: Path) -> None:
    for number in range(300):
        os.link(work / "pics/a.jpg", work / f"pics/sub/{number:03d}{'x' * 200}.jpg")
    process = start("predict", "art", "pics")
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 141
    with process.stderr as stderr:
        assert stderr.read().startswith(b"Using art/model.onnx on ")


def test_a_shard_is_read_as_a_folder_is(work: Path, kdedge: Run) -> None:
    pytest.importorskip("webdataset")
    with tarfile.open(work / "pics.tar", "w") as shard:
        for name in ("a.jpg", "broken.jpg", "z.jpg"):
            shard.add(work / "pics" / name, f"in/{name}")
    lines = kdedge("predict", "art", "pics.tar", "--save", "out").out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["pics.tar/in/a", "red"],
        ["pics.tar/in/broken", "unreadable:"],
        ["pics.tar/in/z", "dark"],
    ]
    assert [path.name for path in Path("out").glob("*a.jpg")] == ["pics.tar_in_a.jpg"]
