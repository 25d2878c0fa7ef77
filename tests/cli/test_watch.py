"""`kdedge watch`: videos, streams and folders, whatever becomes of them, as JSON lines."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge as package
from kdedge.errors import SetupError
from kdedge.runtime.backend import softmax
from kdedge.runtime.none_of_these import GAUSSIANS_FILE, Gaussians, NoneBelow, NoneOfThese

pytestmark = pytest.mark.usefixtures("work")

Run = Callable[..., Any]
COLORS = {"red": (250, 10, 10), "green": (0, 230, 0), "blue": (5, 5, 240), "gray": (99, 99, 99)}


@pytest.fixture
def work(device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with an artifact."""
    device.write_artifact(tmp_path / "art")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(color: str, seed: int = 0) -> Image.Image:
    """An image of a color, with spots that tell one from another."""
    rng = np.random.default_rng(seed)
    spots = rng.normal(0, 25, (4, 6, 1)).repeat(8, 0).repeat(8, 1)
    return Image.fromarray((np.array(COLORS[color]) + spots).clip(0, 255).astype(np.uint8))


def write_video(path: Path, colors: list[str], *, n_frames: int = 6) -> Path:
    """Writes a video with scenes of these colors.

    The times of a .ts file begin at 60 seconds, with sound; the picture begins a second later.
    """
    av = pytest.importorskip("av")
    is_ts = path.suffix == ".ts"
    with av.open(str(path), "w", options={"output_ts_offset": "60"} if is_ts else {}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        if is_ts:
            sound = container.add_stream("mp2", rate=16_000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), layout="mono")
            silence.sample_rate = 16_000
            container.mux([*sound.encode(silence), *sound.encode()])
        container.start_encoding()
        for number, seed in enumerate(np.arange(len(colors)).repeat(n_frames)):
            frame = av.VideoFrame.from_image(picture(colors[seed], seed))
            frame.pts = number + 10 * is_ts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def events(text: str, kind: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    return [one for one in found if kind in (None, one["event"])]


@pytest.mark.parametrize("name", ["v.avi", "v.ts"])
def test_a_video_gives_a_line_for_each_decision_and_a_summary(kdedge: Run, name: str) -> None:
    write_video(Path(name), ["red", "green"])
    done = kdedge("watch", "art", name, "--window", "3")
    assert done.code == 0
    start, red, green, end = events(done.out)
    assert (start["event"], start["kind"], start["source"]) == ("start", "video", name)
    assert (start["window"], start["drift"], start["file"]) == (3, "stream", "model.onnx")
    assert (red["class"], red["frame"], red["since_frame"]) == ("red", 2, 1)
    assert (green["class"], green["frame"], green["since_frame"]) == ("green", 8, 7)
    seconds = (1.7, 1.6) if name == "v.ts" else (0.7, 0.6)  # after the sound
    assert (green["seconds"], green["since_seconds"], green["is_none"]) == (*seconds, False)
    assert 99 < green["score_percent"] <= 100
    assert (end["classified"], end["unreadable"], end["dropped"]) == (12, 0, 0)
    assert f"{name}: 12 frames classified." in done.err


def test_frame_events_are_lines_for_each_frame_too(kdedge: Run) -> None:
    write_video(Path("v.avi"), ["red", "green"])
    done = kdedge("watch", "art", "v.avi", "--frame-events", "--every", "4", "--window", "1")
    frames = events(done.out, "frame")
    assert [(one["frame"], one["class"], one["decision"]) for one in frames] == [
        *[(1, "red", "red"), (5, "red", "red"), (9, "green", "green")]
    ]


def test_a_frame_below_the_minimum_supports_no_class(kdedge: Run) -> None:
    write_video(Path("v.avi"), ["red"])
    done = kdedge("watch", "art", "v.avi", "--min-score", "100", "--frame-events")
    assert not events(done.out, "decision")
    assert {one["decision"] for one in events(done.out, "frame")} == {None}


@pytest.mark.parametrize("what", ["empty", "no frame", "truncated at once", "no video"])
def test_a_video_without_a_frame_is_one_message(kdedge: Run, what: str) -> None:
    path = Path("v.avi")
    if what == "no video":
        path = Path("art/artifact.json")
    else:
        write_video(path, ["red"] if what == "truncated at once" else [], n_frames=3)
        if what != "no frame":
            path.write_bytes(path.read_bytes()[: 0 if what == "empty" else 200])
    done = kdedge("watch", "art", str(path))
    assert done.code == 3
    assert f"{path} has no frame that could be classified." in done.err
    assert "Traceback" not in done.err


def test_a_truncated_video_is_watched_to_its_damage(kdedge: Run) -> None:
    write_video(Path("v.avi"), ["red"] * 20)
    Path("t.avi").write_bytes(Path("v.avi").read_bytes()[:-3000])
    done = kdedge("watch", "art", "t.avi")
    assert done.code == 0
    (end,) = events(done.out, "end")
    assert 0 < end["classified"] < 120


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("nowhere.mp4", 3, "nowhere.mp4 does not exist"),
        ("", 3, "SOURCE is empty text"),
        ("a" * 300, 3, "cannot be read"),
        ("999", 4, "/dev/video999 cannot be opened: no such file"),
        ("/dev/video998", 4, "/dev/video998 cannot be opened"),
        ("rtsp://me:secret@127.0.0.1:9/x", 4, "rtsp://127.0.0.1:9/x cannot be opened: connection"),
        ("nosuch://x", 4, "nosuch://x cannot be opened: protocol not found"),
    ],
)
def test_a_source_that_is_not_there_is_one_message(
    kdedge: Run, source: str, code: int, message: str
) -> None:
    pytest.importorskip("av")
    done = kdedge("watch", "art", source)
    assert done.code == code
    assert message in done.err
    assert "secret" not in done.err + done.out
    assert done.out == ""


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--window", "0"), 2, "--window"),
        (("--drift", "artifact"), 3, "--drift stream"),
        (("--existing",), 2, "--existing is for a folder"),
    ],
)
def test_wrong_options_are_refused(
    kdedge: Run, options: tuple[str, ...], code: int, message: str
) -> None:
    write_video(Path("v.avi"), ["red"])
    done = kdedge("watch", "art", "v.avi", *options)
    assert (done.code, message in done.err) == (code, True)


def test_an_artifact_without_scores_decides_and_has_no_drift_alarm(
    kdedge: Run, device: ModuleType, work: Path
) -> None:
    device.write_artifact(work / "ranks", head="argmax")
    write_video(work / "v.avi", ["red"])
    done = kdedge("watch", "ranks", "v.avi")
    (decision,) = events(done.out, "decision")
    assert (decision["class"], decision["score_percent"]) == ("red", None)
    assert events(done.out, "start")[0]["drift"] == "off"
    refused = kdedge("watch", "ranks", "v.avi", "--drift", "stream")
    assert refused.code == 2
    assert "--drift: ranks was exported with the head argmax" in refused.err


def test_the_drift_alarm_alone_needs_scipy(kdedge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(Path("v.avi"), ["red"])
    monkeypatch.setitem(sys.modules, "scipy", None)
    kdedge("watch", "art", "v.avi").fails(4, "pip install 'kdedge[watch]'")
    assert kdedge("watch", "art", "v.avi", "--drift", "off").code == 0


def test_a_folder_is_watched_until_a_signal_and_each_file_has_a_line(
    start: Callable[..., Any],
) -> None:
    folder = Path("in")
    folder.mkdir()
    picture("blue").save(folder / "there-before.jpg")
    running = start("watch", "art", "in")
    running.wait_until(lambda: "start" in running.stdout)
    picture("red").save("a.part", "JPEG")
    Path("a.part").rename(folder / "a.jpg")
    running.wait_until(lambda: "a.jpg" in running.stdout)
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-300])
    running.wait_until(lambda: "broken.jpg" in running.stdout)
    folder.rename("away")
    running.wait_until(lambda: "lost" in running.stdout)
    Path("away").rename(folder)
    running.wait_until(lambda: "back" in running.stdout)
    running.send(signal.SIGTERM)
    assert running.wait() == 143
    found = events(running.stdout)
    assert [one["event"] for one in found] == [
        *("start", "frame", "decision", "unreadable", "lost", "back")
    ]
    assert (found[1]["file"], found[1]["class"]) == ("a.jpg", "red")
    assert found[3]["file"] == "broken.jpg"
    assert "in: 1 frame classified, 1 unreadable." in running.stderr
    assert "Traceback" not in running.stderr


def test_a_source_that_is_lost_again_is_warned_of_again(start: Callable[..., Any]) -> None:
    folder = Path("in")
    folder.mkdir()
    running = start("watch", "art", "in")
    running.wait_until(lambda: "start" in running.stdout)
    for number in (1, 2):
        folder.rename("away")
        running.wait_until(lambda n=number: running.stdout.count('"lost"') == n)
        Path("away").rename(folder)
        running.wait_until(lambda n=number: running.stdout.count('"back"') == n)
    running.send(signal.SIGTERM)
    running.wait()
    assert running.stderr.count("in is lost: no such file or directory.") == 2


def test_a_file_that_ends_within_a_line_goes_on_with_a_new_one() -> None:
    """As after a full disk, by a service that appends to the file and is started again."""
    write_video(Path("v.avi"), ["red"])
    lines = Path("events.jsonl")
    lines.write_text('{"event": "end"}\n{"event": "fra')
    command = [sys.executable, "-m", "kdedge", "watch", "art", "v.avi"]
    env = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    with lines.open("ab") as file:
        subprocess.run(command, stdout=file, env=env, timeout=60, check=True)
    first, broken, *others = lines.read_text().splitlines()
    assert (first, broken) == ('{"event": "end"}', '{"event": "fra')
    found = [json.loads(line)["event"] for line in others]
    assert (found[0], found[-1]) == ("start", "end")


def test_a_reader_that_ends_ends_it_quietly() -> None:
    """As by `| head`: the line that finds no reader is that of the second file."""
    Path("in").mkdir()
    picture("blue").save("in/a.jpg")
    command = [sys.executable, "-m", "kdedge", "watch", "art", "in", "--existing"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])},
    )  # fmt: skip
    assert running.stderr is not None
    try:
        first = [json.loads(running.stdout.readline())["event"] for _ in range(3)]
        assert first == ["start", "frame", "decision"]
        running.stdout.close()
        picture("red").save("b.part", "JPEG")
        Path("b.part").rename("in/b.jpg")
        assert running.wait(60) == 141  # a shell's code for SIGPIPE
        told = running.stderr.read()
    finally:
        running.kill()
        running.stderr.close()
    assert "Traceback" not in told
    assert told.count("\n") == 1  # the summary
    assert "in: 2 frames classified." in told


class _Camera(BaseHTTPRequestHandler):
    """Sends JPEGs in a multipart response, and breaks it off after some."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        self.server.n_served += 1  # type: ignore[attr-defined]
        color = "red" if self.server.n_served <= 2 else "green"  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            for _ in range(12):
                file = io.BytesIO()
                picture(color).save(file, "JPEG")
                data = file.getvalue()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a network camera that goes away and comes back."""
    pytest.importorskip("av")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Camera)
    server.n_served = 0  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/video"
    server.shutdown()
    server.server_close()


def test_a_network_camera_that_goes_away_is_opened_again(camera: str) -> None:
    watching = package.watch(artifact="art", source=camera.replace("//", "//me:secret@"), window=1)
    found: list[dict[str, Any]] = []
    for event in watching:
        found.append(event)
        if event.get("class") == "green":
            break
    watching.close()
    assert "secret" not in json.dumps(found)
    assert (found[0]["kind"], found[0]["source"]) == ("stream", camera)
    kinds = [one["event"] for one in found]
    assert kinds[:4] == ["start", "decision", "lost", "back"]
    assert found[1]["class"] == "red"
    assert found[-1]["frame"] > found[1]["frame"]


def test_the_drift_alarm_is_one_line_and_a_warning_and_ends_well(kdedge: Run) -> None:
    rng = np.random.default_rng(0)
    scenes = [[*COLORS][c] for c in rng.integers(0, 3, 240)]
    write_video(Path("v.avi"), [*scenes, *["gray"] * 40], n_frames=1)
    done = kdedge("watch", "art", "v.avi", "--drift-frames", "1", "--drift", "stream")
    assert done.code == 0
    (learned,) = events(done.out, "learned")
    assert 200 <= learned["frame"] <= 240
    (alarm, *_) = events(done.out, "drift")
    assert alarm["frame"] > 240
    assert alarm["most_changed"][0]["now_percent"] != alarm["most_changed"][0]["reference_percent"]
    assert set(alarm["now"]) == {"mean_score_percent", "none_percent"}
    assert "frames are unlike the reference" in done.err


def test_a_folder_in_dev_is_no_camera() -> None:
    from kdedge.serving.source import open_frames

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert open_frames(folder, every=1, existing=False).kind == "folder"
    with pytest.raises(SetupError, match="/dev/null cannot be opened"):
        open_frames("/dev/null", every=1, existing=False)


def test_the_smoke_set_is_the_reference_where_it_has_enough_images(
    kdedge: Run, device: ModuleType, work: Path
) -> None:
    from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, write_smoke_set

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (120, 1, 1, 3)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    smoke_set = SmokeSet(pixels, np.zeros((120, 4), np.float32))
    write_smoke_set(work / "art" / SMOKE_SET, smoke_set)
    digest = hashlib.sha256((work / "art" / SMOKE_SET).read_bytes()).hexdigest()
    artifact = package.open_artifact("art")
    dataclasses.replace(artifact, others={SMOKE_SET: digest}).save()
    write_video(work / "v.avi", ["gray"] * 40, n_frames=1)
    done = kdedge("watch", "art", "v.avi", "--drift-frames", "1")
    assert events(done.out, "start")[0]["drift"] == "artifact"
    alarm = events(done.out, "drift")[0]
    weight, bias = device.WEIGHT.astype(float), device.BIAS.astype(float)
    best = softmax(pixels[:, 0, 0] / 255 @ weight + bias).max(axis=1)
    assert alarm["reference"]["mean_score_percent"] == pytest.approx(100 * best.mean(), abs=0.01)
    assert done.code == 0


def test_none_of_the_classes_is_an_answer_and_a_statistic(
    kdedge: Run, device: ModuleType, work: Path
) -> None:
    logits = [np.array(COLORS[name]) / 255 @ device.WEIGHT + device.BIAS for name in COLORS]
    gaussians = Gaussians(np.eye(4), np.stack(logits[:3]).astype(np.float64))
    (work / "art" / GAUSSIANS_FILE).write_bytes(gaussians.to_bytes())
    digest = hashlib.sha256(gaussians.to_bytes()).hexdigest()
    artifact = package.open_artifact("art")
    limits = NoneBelow(-15.0, tuple(np.linspace(-15.0, 0.0, 101).tolist()))
    dataclasses.replace(
        artifact,
        files=(dataclasses.replace(artifact.files[0], none_below=limits),),
        others={GAUSSIANS_FILE: digest},
        none_of_these=NoneOfThese("mahalanobis", GAUSSIANS_FILE, 95.0, "images", 100),
    ).save()
    write_video(work / "v.avi", [*["red", "green", "blue"] * 70, *["gray"] * 20], n_frames=1)
    done = kdedge("watch", "art", "v.avi", "--drift-frames", "1", "--window", "1", "--frame-events")
    assert done.code == 0
    frames, changes = events(done.out, "frame"), events(done.out, "decision")
    assert [one["is_none"] for one in frames] == [False] * 210 + [True] * 20
    assert (changes[-1]["class"], changes[-1]["is_none"], changes[-1]["frame"]) == (
        *("none", True, 211),
    )
    assert (frames[0]["known_percent"] > 50, frames[-1]["known_percent"]) == (True, 0)
    alarms = {one["statistic"]: one for one in events(done.out, "drift")}
    assert "none" in alarms
    assert alarms["none"]["now"]["none_percent"] > 50
    assert alarms["none"]["reference"]["none_percent"] == 0


# `kdedge serve`: its address on stdout, and its end by signals


def serve(start: Run) -> tuple[Any, str]:
    """The process of a server, and its address."""
    for name in ("uvicorn", "prometheus_client"):
        pytest.importorskip(name, reason="needs the extra serve")
    process = start("serve", "art", "--port", "0")
    process.wait_until(lambda: "\n" in process.stdout)
    assert process.stdout.startswith("Serving colors at http://127.0.0.1:"), process.stderr
    return process, process.stdout.split()[3].rstrip(",")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_until_a_signal_ends_it(
    start: Run, paint: Callable[..., Path], signum: Any
) -> None:
    process, url = serve(start)
    data = paint(Path("red.jpg"), (250, 10, 10)).read_bytes()
    with urllib.request.urlopen(f"{url}/predict", data) as answer:
        assert json.load(answer)["class"] == "red"
    process.send(signum)
    assert process.wait() == 0
    assert process.stderr == "Finishing the requests in progress, then stopping.\n"


def test_a_second_ctrl_c_does_not_wait(start: Run) -> None:
    process, url = serve(start)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        process.send(signal.SIGINT)
        process.wait_until(lambda: "Finishing" in process.stderr)
        process.send(signal.SIGINT)
        assert process.wait() == 130
    assert process.stderr.endswith("kdedge: interrupted.\n")
