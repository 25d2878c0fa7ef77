"""The examples of the documentation run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdedge.data.sources.synthetic import open_source
from kdedge.runtime.artifact import Artifact

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_service_answers_an_image_and_refuses_a_text(
    artifact: Artifact, paint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("multipart")
    fastapi = pytest.importorskip("fastapi.testclient")
    monkeypatch.setenv("ARTIFACT", str(artifact.path))
    client = fastapi.TestClient(load_example("service.py").app)
    image = paint(tmp_path / "red.jpg", (255, 0, 0)).read_bytes()
    answer = client.post("/classify?top=2", files={"image": image})
    assert answer.status_code == 200
    assert [set(one) for one in answer.json()] == [{"class", "percent"}] * 2
    refused = client.post("/classify", files={"image": b"no image"})
    assert refused.status_code == 422
    assert "not a readable image" in refused.json()["detail"]


class Camera:
    """Two frames, and then none."""

    def __init__(self, number: int) -> None:
        self.frames = [np.full((48, 64, 3), 40 * number, np.uint8) for number in (1, 2)]

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, Any]:
        return (True, self.frames.pop()) if self.frames else (False, None)

    def release(self) -> None:
        pass


def test_the_camera_loop_draws_each_frame_s_best_class(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    drawn: list[str] = []
    opencv = SimpleNamespace(
        VideoCapture=Camera,
        FONT_HERSHEY_SIMPLEX=0,
        putText=lambda frame, text, *_: drawn.append(text),
        imshow=lambda title, frame: None,
        waitKey=lambda ms: -1,
    )
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    load_example("camera.py").main(str(artifact.path))
    assert len(drawn) == 2
    assert all(text.rpartition(" ")[0].rpartition(" ")[0] in artifact.class_names for text in drawn)


def test_the_loss_is_the_mean_power_of_the_distance() -> None:
    torch = pytest.importorskip("torch")
    module = load_example("power_loss/power_loss.py")
    loss = module.Loss(module.Settings(exponent=3.0))
    student, teacher = torch.randn(4, 8), torch.randn(4, 8)
    outputs = SimpleNamespace(student_features=student, teacher_features=teacher)
    slow = sum(float((s - t).square().sum()) ** 1.5 for s, t in zip(student, teacher, strict=True))
    assert float(loss(outputs)) == pytest.approx(slow / 4, rel=1e-5)


def test_own_images_end_to_end(
    paint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    colors = {"red": (200, 20, 20), "blue": (20, 20, 200)}
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    for number, part in enumerate(("cams", "labeled", "test")):
        for name, color in colors.items():
            for shade in range(4):
                green = 60 * shade + 20 * number
                paint(tmp_path / part / name / f"{shade}.png", (color[0], green, color[2]))
    load_example("own_images.py").main(
        *("cams", "classes.txt", "labeled", "test"),
        teacher={"method": "coop", "backbone": "kdedge-demo-teacher", "weights": "builtin"},
        student={
            "backbone": "kdedge-demo-student",
            "weights": "builtin",
            "settings": {"prompt_depth": 1},
        },
        optim={"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "n_workers": 0},
        gates={"agreement": {"fp16": "0%", "int8": "0%"}, "max_drop": 100},
    )
    out = capsys.readouterr().out
    assert out.startswith("line3/02 (student, finished)")
    assert out.count(".png red\n") + out.count(".png blue\n") == 8


def test_the_drawn_images_are_own_images(tmp_path: Path) -> None:
    load_example("draw_images.py").main(str(tmp_path))
    names = (tmp_path / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == 24
    for part, n in {"cams": 40, "labeled": 16, "test": 10}.items():
        assert len(list((tmp_path / part).rglob("*.jpg"))) == n * len(names)
    files = [file.read_bytes() for file in tmp_path.rglob("*.jpg")]
    assert len(set(files)) == len(files)  # no test image is among the others
    drawn = open_source(part="test", labeled=True)
    for number, name in enumerate(names):
        (*_, first) = sorted((tmp_path / "test" / name).iterdir(), reverse=True)
        assert first.read_bytes() == drawn.read(number)
    for part in ("labeled", "test"):
        assert sorted(place.name for place in (tmp_path / part).iterdir()) == sorted(names)
