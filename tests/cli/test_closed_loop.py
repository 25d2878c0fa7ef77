"""From the frames that a device kept to a new student, and to the comparison with the old one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]
VIEWS = ("--set", "student.views=1", "--set", "teacher.run=runs/tiny/01")


def _watch_and_keep(
    kdedge: Run, artifact: str, folder: Path, draw_picture: Callable[..., None]
) -> int:
    """Runs `kdedge watch --keep` on a video of four scenes."""
    av = pytest.importorskip("av")
    with av.open("camera0.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj444p"
        for label in range(4):
            draw_picture(Path("scene.png"), label=label, number=50, side_px=64)
            scene = Image.open("scene.png").resize((96, 64))
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame.from_image(scene)))
        container.mux(stream.encode())
    watched = kdedge("watch", artifact, "camera0.avi", "--keep", str(folder))
    assert watched.code == 0, watched.err
    events = [json.loads(line) for line in watched.out.splitlines()]
    assert events[-1]["classified"] == 12
    kept = list(folder.glob("*.jpg"))
    assert len(kept) == 4, "one of each scene"
    return len(kept)


@pytest.mark.usefixtures("exported")
def test_kept_frames_are_distilled_from_with_the_teacher_run_on_them_alone_and_compared(
    kdedge: Run, draw_picture: Callable[..., None]
) -> None:
    pytest.importorskip("onnxruntime")
    filled = kdedge("teach", "r.yaml", *VIEWS, "--store")
    assert filled.code == 0, filled.err

    device = str(next(Path("runs/tiny/02/artifacts").iterdir()))
    n_kept = _watch_and_keep(kdedge, device, Path("pool/kept-1"), draw_picture)
    distilled = kdedge("distill", "r.yaml", *VIEWS)
    assert distilled.code == 0, distilled.err
    taken = rf"^Features of 40 of {40 + n_kept} images are taken from runs/\.cache/teacher_store/"
    assert re.search(taken, distilled.err, re.MULTILINE)
    run = Path("runs/tiny/03")
    hashes = json.loads((run / "provenance.json").read_text())["hashes"]
    assert (Path("runs/.cache/teacher_store") / hashes["teacher_store"][:16]).is_dir()

    exported = kdedge("export", str(run), "--onnx")
    assert exported.code == 0, exported.err

    before = {path: path.read_bytes() for path in Path("runs/tiny/02/artifacts").rglob("*.json")}
    arguments = ("compare", "runs/tiny/02", str(run), "test", "--labels", "--json")
    compared = kdedge(*arguments, "--output", "compared")
    assert compared.code == 0, compared.err
    found = json.loads(compared.out)
    assert found["old"]["file"] == "runs/tiny/02/artifacts/01/model.onnx"
    assert found["new"]["file"] == "runs/tiny/03/artifacts/01/model.onnx"
    assert (found["n_images"], found["labeled"]["n_labeled"]) == (20, 20)
    assert found["labeled"]["verdict"] in ("better", "worse", "no difference shown")
    assert Path("compared/index.html").is_file()
    # What the run's own evaluation says of the same images
    evaluation = json.loads((run / "eval.json").read_text())["student"]
    assert found["labeled"]["new_accuracy_percent"] == evaluation["all"]

    unlabeled = kdedge("compare", "runs/tiny/02", str(run), "pool/kept-1")
    assert unlabeled.code == 0, unlabeled.err
    assert f"{n_kept} images" in unlabeled.out
    assert {path: path.read_bytes() for path in before} == before
