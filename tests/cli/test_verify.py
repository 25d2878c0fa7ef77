"""`kdedge export --with-preprocess` and `kdedge verify`, with clients in three languages."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.artifacts.parity import SMOKE_SET, read_smoke_set
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.preprocess import resize_and_crop

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ARTIFACT = Path("runs/tiny/02/artifacts/01")
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
FILES = ["model.image.onnx", "model.image.int8-cpu.onnx"]

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def with_images(exported_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's artifact with files for images; not to be changed."""
    from kdedge.cli.main import run

    folder = tmp_path_factory.mktemp("with images") / "artifact"
    shutil.copytree(exported_project / ARTIFACT, folder)
    assert run(["export", str(folder), "--with-preprocess", "--int8", "--threads", "1"]) == 0
    return folder


def answers_of(
    kdedge: Run, artifact: Path, client: list[str], file: str, folder: Path
) -> tuple[str, ...]:
    """Runs a client on the smoke set's images; the arguments that compare its answers."""
    images, answers = folder / "images", folder / "answers.jsonl"
    shutil.rmtree(images, ignore_errors=True)
    done = kdedge("verify", str(artifact), "--images", str(images), "--json").succeeds()
    model = (artifact / file).resolve()
    ran = subprocess.run([*client, model, *json.loads(done.out)], check=True, capture_output=True)
    answers.write_bytes(ran.stdout)
    return "verify", str(artifact), str(answers), "--file", file


def check(
    kdedge: Run, artifact: Path, client: list[str], file: str, folder: Path
) -> dict[str, Any]:
    done = kdedge(*answers_of(kdedge, artifact, client, file, folder), "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("file", ["model.onnx", "model.int8-cpu.onnx", *FILES])
def test_the_python_client_answers_as_the_artifact_does(
    with_images: Path, kdedge: Run, tmp_path: Path, file: str
) -> None:
    client = [sys.executable, "-I", str(with_images / "example.py")]
    found = check(kdedge, with_images, client, file, tmp_path)
    assert found["file"] == file
    assert found["n_images"] > 3
    # INT8's scales for ONNX Runtime on CPUs depend on the other images of a batch
    assert found["max_score_difference"] < (0.5 if "int8" in file else 0.001)
    assert found["max_mean_difference"] < 1e-9


def test_the_cpp_client_answers_as_the_artifact_does(
    with_images: Path, kdedge: Run, tmp_path: Path
) -> None:
    compiler = shutil.which("c++")
    places = os.environ.get("CPLUS_INCLUDE_PATH", "").split(":")
    places = [*filter(None, places), "/usr/include", "/usr/local/include"]
    folders = [Path(place, *inside) for place in places for inside in ((), ("onnxruntime",))]
    found = [folder for folder in folders if (folder / "onnxruntime_cxx_api.h").is_file()]
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if compiler is None or not found or not libraries:
        pytest.skip("needs a C++ compiler, onnxruntime_cxx_api.h, and ONNX Runtime's library")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(libraries[0])
    program = tmp_path / "classify"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    command += [str(EXAMPLES / "onnxruntime.cpp"), "-I", str(found[0]), "-L", str(tmp_path)]
    command += ["-lonnxruntime", f"-Wl,-rpath,{tmp_path}", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for file in FILES:
        assert check(kdedge, with_images, [str(program)], file, tmp_path)["n_images"] > 3


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_the_javascript_client_answers_as_the_artifact_does(
    with_images: Path, kdedge: Run, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    monkeypatch.chdir(with_images)
    code = f"console.log(require.resolve('{package}'))"
    done = subprocess.run([node, "-e", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs {package}, in a folder that NODE_PATH names")
    # Only this package is found, and those that it needs
    modules = Path(done.stdout.partition(f"/{package}/")[0])
    for folder in modules.iterdir():
        if folder.name == package or not folder.name.startswith("onnxruntime-"):
            (tmp_path / "node_modules").mkdir(exist_ok=True)
            (tmp_path / "node_modules" / folder.name).symlink_to(folder)
    (tmp_path / "node_modules" / "onnxruntime-common").symlink_to(modules / "onnxruntime-common")
    monkeypatch.delenv("NODE_PATH", raising=False)
    artifact = with_images.resolve()
    monkeypatch.chdir(tmp_path)
    client = [node, str(EXAMPLES / "onnxruntime.mjs")]
    for file in FILES:
        found = check(kdedge, artifact, client, file, tmp_path)
        assert found["n_images"] > 3
        assert found["max_mean_difference"] < 1e-9


def test_the_smoke_set_has_tall_and_wide_images_with_their_pixels_and_answers(
    with_images: Path,
) -> None:
    smoke = read_smoke_set(with_images / SMOKE_SET)
    preprocess = load_artifact(with_images).preprocess
    shapes = set()
    for file, pixels in zip(smoke.images, smoke.pixels, strict=False):
        image = Image.open(io.BytesIO(file))
        assert image.format == "PNG"
        assert not image.info
        shapes.add(np.sign(image.width - image.height))
        wanted = np.asarray(resize_and_crop(image, preprocess))
        np.testing.assert_array_equal(pixels, wanted)
    assert {-1, 1} <= shapes
    with kdedge.load(with_images, backend="onnxruntime") as model:
        np.testing.assert_allclose(model.logits(smoke.pixels), smoke.logits, atol=1e-3)


def test_a_client_that_squeezes_images_is_refused(
    with_images: Path, kdedge: Run, tmp_path: Path
) -> None:
    """The common mistake: a resize to the square, without the crop."""
    text = (with_images / "example.py").read_text()
    wrong = text.replace('if preprocess["resize_mode"] == "shortest"', "if False")
    assert wrong != text
    (tmp_path / "client.py").write_text(wrong)
    client = [sys.executable, str(tmp_path / "client.py")]
    done = kdedge(*answers_of(kdedge, with_images, client, "model.onnx", tmp_path))
    assert done.code == 6
    assert "images with model.onnx are answered as the artifact does" in done.out
    assert "differs from the artifact on" in done.err
    assert "red, green and blue" in done.err


def test_predict_with_the_file_for_images_gives_the_same_answers(
    with_images: Path, kdedge: Run, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"gray": (50, 91), "clear": (33, 47, 4), "tiny": (1, 1, 3), "tall": (300, 40, 3)}
    for name, shape in shapes.items():
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.new("RGB", (5000, 1)).save(tmp_path / "strip.png")
    answers = []
    for backend in ("onnxruntime", "onnxruntime-image"):
        options = ("--backend", backend, "--format", "jsonl", "--top", "2")
        done = kdedge("predict", str(with_images), str(tmp_path), *options)
        assert "5 images: 4 classified, 1 unreadable" in done.err  # the strip is refused
        answers.append([json.loads(line) for line in done.out.splitlines()])
        answers[-1] = [answer for answer in answers[-1] if "top" in answer]
    assert len(answers[0]) == len(answers[1]) == 4
    for plain, whole in zip(*answers, strict=True):
        assert [one["class"] for one in whole["top"]] == [one["class"] for one in plain["top"]]
        for one, other in zip(whole["top"], plain["top"], strict=True):
            assert one["score_percent"] == pytest.approx(other["score_percent"], abs=0.01)


def test_bench_times_the_file_for_images(with_images: Path, kdedge: Run) -> None:
    options = ("--seconds", "0.01", "--calls", "3", "--batch", "1")
    done = kdedge("bench", str(with_images / "model.image.onnx"), *options).succeeds()
    assert "model.image.onnx" in done.out
