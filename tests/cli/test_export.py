"""`kdedge export`, from a trained project to an artifact that answers like the student."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.files import new_folder
from kdedge.locks import lock_itself

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("trained")

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ARTIFACT = Path("runs/tiny/02/artifacts/01")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def predict(kdedge: Run, artifact: Path, *images: str) -> list[dict[str, Any]]:
    done = kdedge("predict", str(artifact), *images, "--format", "jsonl", "--top", "4").succeeds()
    return [json.loads(line) for line in done.out.splitlines()]


def run_example(artifact: Path, *images: str) -> list[list[str]]:
    """Runs an artifact's example.py in a process that does not see kdedge; gives its lines."""
    process = subprocess.run(
        [sys.executable, "-I", artifact / "example.py", *images],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.split("\t") for line in process.stdout.splitlines()]


def test_the_example_says_how_it_is_used_and_what_it_cannot_read(
    exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")  # with links to a store of blobs
    script = (folder / "example.py").rename(tmp_path / "blob")
    (folder / "example.py").symlink_to(script)
    command = [sys.executable, folder / "example.py"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (
        1,
        "Usage: python example.py [MODEL.onnx] IMAGE|FOLDER ...\n",
    )
    image = next(Path("test").rglob("*.jpg"))
    named = subprocess.run([*command, "model.onnx", image], capture_output=True, text=True)
    assert json.loads(named.stdout)["label"]  # the file next to the script
    (tmp_path / "cut.qoi").write_bytes(b"qoif" + bytes([0, 0, 0, 9, 0, 0, 0, 9, 3, 0]))
    odd = shutil.copy(image, tmp_path / os.fsdecode(b"odd\xff.jpg"))
    given, env = ["missing.jpg", tmp_path / "cut.qoi", odd], {"PYTHONIOENCODING": "utf-8:strict"}
    process = subprocess.run([*command, *given], capture_output=True, text=True, env=env)
    assert (process.returncode, len(process.stdout.splitlines())) == (0, 1), process.stderr
    assert re.findall("([^/]*) cannot be read: ", process.stderr) == ["missing.jpg", "cut.qoi"]
    process = subprocess.run([*command, "missing.jpg"], capture_output=True, text=True)
    assert process.returncode == 3
    process = subprocess.run([*command, tmp_path / "a.onnx", image], capture_output=True, text=True)
    assert process.returncode == 1
    assert f"{tmp_path / 'artifact.json'} is missing. Copy" in process.stderr
    shutil.copy(exported / "artifact.json", tmp_path)
    shutil.copy(exported / "model.int8.onnx", tmp_path / "model.onnx")
    command = [*command, tmp_path / "model.onnx", image]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.endswith("is not the file that was exported. Copy it again.\n")


def test_a_teacher_is_not_taken_where_the_student_is_not_finished(kdedge: Run) -> None:
    path = Path("runs/tiny/02/provenance.json")
    path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    for name in ((), ("tiny",)):
        kdedge("export", *name).fails(2, "runs/tiny/02, a student, is not finished.")
    assert kdedge("show", "tiny/01").code == 0


def test_a_bare_export_writes_the_newest_students_float32_file(kdedge: Run) -> None:
    done = kdedge("export", "--runs", "runs").succeeds()
    assert {path.name for path in ARTIFACT.iterdir()} == {
        "README.md", "artifact.json", "example.py", "model.onnx", "smoke_set.safetensors",
    }  # fmt: skip
    (file,) = read(ARTIFACT / "artifact.json")["files"]
    assert file["precision"] == "fp32"
    assert file["gate"] == "passed"
    assert file["parity"]["n_images"] == file["parity"]["n_labeled"] == 20
    assert file["parity"]["agreement_percent"] == 100
    assert "GFLOPs per image" in done.out
    assert f"Wrote {ARTIFACT}" in done.err
    assert "Next: kdedge report tiny/02 --runs runs\n" in done.out
    work = read(ARTIFACT / "artifact.json")["provenance"]["gflops"]
    assert work == {"folded": pytest.approx(2 * file["built_with"]["gmacs"])}
    assert kdedge("export", path := f"{Path.cwd()}/runs/tiny/02").out.endswith(f"report {path}\n")

    # Another order of the classes refolds without training
    Path("few.txt").write_text("school bus\ncat\n")
    before = Path("runs/tiny/02/student.safetensors").read_bytes()
    other = "runs/tiny/02/deploy/01"  # in the run, but none of its artifacts
    done = kdedge("export", "tiny/02", "--classes", "few.txt", "--output", other, "--json")
    assert json.loads(done.succeeds().out)["artifact"] == other
    assert read(Path(other, "artifact.json"))["class_names"] == ["school bus", "cat"]
    assert Path("runs/tiny/02/student.safetensors").read_bytes() == before
    answers = predict(kdedge, Path(other), "test")
    for few, every in zip(answers, predict(kdedge, ARTIFACT, "test"), strict=True):
        ratio = {entry["class"]: entry["score_percent"] for entry in every["top"]}
        kept = ratio["school bus"] + ratio["cat"]
        for entry in few["top"]:
            expected = 100 * ratio[entry["class"]] / kept
            assert entry["score_percent"] == pytest.approx(expected, abs=1e-2)

    # `show` tells of a record that was changed by hand, but of no change by kdedge
    ARTIFACT.parent.rename("artifacts")
    ARTIFACT.parent.symlink_to(Path("artifacts").absolute())
    kdedge("export", str(ARTIFACT), "--with-preprocess").succeeds()
    assert "changed since" not in kdedge("show", "tiny/02").out
    record = ARTIFACT / "artifact.json"
    record.write_text(json.dumps({**read(record), "name": "other"}))
    kdedge("export", str(ARTIFACT), "--triton", "models").succeeds()
    assert "changed since the export" in kdedge("show", "tiny/02").out


@pytest.fixture
def exported(exported_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That artifact; not to be changed."""
    monkeypatch.chdir(exported_project)
    return ARTIFACT


def test_int8_comes_with_fp16_and_with_a_record_of_its_calibration(exported: Path) -> None:
    files = {file["name"]: file for file in read(exported / "artifact.json")["files"]}
    assert set(files) == {
        "model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx",
    }  # fmt: skip
    assert all(file["parity"] is not None for file in files.values())
    assert {name: file["device"] for name, file in files.items()} == {
        "model.onnx": "any",
        "model.fp16.onnx": "gpu",
        "model.int8.onnx": "gpu",
        "model.int8-cpu.onnx": "cpu",
    }
    pool = {hashlib.sha256(p.read_bytes()).hexdigest() for p in Path("pool").iterdir()}
    tested = {hashlib.sha256(p.read_bytes()).hexdigest() for p in Path("test").rglob("*.jpg")}
    used = {entry["sha256"] for entry in read(exported / "calibration.json")["files"]}
    assert used
    assert used <= pool
    assert not used & tested


def test_without_test_images_int8_is_calibrated_on_none_of_the_images_that_it_is_compared_on(
    kdedge: Run,
) -> None:
    from_pool = ("--set", "data.test=null", "--set", "export.parity_images=10")
    kdedge("export", "tiny/02", "--int8", "--int8-minutes", "0", *from_pool).succeeds()
    (int8,) = (
        file
        for file in read(ARTIFACT / "artifact.json")["files"]
        if file["name"] == "model.int8.onnx"
    )
    assert int8["parity"]["images"] == "10 of 40 images of data.unlabeled"
    compared = {one["image"] for one in int8["parity"]["worst"]}  # the worst 10: all of them
    calibration = read(ARTIFACT / "calibration.json")
    used = [one["key"] for one in calibration["files"] + calibration["held_out"]["files"]]
    assert (len(compared), len(used)) == (10, 30)
    assert compared.isdisjoint(used)


def test_every_hash_of_the_artifact_is_true(exported: Path) -> None:
    record = read(exported / "artifact.json")
    listed = {file["name"]: file["sha256"] for file in record["files"]} | record["others"]
    on_disk = {path.name for path in exported.iterdir()} - {"artifact.json"}
    assert listed.keys() == on_disk
    for name, sha256 in listed.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == sha256


def test_predict_gives_the_students_scores(exported: Path, kdedge: Run) -> None:
    import torch

    from kdedge.runs.folder import RunFolder
    from kdedge.runs.model import load_run
    from kdedge.setup.workspace import Workspace

    run = RunFolder.open(Path("runs/tiny/02"))
    model = load_run(run, Workspace(run.root, torch.device("cpu")))
    images = model.images.load("test")
    expected = 100 * model.logits_of(images, what="").softmax(dim=-1)
    lines = predict(kdedge, exported, "test")
    assert len(lines) == len(expected) == 20
    keys = [images.source.items[index].key for index in images.indices]
    for line in lines:
        row = next(i for i, key in enumerate(keys) if line["image"].endswith(key))
        scores = {entry["class"]: entry["score_percent"] for entry in line["top"]}
        for position, name in enumerate(model.class_names):
            assert scores[name] == pytest.approx(float(expected[row, position]), abs=1e-2)


def test_a_new_class_is_encoded_by_the_teacher_where_it_is_at_hand(kdedge: Run) -> None:
    Path("more.txt").write_text("cat\nzebra\n")
    kdedge("export", "tiny/02", "--classes", "more.txt", "--output", "more").succeeds()
    assert read(Path("more/artifact.json"))["class_names"] == ["cat", "zebra"]

    assert kdedge("teach", "r.yaml", "--set", "seed=9").code == 0
    shutil.rmtree("runs/tiny/01")
    Path("runs/tiny/03").rename("runs/tiny/01")  # another teacher in its place
    done = kdedge("export", "tiny/02", "--classes", "more.txt", "--output", "again")
    assert done.code == 3
    assert "runs/tiny/01 did not make the stored vectors" in done.err

    shutil.rmtree("runs/tiny/01")
    done = kdedge("export", "tiny/02", "--classes", "more.txt", "--output", "again")
    assert done.code == 3
    assert "1 of 2 class names have no stored vector, first 'zebra'" in done.err
    assert not Path("again").exists()


def test_files_that_miss_their_gates_are_marked_kept_and_end_in_exit_code_6(
    kdedge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    names = ("model.fp16.onnx", "model.int8.onnx")

    class Reversed(onnxruntime.InferenceSession):
        """An ONNX Runtime that gives these files' logits with the other sign."""

        def __init__(self, path: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(path, *arguments, **options)
            self.sign = -1 if str(path).endswith(names) else 1

        def run(self, *arguments: Any) -> Any:
            return [self.sign * values for values in super().run(*arguments)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Reversed)
    gates = ("--set", "gates.agreement={fp16: 98%, int8: 98%}")
    command = ("export", "tiny/02", "--int8", "--int8-minutes", "0", "--with-preprocess", *gates)
    done = kdedge(*command)
    assert done.code == 6
    assert done.err.count("ONNX with preprocessing has no fp16 files.") == 1  # said once
    assert "missed its gates against the float32 model: agreement" in done.err
    assert "  Passed: model.onnx" in done.err
    files = {file["name"]: file for file in read(ARTIFACT / "artifact.json")["files"]}
    assert files["model.onnx"]["gate"] == "passed"
    for name in names:
        assert name in done.err
        assert files[name]["gate"] == "missed"
        assert files[name]["parity"]["agreement_percent"] < 50
        assert len(files[name]["parity"]["worst"]) == 10
        assert (ARTIFACT / name).is_file()


def test_a_target_that_cannot_be_built_here_leaves_the_onnx_files_and_names_the_step_that_is_left(
    kdedge: Run,
) -> None:
    done = kdedge("export", "--trt")  # whose preferred precision is FP16
    assert done.code == 4
    assert "warning: TensorRT cannot be built on this machine: Building and running Te" in done.err
    assert "pip install" in done.err or "JetPack" in done.err
    assert f"The artifact {ARTIFACT} is complete without engines." in done.err
    assert f"kdedge export {ARTIFACT} --trt\n" in done.err
    assert f"Wrote {ARTIFACT}\n" in done.err
    names = {file["name"] for file in read(ARTIFACT / "artifact.json")["files"]}
    assert names == {"model.onnx", "model.fp16.onnx"}
    assert kdedge("predict", str(ARTIFACT), "test/cat").code == 0


def test_an_export_whose_engine_fails_keeps_the_onnx_files_and_names_them_where_they_are(
    kdedge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")

    class Failing:
        """A TensorRT-RTX that builds nothing."""

        def __init__(self, *arguments: Any) -> None:
            self._real = real(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def build_serialized_network(self, *arguments: Any) -> None:
            return None

    real = trt.Builder
    monkeypatch.setattr(trt, "Builder", Failing)
    done = kdedge("export", "tiny/02", "--trt-rtx")
    assert done.code == 4
    assert f"could not build {ARTIFACT}/model.fp16.onnx" in done.err
    assert f"Wrote {ARTIFACT}\n" in done.err
    assert [path.name for path in ARTIFACT.parent.iterdir()] == ["01"]
    assert not list(ARTIFACT.glob("*.engine"))


def test_the_example_in_an_artifact_answers_as_predict_does(
    exported: Path, kdedge: Run, tmp_path: Path
) -> None:
    def gradient(height: int, width: int, channels: int) -> Any:
        values = np.arange(height * width * channels).reshape(height, width, channels) * 7 % 256
        return values.astype(np.uint8).squeeze()

    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(gradient(50, 91, 3)).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(gradient(33, 47, 4)).save(tmp_path / "clear.png")
    Image.fromarray(gradient(90, 41, 1)).save(tmp_path / "gray.png")
    Image.fromarray(gradient(40, 40, 1).astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    wide = Image.fromarray(gradient(40, 40, 1).astype(np.uint16))
    wide.save(tmp_path / "deep.png", transparency=7)
    Image.fromarray(gradient(40, 40, 1).astype(np.int32)).save(tmp_path / "wide.tiff")
    Image.fromarray(gradient(64, 33, 3)).quantize(9).save(tmp_path / "palette.png")
    images = sorted(map(str, [*tmp_path.glob("*.*"), *Path("test/cat").iterdir()]))
    lines = run_example(exported, *images)
    expected = predict(kdedge, exported, *images)
    assert len(lines) == len(expected) == 12
    # By itself it runs the file to ship, whose ranges in INT8 are of the images of one call
    for (name, found, score), answer in zip(lines, expected, strict=True):
        assert (name, found) == (answer["image"], answer["class"])
        assert float(score) == pytest.approx(answer["top"][0]["score_percent"], abs=1.5)
    printed = run_example(exported, str(exported / "model.onnx"), *images)
    exact = [json.loads(line) for (line,) in printed]
    assert [one["label"] for one in exact] == [answer["class"] for answer in expected]
    scores = [answer["top"][0]["score_percent"] for answer in expected]
    assert [one["score"] for one in exact] == pytest.approx(scores, abs=0.001)


def test_files_and_card_say_that_normalization_is_in_the_graph(exported: Path) -> None:
    import onnx

    record = read(exported / "artifact.json")
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx"):
        graph = onnx.load(exported / name)
        found = {entry.key: entry.value for entry in graph.metadata_props}
        assert found["normalization"] == "in graph"
        assert json.loads(found["preprocess"]) == record["preprocess"]
        assert json.loads(found["input"]) == record["input"]
        assert "std" not in found["preprocess"]
    card = (exported / "README.md").read_text()
    assert "**Normalization is in the graph**" in card
    assert "| `model.int8.onnx` | int8 | gpu |" in card
    assert "    school bus\n" in card


def test_a_server_gets_nothing_where_the_engine_for_it_is_missing(
    exported: Path, kdedge: Run, tmp_path: Path
) -> None:
    assert kdedge("export", str(exported), "--trt", "--triton", str(tmp_path / "models")).code == 4
    assert not (tmp_path / "models").exists()


def test_a_student_that_predicts_one_class_is_told_of(kdedge: Run) -> None:
    for image in Path("test").rglob("*.jpg"):
        Image.new("RGB", (40, 40)).save(image)
    done = kdedge("export", "tiny/02").succeeds()
    only = read(ARTIFACT / "artifact.json")["provenance"]["predicts_only"]
    told = f"The model predicts {only!r} for each of 20 of 20 images of data.test, such as "
    assert told in done.err
    assert f"**It predicts {only} for every image" in (ARTIFACT / "README.md").read_text()
    assert f"But it predicts {only!r} for every image." in kdedge("show", "tiny/02").out
    shown = kdedge("show", str(ARTIFACT)).out
    assert f"It predicts {only!r} for every image that it " in shown
    assert re.search("^for a CPU, ship +model.onnx, not timed; kdedge export --cpu", shown, re.M)


@pytest.mark.parametrize("options", [(), ("tiny/02", "--output")])
def test_a_path_that_no_runtime_opens_is_found_before_the_work(
    exported: Path, kdedge: Run, options: tuple[str, ...]
) -> None:
    folder = Path(os.fsdecode(b"b\xff"))
    if not options:
        shutil.copytree(ARTIFACT, folder)
    before = list(folder.parent.glob("b*/*"))
    assert kdedge("show", *options[:1] or [str(folder)]).code == 0
    done = kdedge("export", *options, str(folder), "--cpu")
    done.fails(3, "udcff' is not UTF-8, and runtimes cannot open it")
    assert list(folder.parent.glob("b*/*")) == before


@pytest.mark.slow
def test_tensorrt_rtx_builds_real_engines_here(kdedge: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    only = ("--set", "export.precisions=[int8]", "--int8-minutes", "0")
    kdedge("export", "--trt-rtx", *only).succeeds()
    engines = sorted(path.name for path in ARTIFACT.glob("*.engine"))
    assert len(engines) == 2
    assert engines[0].startswith("model.fp16.rtx")
    assert engines[1].startswith("model.int8.rtx")
    files = {file["name"]: file for file in read(ARTIFACT / "artifact.json")["files"]}
    onnx = files["model.fp16.onnx"]
    assert files[engines[0]]["made_from"] == onnx["sha256"]

    again = kdedge("export", str(ARTIFACT), "--trt-rtx", "--int8").succeeds()
    assert "Wrote" not in again.err
    record = read(ARTIFACT / "artifact.json")
    assert {file["name"] for file in record["files"]} == set(files)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--output", "pool"), 2, "exists"),
        (("--set", "export.precisions=[int4]"), 2, "export.precisions"),
        (("--set", "export.max_batch=0"), 2, "export.max_batch"),
        (("--torch-trt", "--int8"), 2, "Torch-TensorRT has no INT8 files"),
        (("--classes", "nothing.txt"), 2, "nothing.txt"),
        (("--browser", "page"), 2, "Add --with-preprocess"),
        (("nowhere",), 2, "nowhere"),
    ],
)
def test_bad_options_are_explained(
    kdedge: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    kdedge("export", *arguments).fails(code, words)
    assert not Path("runs/tiny/02/artifacts").exists()


def test_without_unlabeled_images_there_is_fp16_and_no_int8(kdedge: Run) -> None:
    command = ("export", "tiny/02", "--set", "data.unlabeled=null")
    kdedge(*command, "--int8").fails(3, "INT8 needs real images")
    assert not Path("runs/tiny/02/artifacts").exists()
    kdedge(*command, "--fp16").succeeds()
    assert (ARTIFACT / "model.fp16.onnx").is_file()


def test_options_that_shape_the_graph_do_not_go_with_an_artifact(
    exported: Path, kdedge: Run
) -> None:
    done = kdedge("export", str(exported), "--trt", "--head", "argmax")
    assert done.code == 2
    assert "is an artifact, and --head can only be given when a run" in done.err
    kdedge("export", str(exported)).fails(2, "is an artifact")
    kdedge("export", str(exported), "--cpu", "--fp16").fails(2, "--fp16 would change nothing")


def test_an_interrupted_export_leaves_no_artifact(start: Callable[..., Any]) -> None:
    process = start("export", "tiny/02", "--int8")
    folder = Path("runs/tiny/02/artifacts")
    process.wait_until(lambda: list(folder.glob(".*/model.onnx")))
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert "interrupted. Run the same command again" in process.stderr
    assert not folder.exists()


INTERRUPT_SEARCH = """
import logging, signal, sys
from kdedge.cli.main import main

class PressesControlC(logging.Handler):
    def emit(self, record):
        if "held-out images keep their class" in record.getMessage():  # the first candidate's
            signal.raise_signal(signal.SIGINT)

logging.getLogger("kdedge.quantization.search").addHandler(PressesControlC())
sys.modules["tensorrt"] = None  # whether or not it is installed
sys.argv = ["kdedge", "export", "tiny/02", "--int8", "--trt"]
main()
"""


def test_an_error_after_a_search_that_control_c_has_ended_is_told_with_its_own_code(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPT_SEARCH)
    process = start(script=script)
    assert process.wait() == 4, process.stderr
    assert "Ctrl-C stopped the search" in process.stderr
    assert "interrupted." not in process.stderr
    assert (ARTIFACT / "model.int8.onnx").is_file()


def test_an_interruption_after_the_artifact_says_how_to_add_the_other_files(
    start: Callable[..., Any],
) -> None:
    process = start("export", "tiny/02", "--with-preprocess", "--cpu", "--int8-minutes", "0")
    process.wait_until(lambda: f"Wrote {ARTIFACT}" in process.stderr)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert f"{ARTIFACT} is kept." in process.stderr
    assert f"options: kdedge export {ARTIFACT} --help\n" in process.stderr


def test_a_folder_that_another_export_fills_is_found_before_the_work(kdedge: Run) -> None:
    with new_folder(Path("out")):
        done = kdedge("export", "tiny/02", "--output", "out")
    assert (done.code, done.err) == (
        8,
        "kdedge: out is in use by another process.\n  Wait for it, or name another folder.\n",
    )


def test_an_artifact_that_another_command_is_changing_is_left_to_it(
    exported: Path, kdedge: Run
) -> None:
    with lock_itself(ARTIFACT):
        done = kdedge("export", str(ARTIFACT), "--with-preprocess")
    assert (done.code, f"{ARTIFACT} is in use by another process" in done.err) == (8, True)


def test_a_full_disk_leaves_no_artifact(kdedge: Run, small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(2000)
    options = ("--int8", "--int8-minutes", "0", "--output", str(folder / "artifact"))
    kdedge("export", "tiny/02", *options).fails(7, "disk is full")
    assert list(folder.iterdir()) == []


def test_a_full_disk_for_a_server_names_no_next_command(
    exported: Path, kdedge: Run, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(8)
    done = kdedge("export", str(ARTIFACT), "--triton", str(disk / "models"))
    assert (done.code, "disk is full" in done.err, "Next:" in done.out) == (7, True, False)
    assert list(disk.iterdir()) == []


def test_a_teacher_is_exported_with_its_weights_beside_the_graph_and_a_fixed_batch(
    kdedge: Run,
) -> None:
    wishes = ("--set", "export.external_data=true", "--set", "export.batch=2")
    kdedge("export", "tiny/01", "--head", "argmax", "--pixels", "uint8", *wishes).succeeds()
    artifact = Path("runs/tiny/01/artifacts/01")
    record = read(artifact / "artifact.json")
    assert record["output"]["head"] == "argmax"
    assert record["input"]["pixels"] == "uint8"
    assert (record["input"]["batch"], record["input"]["max_batch"]) == (2, 2)
    (file,) = record["files"]
    assert file["parity"]["agreement_percent"] == 100
    parts = [artifact / "model.onnx", artifact / "model.onnx.data"]
    assert file["n_bytes"] == sum(path.stat().st_size for path in parts)
    answers = [[one["image"], one["class"]] for one in predict(kdedge, artifact, "test/cat/0.jpg")]
    assert run_example(artifact, "test/cat/0.jpg") == answers


# Bad images for INT8's ranges


def test_black_images_show_no_ranges(kdedge: Run) -> None:
    for number, path in enumerate(sorted(Path("pool").iterdir())):
        Image.new("RGB", (40 + number, 40)).save(path)  # other files, the same pixels
    kdedge("export", "tiny/02", "--int8").fails(3, "INT8 calibration: all", "Check data.unlabeled")
    assert not ARTIFACT.exists()


def test_of_one_image_there_is_a_file_with_a_warning_and_no_choice(kdedge: Run) -> None:
    for path in sorted(Path("pool").iterdir())[1:]:
        path.unlink()
    done = kdedge("export", "tiny/02", "--int8").succeeds()
    assert "INT8 is calibrated on only 1 images" in done.err
    files = {file["name"]: file for file in read(ARTIFACT / "artifact.json")["files"]}
    search = files["model.int8.onnx"]["built_with"]["search"]
    assert (search["n_held_out"], search["steps"]) == (0, [])
    assert search["ended"] == "no images were left to choose by"


def test_pixels_that_are_not_numbers_after_decoding_are_refused(kdedge: Run) -> None:
    for path in sorted(Path("pool").iterdir())[:2]:  # one of 40 may be unreadable
        Image.fromarray(np.full((40, 40), np.nan, dtype=np.float32)).save(path, format="TIFF")
    kdedge("export", "tiny/02", "--int8").fails(3, f"{path.name}: float pixels have no fixed range")
    assert not ARTIFACT.exists()
