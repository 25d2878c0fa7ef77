"""`kdedge verify`: a client's answers are compared; one that fails gets one clear message."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.deploy.parity import SMOKE_SET, read_smoke_set, write_smoke_set
from kdedge.errors import DataError, GateError, RecipeError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess, resize_and_crop

SIZE, NAMES = 4, ("cat", "dog", "röd ö")
LOGITS = np.float32([[9, 1, 0], [0, 9, 1], [1, 0, 9], [3, 3.001, 0]])
SHAPES = ((5, 7), (9, 4), (4, 4), (40, 3))

# Answers from the images alone, as a table from the sum of their bytes
CLIENT = """
import json, sys
from PIL import Image
import numpy as np
table = json.loads({table!r})
for path in sys.argv[2:]:
    image = np.asarray(Image.open(path))
    print(json.dumps(table[str(int(image.astype(int).sum()))]))
"""


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An artifact whose model file only its hash is of use: clients here do not read it."""
    folder = tmp_path / "an artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"model")
    preprocess = Preprocess(SIZE, (0.5,) * 3, (0.5,) * 3)
    rng = np.random.default_rng(0)
    whole = [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in SHAPES]
    pixels = np.stack([np.asarray(resize_and_crop(image, preprocess)) for image in whole])
    smoke = folder / SMOKE_SET
    write_smoke_set(smoke, pixels, LOGITS, [png(image) for image in whole])
    sha256 = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest()
              for path in ("model.onnx", SMOKE_SET)}  # fmt: skip
    file = ModelFile("model.onnx", "onnx", "fp32", "any", sha256["model.onnx"], 5)
    others = {SMOKE_SET: sha256[SMOKE_SET]}
    found = Artifact(
        folder, "tiny", NAMES, preprocess, "float", "scores", 4, "dynamic",
        files=(file,), others=others, gates={"agreement": {"fp32": 100}, "max_drop": 1},
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


def client_with(artifact: Artifact, answers: list[Any], folder: Path) -> list[str]:
    """A program that knows the whole images by the sum of their bytes."""
    smoke = read_smoke_set(artifact.path / SMOKE_SET)
    sums = [int(image.astype(int).sum()) for image in smoke.whole()]
    table = json.dumps(dict(zip(map(str, sums), answers, strict=True)))
    (folder / "client.py").write_text(CLIENT.format(table=table))
    return [sys.executable, str(folder / "client.py")]


def printing(text: str) -> list[str]:
    return [sys.executable, "-c", f"print({text!r})"]


@pytest.mark.parametrize("pictures", ["ppm", "png"])
def test_the_right_answers_pass(artifact: Artifact, tmp_path: Path, pictures: Any) -> None:
    client = client_with(artifact, right_answers(artifact), tmp_path)
    found = kdedge.verify_client(artifact, client, pictures=pictures)
    assert (found.file, found.n_images, found.n_whole) == ("model.onnx", 4, 4)
    assert found.max_score_difference == pytest.approx(0, abs=1e-6)
    assert found.max_mean_difference == pytest.approx(0, abs=1e-6)
    assert found.mistakes == ()


def test_a_label_alone_is_enough_and_an_equal_class_is_right(
    artifact: Artifact, tmp_path: Path
) -> None:
    answers = [{"label": answer["label"]} for answer in right_answers(artifact)]
    answers[3] = {"label": "cat", "score": None, "more": 1}  # a thousandth below dog
    found = kdedge.verify_client(artifact, client_with(artifact, answers, tmp_path))
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
        kdedge.verify_client(artifact, client_with(artifact, answers, tmp_path))


def test_exchanged_colors_are_found_by_their_means(artifact: Artifact, tmp_path: Path) -> None:
    answers = right_answers(artifact)
    for answer in answers:
        answer["rgb_mean"] = answer["rgb_mean"][::-1]
    with pytest.raises(GateError, match="of 4 images"):
        kdedge.verify_client(artifact, client_with(artifact, answers, tmp_path))


def test_scores_of_a_model_without_them_are_not_compared(
    artifact: Artifact, tmp_path: Path
) -> None:
    dataclasses.replace(artifact, head="argmax").save()
    answers = right_answers(artifact)
    answers[0]["score"] = 1.0
    client = client_with(artifact, answers, tmp_path)
    assert kdedge.verify_client(artifact, client).max_score_difference is None
    answers[3]["label"] = "cat"
    with pytest.raises(GateError, match="the label 'dog', got 'cat'"):
        kdedge.verify_client(artifact, client_with(artifact, answers, tmp_path))


GOOD = '{"label": "cat"}'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "printed 0 answers for 4 images"),
        ("\n".join([GOOD] * 3), "printed 3 answers for 4 images"),
        ("\n".join([GOOD] * 5), "printed 5 answers for 4 images"),
        (GOOD + "\nSegment", "Line 2 of the client is no JSON object: 'Segment'"),
        ("[" * 100_000, r"Line 1 of the client is no JSON object: '\[\["),
        ('"cat"', "Line 1 of the client is no JSON object"),
        ("{}", "Line 1 of the client has no label"),
        ('{"label": 3}', "Line 1 of the client has no label"),
        ('{"label": "cow"}', "has a label that is no class name of the artifact"),
        ('{"label": "cat", "score": "9"}', "has a score that is no number"),
        ('{"label": "cat", "score": NaN}', "has a score that is no number"),
        ('{"label": "cat", "score": true}', "has a score that is no number"),
        ('{"label": "cat", "rgb_mean": [1, 2]}', "has an rgb_mean that is not three numbers"),
        ('{"label": "cat", "rgb_mean": 3}', "has an rgb_mean that is not three numbers"),
    ],
)
def test_garbage_is_told_with_its_line(artifact: Artifact, text: str, told: str) -> None:
    with pytest.raises(GateError, match=told):
        kdedge.verify_client(artifact, printing(text))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; sys.exit(3)", r"ended with exit code 3: .*MODEL IMAGE \.\.\."),
        ("raise ValueError('no model')", r"exit code 1: (.|\n)*ValueError: no model"),
        ("import os; os.kill(os.getpid(), 11)", "ended with the signal SIGSEGV"),
        ("import os; os.write(1, b'\\xff\\xfe')", "prints no UTF-8 text"),
        ("while True: print('x' * 9999)", "printed more than 10,000,000 bytes"),
    ],
)
def test_a_client_that_fails_is_told(artifact: Artifact, code: str, told: str) -> None:
    with pytest.raises(GateError, match=told):
        kdedge.verify_client(artifact, [sys.executable, "-c", code])


def test_a_client_that_hangs_is_ended_with_its_children(artifact: Artifact, tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid))\ntime.sleep(600)"
    )
    with pytest.raises(GateError, match="did not end within 3 s"):
        kdedge.verify_client(artifact, [sys.executable, "-c", code], timeout_s=3)
    state = Path(f"/proc/{child.read_text()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child runs on")


@pytest.mark.parametrize(
    ("client", "told"),
    [
        ("", "The client is empty"),
        ("'python", "cannot be split into words: no closing quotation"),
        ("no-such-program-anywhere", "cannot be started: no such file"),
        (["/"], "The client / cannot be started: permission denied"),
    ],
)
def test_a_client_that_cannot_be_started_is_a_mistake_of_the_call(
    artifact: Artifact, client: Any, told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        kdedge.verify_client(artifact, client)


def test_wrong_artifacts_are_told_before_the_client_starts(
    artifact: Artifact, tmp_path: Path
) -> None:
    client = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"]
    with pytest.raises(DataError, match="is not an artifact"):
        kdedge.verify_client(tmp_path, client)
    with pytest.raises(RecipeError, match=r"has no model\.xml; it has: model\.onnx"):
        kdedge.verify_client(artifact, client, file="model.xml")
    with pytest.raises(RecipeError, match="expected ppm or png"):
        kdedge.verify_client(artifact, client, pictures="bmp")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="timeout_s is 0"):
        kdedge.verify_client(artifact, client, timeout_s=0)
    (artifact.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(DataError, match="has changed since the export"):
        kdedge.verify_client(artifact, client)
    assert not (tmp_path / "ran").exists()


def test_a_smoke_set_without_whole_images_still_compares(
    artifact: Artifact, tmp_path: Path
) -> None:
    smoke = read_smoke_set(artifact.path / SMOKE_SET)
    write_smoke_set(artifact.path / SMOKE_SET, smoke.pixels, smoke.logits)
    data = (artifact.path / SMOKE_SET).read_bytes()
    others = {SMOKE_SET: hashlib.sha256(data).hexdigest()}
    older = dataclasses.replace(artifact, others=others)
    older.save()
    client = client_with(older, right_answers(older), tmp_path)
    assert kdedge.verify_client(older, client).n_whole == 0


def test_ctrl_c_ends_the_client(artifact: Artifact, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = (
        f"import os, time\nopen({str(started)!r} + '.part', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(started)!r} + '.part', {str(started)!r})\ntime.sleep(600)"
    )
    (tmp_path / "client.py").write_text(code)
    client = f'"{sys.executable}" "{tmp_path / "client.py"}"'
    process = subprocess.Popen(
        [sys.executable, "-m", "kdedge", "verify", str(artifact.path), "--client", client],
        stderr=subprocess.PIPE,
    )
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
