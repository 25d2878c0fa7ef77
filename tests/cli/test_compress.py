"""`distill --resume-from`: a finished student is made sparse or INT8, exported, resumed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.runtime.artifact import load_artifact

Kdedge = Callable[..., Any]
QUICK = ("--epochs", "1", "--lr", "0.001")
SPARSE = ("r.yaml", "--resume-from", "tiny/02", "--sparsity", "2:4")
LOOSE = ("--set", "gates.max_drop=100", "--set", "gates.agreement.int8=90%")


def record(run: str) -> dict[str, Any]:
    return json.loads(Path(f"runs/{run}/provenance.json").read_text())


def constants(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    return model, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.fixture(scope="module")
def compressed_project(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained project with tiny/03, of INT8 and 2:4 zeros, and its export in artifacts/01."""
    from kdedge.cli.main import run

    folder = tmp_path_factory.mktemp("compressed") / "project"
    shutil.copytree(trained_project, folder)
    for recipe in folder.glob("runs/*/*/recipe.yaml"):
        recipe.write_text(recipe.read_text().replace(str(trained_project), str(folder)))
    runs = ("--runs", str(folder / "runs"))
    how = ("--quantize", "int8", "--sparsity", "2:4", *QUICK)
    assert run(["distill", "--resume-from", "tiny/02", *how, *runs]) == 0
    assert run(["export", "tiny/03", *LOOSE, *runs]) == 0
    return folder


@pytest.fixture
def compressed(compressed_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That project as the current folder; not to be changed."""
    monkeypatch.chdir(compressed_project)
    return compressed_project


def test_the_run_says_what_it_started_from_and_what_was_done_to_its_layers(
    compressed: Path, kdedge: Kdedge
) -> None:
    said = record("tiny/03")
    assert (said["started_from"], said["teacher_run"]) == ("tiny/02", "tiny/01")
    layers = said["compression"]
    assert len(layers["sparse"]) == len(layers["quantized"]) == 18
    assert layers["untouched"] == ["fused_head", "patch_conv"]
    before = json.loads((compressed / "runs/tiny/03/eval.json").read_text())
    for command in (("eval", "tiny/03"), ("report", "tiny/03"), ("runs",), ("show", "tiny/03")):
        done = kdedge(*command)
        assert done.code == 0, done.err
    after = json.loads((compressed / "runs/tiny/03/eval.json").read_text())
    assert after["student"]["all"] == before["student"]["all"]


def test_its_float32_file_is_judged_as_int8_by_every_command(compressed: Path) -> None:
    artifact = load_artifact(compressed / "runs/tiny/03/artifacts/01")
    agreement = artifact.gates["agreement"]
    assert agreement["fp32"] == agreement["int8"] == 90
    assert artifact.file("model.onnx").gate == "passed"


def test_each_file_has_the_trained_scales_and_levels_bit_by_bit(compressed: Path) -> None:
    pytest.importorskip("onnx")
    import torch
    from safetensors.torch import load_file

    trained = load_file(compressed / "runs/tiny/03/student.safetensors")
    folder = compressed / "runs/tiny/03/artifacts/01"
    names = {
        name.removesuffix(".input_quantizer.start")
        for name in trained
        if name.endswith(".input_quantizer.start")
    }
    assert len(names) == 18

    def scale(place: str) -> np.ndarray:
        grown = trained[f"{place}.start"] * torch.exp(100 * trained[f"{place}.growth"])
        return grown.clamp(2**-14, 65504).half().numpy()

    for file in ("model.onnx", "model.int8.onnx", "model.int8-cpu.onnx"):
        model, values = constants(folder / file)
        made = {name: node for node in model.graph.node for name in node.output}
        nodes = {node.name: node for node in model.graph.node}
        for name in names:
            node = nodes[f"{name.replace('visual.', 'encoder.', 1)}/MatMul"]
            x, weight = (made[part] for part in node.input[:2])
            assert (x.op_type, weight.op_type) == ("DequantizeLinear",) * 2
            for part in (x, made[x.input[0]]):
                assert values[part.input[1]] == scale(f"{name}.input_quantizer")
            scales = scale(f"{name}.parametrizations.weight.0")
            assert np.array_equal(values[weight.input[1]].astype(np.float16), scales)
            original = trained[f"{name}.parametrizations.weight.original"].numpy()
            levels = np.rint(original / scales.astype(np.float32)[:, None]).clip(-127, 127)
            assert np.array_equal(values[weight.input[0]], levels.T)
            assert (np.count_nonzero(levels.reshape(-1, 4), axis=1) <= 2).all()


def test_the_files_compute_what_was_trained_and_are_marked_as_sparse(compressed: Path) -> None:
    artifact = json.loads((compressed / "runs/tiny/03/artifacts/01/artifact.json").read_text())
    files = {file["name"]: file for file in artifact["files"]}
    assert files.keys() == {"model.onnx", "model.int8.onnx", "model.int8-cpu.onnx"}
    for file in files.values():
        assert file["built_with"]["sparse_layers"] == 18
        assert file["parity"]["agreement_percent"] == 100
        # Inputs near the middle of two levels may be rounded to the other one
        assert file["parity"]["mean_softmax_distance"] < 1e-3


def test_predict_and_bench_run_the_files(
    compressed: Path, kdedge: Kdedge, quick_machine: object
) -> None:
    done = kdedge("predict", "runs/tiny/03/artifacts/01", "test/cat/0.jpg")
    assert done.code == 0, done.err
    done = kdedge("bench", "tiny/03", "--seconds", "0.01", "--calls", "3", obj=quick_machine)
    assert done.code == 0, done.err


def test_a_student_with_int8_layers_has_no_fp16_files(compressed: Path, kdedge: Kdedge) -> None:
    done = kdedge("export", "tiny/03", "--fp16")
    assert done.code == 2
    assert (
        "runs/tiny/03 was trained with INT8 layers, so it has no FP16 and no FP8 files" in done.err
    )
    assert len(list(compressed.glob("runs/tiny/03/artifacts/*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resume-from", "tiny/02", "--quantize", "int4"), "'int4' is not 'int8'"),
        (("--resume-from", "tiny/02"), "resume_from without quantize or sparsity"),
        (("r.yaml", "--sparsity", "2:4"), "has sparsity without resume_from"),
        (("--quantize", "int8"), "There is no recipe"),
        (("--resume-from", "tiny/1", "--quantize", "int8"), "neither a run folder nor"),
        (
            ("r.yaml", "--resume-from", "tiny/01", "--quantize", "int8"),
            "is not a finished run of a student",
        ),
        (
            (*SPARSE, "--set", "student.settings.prompt_depth=1"),
            "tiny/02 has another method or settings",
        ),
        (
            (*SPARSE, "--set", "student.weights=teacher.pt"),
            "has another backbone",
        ),
        (
            (*SPARSE, "--set", "teacher.optim.epochs=1"),
            "tiny/02 learned from another teacher",
        ),
    ],
)
def test_a_run_that_cannot_be_compressed_is_refused_and_nothing_is_written(
    trained: Path, kdedge: Kdedge, arguments: tuple[str, ...], message: str
) -> None:
    done = kdedge("distill", *arguments, *QUICK)
    assert (done.code, message in done.err) == (2, True), done.err
    new = [run for run in ("tiny/03", "tiny/04") if Path(f"runs/{run}/checkpoints").exists()]
    assert [record(run)["kind"] for run in new] in ([], ["teacher"])


def test_the_recipe_of_a_compressed_run_trains_it_again(compressed: Path, kdedge: Kdedge) -> None:
    done = kdedge("distill", "runs/tiny/03/recipe.yaml", "--resume")
    assert done.code == 0, done.err
    assert "runs/tiny/03 is already finished: there is nothing to resume" in done.err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_compression_resumes_and_ends_as_an_undisturbed_one(
    trained: Path, start: Callable[..., Any], signum: signal.Signals
) -> None:
    command = ("distill", "--resume-from", "tiny/02", "--quantize", "int8", "--sparsity", "2:4")
    often = ("--epochs", "2", "--set", "student.optim.checkpoint_every_s=0.001")
    whole = start(*command, *often)
    assert whole.wait() == 0, whole.stderr
    stopped = start(*command, *often, "--seed", "1")  # the default seed: the same run again
    run = trained / "runs/tiny/04"
    stopped.wait_until(lambda: len(list(run.glob("checkpoints/*"))) > 1)
    stopped.send(signum)
    stopped.wait()
    again = start(*command, *often, "--resume")
    assert again.wait() == 0, again.stderr
    assert "runs/tiny/04: resuming where it stopped." in again.stderr
    for name in ("student.safetensors", "class_vectors.safetensors"):
        assert (run / name).read_bytes() == (trained / "runs/tiny/03" / name).read_bytes()
