"""`kdedge classes`: classes of an exported artifact change without a new graph or engine."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdedge as api
from kdedge.artifacts.classes import NewClasses, write_changed_classes
from kdedge.artifacts.parity import load_smoke_set, parity_on_smoke_set
from kdedge.errors import DataError, InUseError
from kdedge.inference.choose import choose_and_load
from kdedge.locks import lock_itself
from kdedge.runtime.artifact import load_artifact

pytestmark = pytest.mark.usefixtures("project")

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)

OPEN, PLAIN = Path("open"), Path("plain")
NAMES = ("cat", "dog", "red fox", "school bus")
CHANGED = ("cat", "red fox", "school bus", "forklift", "old man")
GRAPHS = ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx")


TOLERANCE = 1e-4
"""Of logits up to 20: the sums are the same, in another order, in float32."""

Kdedge = Callable[..., Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes artifact.json by hand."""
    record = read(folder / "artifact.json")
    change(record)
    (folder / "artifact.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def both_exports(
    trained_project: Path, copy_of: Callable[..., Path], made_once: Callable[..., Path]
) -> Path:
    """The trained project with `open` in all precisions, `plain`, and `open changed`."""
    from kdedge.cli.main import run

    def write(made: Path) -> None:
        folder = copy_of(trained_project, made / "project")
        (folder / "changed.txt").write_text("\n".join(CHANGED))
        export = ("export", "tiny/02", "--runs", str(folder / "runs"))
        changed = ("--open-classes", "--classes", str(folder / "changed.txt"))
        int8 = ("--int8", "--int8-minutes", "0")
        assert run([*export, "--open-classes", *int8, "--output", str(folder / OPEN)]) == 0
        assert run([*export, "--output", str(folder / PLAIN)]) == 0
        assert run([*export, *changed, "--output", str(folder / "open changed")]) == 0

    return made_once("classes", write) / "project"


@pytest.fixture
def project(both_exports: Path, enter: Callable[..., Path]) -> Path:
    """A copy of that project, as the current folder."""
    return enter(both_exports)


def logits_of(artifact: Path, **options: Any) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    with api.load(artifact, **options) as model:
        return model.logits(pixels)


def test_an_open_export_answers_like_a_plain_one_and_lists_its_matrix(kdedge: Kdedge) -> None:
    record = read(OPEN / "artifact.json")
    assert record["output"] == {"name": "features", "head": "scores"}
    assert record["open_classes"]["file"] == "classes.1.npy"
    assert record["open_classes"]["dim"] == 40
    assert record["open_classes"]["changes"] == []
    assert [file["name"] for file in record["files"]] == list(GRAPHS)
    assert record["files"][0]["parity"]["agreement_percent"] == 100
    assert "classes.1.npy" in record["others"]
    np.testing.assert_allclose(logits_of(OPEN), logits_of(PLAIN), rtol=0, atol=TOLERANCE)
    assert "One tensor, `features`: float32 [batch, 40]." in (OPEN / "README.md").read_text()
    assert kdedge("classes", str(OPEN)).out == "\n".join(NAMES) + "\n"
    assert kdedge("classes", str(PLAIN)).out == "\n".join(NAMES) + "\n"
    assert "; open, in classes.1.npy" in kdedge("show", str(OPEN)).out


def test_lower_precisions_keep_the_layers_that_give_features_in_float() -> None:
    import onnx

    for name in GRAPHS:
        graph = onnx.load(OPEN / name).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        (node,) = [node for node in graph.node if node.name == "features/Gemm"]
        assert types[node.input[1]] == onnx.TensorProto.FLOAT, name
        assert not [node for node in graph.node if node.name.startswith("fused_head")]
        assert [value.name for value in graph.output] == ["features"]
    assert np.isfinite(logits_of(OPEN, precision="int8")).all()


def test_changed_classes_answer_like_an_export_with_these_classes(kdedge: Kdedge) -> None:
    before = {name: (OPEN / name).read_bytes() for name in (*GRAPHS, "classes.1.npy")}
    change = ("--add", "forklift", "--add", "old man", "--from", "tiny/02", "--remove", "dog")
    done = kdedge("classes", str(OPEN), *change).succeeds()
    assert "open: 2 classes added, 1 removed; 5 in classes.2.npy" in done.out
    for name, data in before.items():
        assert (OPEN / name).read_bytes() == data

    artifact = load_artifact(OPEN)
    assert artifact.class_names == CHANGED
    for name, sha256 in artifact.others.items():
        assert hashlib.sha256((OPEN / name).read_bytes()).hexdigest() == sha256
    (change_record,) = artifact.open_classes.changes
    assert (change_record.added, change_record.removed) == (("forklift", "old man"), ("dog",))
    card = (OPEN / "README.md").read_text()
    assert "`classes.2.npy` has the matrix, float32 [5, 40]" in " ".join(card.split())
    assert "    forklift\n" in card

    # The rows are those of an export that had these classes from the start
    np.testing.assert_allclose(
        np.load(OPEN / "classes.2.npy"), np.load("open changed/classes.1.npy"), rtol=0, atol=1e-5
    )
    answers = logits_of(OPEN)
    assert answers.shape == (6, 5)
    np.testing.assert_allclose(answers, logits_of(Path("open changed")), rtol=0, atol=TOLERANCE)


def test_the_smoke_set_has_the_logits_of_the_present_classes() -> None:
    write_changed_classes(OPEN, removed=["dog"])
    artifact = load_artifact(OPEN)
    smoke, plain = load_smoke_set(artifact), load_smoke_set(load_artifact(PLAIN))
    assert smoke.pixels.tolist() == plain.pixels.tolist()
    np.testing.assert_allclose(smoke.logits, plain.logits[:, [0, 2, 3]], rtol=0, atol=TOLERANCE)
    _, backend = choose_and_load(artifact, precision=None, backend=None, n_threads=1)
    try:
        parity = parity_on_smoke_set(artifact, backend)
    finally:
        backend.close()
    assert (parity.agreement_percent, parity.n_nonfinite) == (100, 0)


def test_a_file_with_preprocessing_has_open_classes_too(kdedge: Kdedge) -> None:
    kdedge("export", str(OPEN), "--with-preprocess").succeeds()
    write_changed_classes(OPEN, removed=["dog"])
    table = ("--format", "jsonl", "--top", "3")
    answers = []
    for file in ((), ("--backend", "onnxruntime-image")):
        done = kdedge("predict", str(OPEN), "test", *table, *file).succeeds()
        answers.append([json.loads(line)["top"] for line in done.out.splitlines()])
    of_pixels, of_images = answers
    for expected, got in zip(of_pixels, of_images, strict=True):
        assert [one["class"] for one in got] == [one["class"] for one in expected]
        for one, other in zip(got, expected, strict=True):
            assert one["score_percent"] == pytest.approx(other["score_percent"], abs=1e-3)
    images = api.write_smoke_images(OPEN, "images")
    client = [sys.executable, f"{OPEN}/example.py", f"{OPEN}/model.image.onnx", *images]
    done = subprocess.run(client, check=True, capture_output=True)
    Path("answers").write_bytes(done.stdout)
    assert api.verify_client(OPEN, "answers").max_score_difference is not None


def test_the_artifact_after_a_change_is_what_predict_bench_and_the_example_see(
    kdedge: Kdedge,
) -> None:
    artifact = api.change_classes(OPEN, add="forklift", run="tiny/02")
    assert artifact == load_artifact(OPEN)
    done = kdedge("predict", str(OPEN), "test", "--format", "jsonl", "--top", "5").succeeds()
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert {entry["class"] for entry in lines[0]["top"]} == {*NAMES, "forklift"}
    image = str(next(Path("test").rglob("*.jpg")))
    command = [sys.executable, "-I", OPEN / "example.py", OPEN / "model.onnx", image]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    (line,) = [line for line in lines if line["image"] == image]
    assert shown["label"] == line["top"][0]["class"]
    assert shown["score"] == pytest.approx(line["top"][0]["score_percent"], abs=0.001)


def test_engines_and_other_files_are_built_after_a_change_and_compared(kdedge: Kdedge) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("tensorrt_rtx")
    write_changed_classes(OPEN, removed=["dog"])
    kdedge("export", str(OPEN), "--openvino", "--trt-rtx").succeeds()
    files = {file.name: file for file in load_artifact(OPEN).files}
    assert files["model.xml"].parity is not None
    assert files["model.xml"].parity.agreement_percent == 100
    (engine,) = [file for file in files.values() if file.target == "tensorrt-rtx"]
    assert engine.built_with["profiles"][0]["max"] == 32
    api.change_classes(OPEN, remove=["cat"])
    _, backend = choose_and_load(
        load_artifact(OPEN), precision=None, backend="openvino", n_threads=1
    )
    assert backend.run(np.zeros((3, 3, 32, 32), np.float32)).shape == (3, 2)
    backend.close()


def test_servers_that_need_logits_are_refused(kdedge: Kdedge) -> None:
    done = kdedge("export", str(OPEN), "--triton", "server")
    assert done.code == 2, done.err
    assert "give image features, as its classes are open" in done.err
    assert "without open classes (export.open_classes)" in done.err
    assert not Path("server").exists()


BAD = {
    "a name that is there": (("--add", "red_fox", "--from", "tiny/02"), 3, "one class name"),
    "a name twice": (("--add", "a b", "--add", "a_b", "--from", "tiny/02"), 3, "one class name"),
    "an empty name": (("--add", " ", "--from", "tiny/02"), 3, "has an empty name"),
    "a line break": (("--add", "a\nb", "--from", "tiny/02"), 3, "printable characters"),
    "no run": (("--add", "forklift"), 2, "the artifact's run: --from RUN"),
    "an unknown run": (("--add", "forklift", "--from", "tiny/09"), 2, "tiny/09"),
    "the teacher's run": (
        ("--add", "forklift", "--from", "tiny/01"), 3, "was not exported from runs/tiny/01",
    ),
    "no such class": (("--remove", "lorry"), 2, '"lorry" is no class of open'),
    "a class removed twice": (("--remove", "cat", "--remove", "cat"), 2, "is removed twice"),
    "the last classes": (
        ("--remove", "cat", "--remove", "dog", "--remove", "red fox", "--remove", "school bus"),
        3, "has 0 class names, expected two or more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_change_is_one_message_and_changes_nothing(kdedge: Kdedge, case: str) -> None:
    options, code, message = BAD[case]
    before = {path.name: path.read_bytes() for path in OPEN.iterdir()}
    kdedge("classes", str(OPEN), *options).fails(code, message)
    assert {path.name: path.read_bytes() for path in OPEN.iterdir()} == before


def test_closed_classes_and_other_runs_are_refused(kdedge: Kdedge) -> None:
    kdedge("classes", str(PLAIN), "--remove", "dog").fails(
        2, "The classes of plain are part of its graphs", "Export the run again: with open classes"
    )
    edit(OPEN, lambda record: record["provenance"].update(trained_at="2020-01-01"))
    done = kdedge("classes", str(OPEN), "--add", "forklift", "--from", "tiny/02")
    assert done.code == 3
    assert "open was not exported from runs/tiny/02, but from the run tiny/02 of 2020" in done.err
    shutil.rmtree("runs/tiny/01")
    done = kdedge("classes", "open changed", "--add", "lorry", "--from", "tiny/02")
    assert done.code == 3
    assert "have no stored vector, first 'lorry', and its teacher's run" in done.err


def test_vectors_of_another_dimension_are_refused() -> None:
    new = NewClasses(("forklift",), np.ones((1, 24), np.float32), "0" * 64)
    with pytest.raises(DataError, match=r"are \[1, 24\], but the features of open take \[1, 40\]"):
        write_changed_classes(OPEN, added=new)
    assert load_artifact(OPEN).class_names == NAMES


def test_a_matrix_that_was_changed_is_refused(kdedge: Kdedge) -> None:
    (OPEN / "classes.1.npy").write_bytes(b"no matrix")
    kdedge("predict", str(OPEN), "test").fails(3, "classes.1.npy has changed since the export")


def test_what_an_interrupted_change_left_is_neither_read_nor_overwritten() -> None:
    left = OPEN / "classes.2.npy"  # artifact.json, which would name it, is written last
    left.write_bytes(b"left")
    assert logits_of(OPEN).shape == (6, 4)
    artifact = write_changed_classes(OPEN, removed=["dog"])
    assert artifact.open_classes.file == "classes.3.npy"
    assert logits_of(OPEN).shape == (6, 3)
    assert left.read_bytes() == b"left"


def test_a_folder_that_another_process_changes_is_left_alone() -> None:
    with lock_itself(OPEN), pytest.raises(InUseError, match="open is in use by another process"):
        write_changed_classes(OPEN, removed=["dog"])
    assert load_artifact(OPEN).class_names == NAMES


def test_a_teachers_own_export_takes_new_classes_too(kdedge: Kdedge) -> None:
    """Its text encoder makes the vectors, as it made those of the export."""
    export = ("export", "tiny/01", "--set", "export.batch=1", "--output")  # is traced sooner
    assert kdedge(*export, "teacher", "--open-classes").code == 0
    api.change_classes("teacher", add=["forklift", "old man"], remove="dog", run="tiny/01")
    assert kdedge(*export, "teacher changed", "--classes", "changed.txt").code == 0
    np.testing.assert_allclose(
        logits_of(Path("teacher")), logits_of(Path("teacher changed")), rtol=0, atol=TOLERANCE
    )
    done = kdedge("classes", "teacher", "--add", "lorry", "--from", "tiny/02")
    assert (done.code, "was not exported from runs/tiny/02" in done.err) == (3, True)


def test_removing_needs_no_torch() -> None:
    code = (
        "import sys, kdedge\n"
        "print(kdedge.change_classes('open', remove='dog').class_names)\n"
        "print({'torch', 'open_clip'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{('cat', 'red fox', 'school bus')}\nset()\n"
