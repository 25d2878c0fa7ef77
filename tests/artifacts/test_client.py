"""`kdedge verify`: a client's answers are compared; what differs gets one clear message."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, read_smoke_set, write_smoke_set
from kdedge.errors import DataError, GateError, RecipeError
from kdedge.records.evaluation import Gates
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess, resize_and_crop

SIZE, NAMES = 4, ("cat", "dog", "röd ö")
LOGITS = np.float32([[9, 1, 0], [0, 9, 1], [1, 0, 9], [3, 3.001, 0]])
SHAPES = ((5, 7), (9, 4), (4, 4), (40, 3))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An artifact of whose model file only the hash is used."""
    folder = tmp_path / "an artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"model")
    preprocess = Preprocess(SIZE, (0.5,) * 3, (0.5,) * 3)
    rng = np.random.default_rng(0)
    whole = [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in SHAPES]
    pixels = np.stack([np.asarray(resize_and_crop(image, preprocess)) for image in whole])
    smoke = folder / SMOKE_SET
    write_smoke_set(smoke, SmokeSet(pixels, LOGITS, tuple(map(png, whole))))
    sha256 = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest()
              for path in ("model.onnx", SMOKE_SET)}  # fmt: skip
    file = ModelFile("model.onnx", "onnx", "fp32", "any", sha256["model.onnx"], 5)
    others = {SMOKE_SET: sha256[SMOKE_SET]}
    found = Artifact(
        path=folder, name="tiny", class_names=NAMES, preprocess=preprocess, pixels="float",
        head="scores", max_batch=4, batch="dynamic",
        files=(file,), others=others, gates=Gates({"fp32": 100}, max_drop=1),
    )  # fmt: skip
    found.save()
    return found


def right_answers(artifact: Artifact) -> list[dict[str, Any]]:
    smoke = read_smoke_set(artifact.path / SMOKE_SET)
    powers = np.exp(LOGITS.astype(float))
    scores = 100 * powers / powers.sum(axis=1, keepdims=True)
    means = smoke.pixels.mean(axis=(1, 2)).tolist()
    return [
        {"label": NAMES[row.argmax()], "score": row.max(), "rgb_mean": mean}
        for row, mean in zip(scores, means, strict=True)
    ]


def written(answers: list[Any] | str, folder: Path) -> Path:
    """A file of answers."""
    path = folder / "answers.jsonl"
    text = answers if isinstance(answers, str) else "\n".join(map(json.dumps, answers))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("image_format", ["ppm", "png"])
def test_the_images_are_those_of_the_smoke_set(
    artifact: Artifact, tmp_path: Path, image_format: Any
) -> None:
    paths = kdedge.write_smoke_images(artifact, tmp_path / "images", image_format=image_format)
    smoke = read_smoke_set(artifact.path / SMOKE_SET)
    assert paths == sorted((tmp_path / "images").glob(f"*.{image_format}"))
    for path, image in zip(paths, smoke.uncropped(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    with pytest.raises(RecipeError, match="exists"):
        kdedge.write_smoke_images(artifact, tmp_path / "images")


def test_the_right_answers_pass(artifact: Artifact, tmp_path: Path) -> None:
    found = kdedge.verify_client(artifact, written(right_answers(artifact), tmp_path))
    assert (found.file, found.n_images) == ("model.onnx", 4)
    assert found.max_score_difference == pytest.approx(0, abs=1e-6)
    assert found.max_mean_difference == pytest.approx(0, abs=1e-6)
    assert found.mistakes == ()
    assert str(found).startswith("4 of 4 images with model.onnx are answered as the artifact does;")


def test_a_label_alone_is_enough_and_an_equal_class_is_right(
    artifact: Artifact, tmp_path: Path
) -> None:
    answers = [{"label": answer["label"]} for answer in right_answers(artifact)]
    answers[3] = {"label": "cat", "score": None, "more": 1}  # a thousandth below dog
    text = "\ufeff" + "\r\n".join(map(json.dumps, answers))  # as from C# on Windows
    found = kdedge.verify_client(artifact, written(text, tmp_path))
    assert found.max_score_difference is None
    assert found.max_mean_difference is None


@pytest.mark.parametrize(
    ("number", "change", "told"),
    [
        (1, {"label": "cat"}, r"image 1: expected the label 'dog', got 'cat'"),
        (0, {"score": 97.5}, r"image 0: expected the score 99\.95 for 'cat', got 97\.50"),
        (2, {"rgb_mean": [0, 0, 0]}, r"image 2: expected the means [\d., ]+ of red, green and bl"),
    ],
)
def test_an_answer_that_differs_is_a_missed_gate(
    artifact: Artifact, tmp_path: Path, number: int, change: dict[str, Any], told: str
) -> None:
    answers = right_answers(artifact)
    answers[number] |= change
    with pytest.raises(GateError, match=rf"differs from the artifact on 1 of 4 images\.\n  {told}"):
        kdedge.verify_client(artifact, written(answers, tmp_path))


def test_scores_of_a_model_without_them_are_not_compared(
    artifact: Artifact, tmp_path: Path
) -> None:
    dataclasses.replace(artifact, head="argmax").save()
    answers = right_answers(artifact)
    answers[0]["score"] = 1.0
    path = written(answers, tmp_path)
    assert kdedge.verify_client(artifact, path).max_score_difference is None
    answers[3]["label"] = "cat"
    with pytest.raises(GateError, match="the label 'dog', got 'cat'"):
        kdedge.verify_client(artifact, written(answers, tmp_path))


GOOD = '{"label": "cat"}'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "gave 0 answers for 4 images"),
        ("\n".join([GOOD] * 3), "gave 3 answers for 4 images"),
        ("\n".join([GOOD] * 5), "gave 5 answers for 4 images"),
        (GOOD + "\nSegment", "Line 2 of the client is no answer: Invalid JSON.*: 'Segment'"),
        ("[" * 100_000, r"Line 1 of the client is no answer: Invalid JSON.*: '\[\["),
        ('"cat"', "Line 1 of the client is no answer"),
        ("{}", "Line 1 of the client is no answer: label: Field required"),
        ('{"label": 3}', "label: Input should be a valid string"),
        ('{"label": "cow"}', "label is no class name of the artifact"),
        ('{"label": "cat", "score": "9"}', "score: Input should be a valid number"),
        ('{"label": "cat", "score": NaN}', "score: Input should be a finite number"),
        ('{"label": "cat", "score": true}', "score: Input should be a valid number"),
        ('{"label": "cat", "rgb_mean": [1, 2]}', "rgb_mean: 2: Field required"),
        ('{"label": "cat", "rgb_mean": 3}', "rgb_mean: Input should be a valid"),
    ],
)
def test_garbage_is_told_with_its_line(
    artifact: Artifact, tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(GateError, match=told):
        kdedge.verify_client(artifact, written(text, tmp_path))


def test_bytes_that_are_no_text_are_told(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "answers").write_bytes(b"\xff\xfe")
    with pytest.raises(GateError, match="is no UTF-8 text"):
        kdedge.verify_client(artifact, tmp_path / "answers")


def test_wrong_artifacts_and_files_are_told(artifact: Artifact, tmp_path: Path) -> None:
    answers = written(right_answers(artifact), tmp_path)
    with pytest.raises(DataError, match="is not an artifact"):
        kdedge.verify_client(tmp_path, answers)
    with pytest.raises(DataError, match="cannot be read: no such file"):
        kdedge.verify_client(artifact, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no model file 'model\.xml'; it has model\.onnx"):
        kdedge.verify_client(artifact, answers, file="model.xml")
    (artifact.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(DataError, match="has changed since the export"):
        kdedge.verify_client(artifact, answers)
