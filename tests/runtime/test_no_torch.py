"""The device's side runs where torch, onnx and the training packages are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kdedge
from kdedge.runtime.artifact import Artifact

HEAVY = ("torch", "torchvision", "open_clip", "tensorboard", "onnx", "webdataset", "scipy")
LIGHT = [
    *("api.model", "runtime.artifact", "runtime.preprocess", "runtime.cuda"),
    *("inference.choose", "inference.classify", "targets.registry", "targets.onnx.run"),
    *("targets.tensorrt.run", "targets.tensorrt_rtx.run", "serving.watch", "artifacts.parity"),
    *("targets.tensorrt.build", "targets.tensorrt_rtx.build", "artifacts.build"),
    *("config.load", "runs.find", "cli.main", "cli.show", "cli.distill", "records.evaluation"),
]

DRIVER = """
import json, sys
sys.path.insert(0, {package!r})
class Blocker:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Blocker())
{what}
print(json.dumps({{
    "code": code,
    "loaded": sorted(n for n in {heavy!r} if sys.modules.get(n) is not None),
}}), file=sys.stderr)
"""


def drive(what: str, *, blocked: tuple[str, ...] = ()) -> tuple[str, dict[str, object]]:
    """Runs lines in a process of their own; gives stdout, exit code and heavy packages loaded."""
    package = str(Path(kdedge.__file__).parents[1])
    code = DRIVER.format(package=package, blocked=blocked, what=what, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def test_importing_the_devices_side_or_a_command_loads_no_engine_and_nothing_heavy() -> None:
    unwanted = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cv2", "av", *HEAVY)
    what = (
        f"from importlib import import_module\ncode = []\nfor name in {LIGHT}:\n"
        "    import_module(f'kdedge.{name}')\n"
        f"    code += [(name, other) for other in {unwanted} if other in sys.modules]"
    )
    _, said = drive(what)
    assert said == {"code": [], "loaded": []}


@pytest.fixture
def predict(artifact: Artifact, paint: Callable[..., Path], tmp_path: Path) -> str:
    """Lines that run `kdedge predict` on a folder of images."""
    pytest.importorskip("onnxruntime")
    paint(tmp_path / "pictures/a.png", (250, 0, 0))
    paint(tmp_path / "pictures/b.png", (0, 0, 250))
    arguments = ["predict", str(artifact.path), str(tmp_path / "pictures"), "--format", "csv"]
    return f"from kdedge.cli.main import run\ncode = run({arguments!r})"


@pytest.mark.parametrize("blocked", [(), HEAVY])
def test_predicting_loads_nothing_heavy_and_works_without(
    predict: str, blocked: tuple[str, ...]
) -> None:
    stdout, said = drive(predict, blocked=blocked)
    assert said == {"code": 0, "loaded": []}
    assert [line.split(",")[1] for line in stdout.splitlines()] == ["class", "red", "blue"]


def test_comparing_works_where_torch_and_onnx_cannot_be_imported(
    predict: str, artifact: Artifact
) -> None:
    del predict  # it has painted the images
    pictures = str(artifact.path.parent / "pictures")
    arguments = ["compare", str(artifact.path), str(artifact.path), pictures, "--json"]
    what = f"from kdedge.cli.main import run\ncode = run({arguments!r})"
    stdout, said = drive(what, blocked=HEAVY)
    assert said == {"code": 0, "loaded": []}
    assert json.loads(stdout)["n_agree"] == 2


def test_watching_works_where_torch_and_onnx_cannot_be_imported(
    artifact: Artifact, paint: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    paint(tmp_path / "pictures/a.png", (250, 0, 0))
    what = (
        f"import kdedge\nevents = kdedge.watch({str(artifact.path)!r},"
        f" {str(tmp_path / 'pictures')!r}, existing=True)\n"
        "code = [next(events).get('class') for _ in range(2)][1]\nevents.close()"
    )
    _, said = drive(what, blocked=tuple(name for name in HEAVY if name != "scipy"))
    assert said["code"] == "red"
    assert said["loaded"] in ([], ["scipy"])  # of the drift alarm
