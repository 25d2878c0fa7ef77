"""`kdedge predict`: saved images, the least certain images, videos."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.errors import RecipeError, ResourceError
from kdedge.inference.saved_images import SavedImages

pytestmark = pytest.mark.usefixtures("work")

Run = Callable[..., Any]
COLORS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


@pytest.fixture
def work(device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with an artifact and images, one of them broken."""
    device.write_artifact(tmp_path / "art")
    for name, color in (("a", (250, 10, 10)), ("sub/a", (9, 9, 9)), ("z", (90, 80, 80))):
        device.write_image(tmp_path / f"pics/{name}.jpg", color)
    (tmp_path / "pics/broken.jpg").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def film(path: Path, *, is_turned: bool = False) -> Path:
    """Writes a video of ten frames of each color with a white upper quarter, ten a second."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for color in COLORS:
            pixels = np.full((48, 64, 3), color, np.uint8)
            pixels[:12] = 255
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if is_turned:  # the display matrix of a camera that was held upright
        data = bytearray(path.read_bytes())
        start = data.index(b"tkhd") + 44
        data[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
    return path


def saved(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_images_are_saved_with_a_band_below_them_and_none_replaces_another(kdedge: Run) -> None:
    done = kdedge("predict", "art", "pics", "pics/sub/a.jpg", "--save", "new/out", "--top", "2")
    assert done.code == 0, done.err
    assert done.err.endswith("\nWrote new/out\n")
    assert saved("new/out") == ["a-2.jpg", "a.jpg", "sub_a.jpg", "z.jpg"]
    picture = np.asarray(Image.open("new/out/a.jpg"))
    assert picture[:200, :300].mean(axis=(0, 1)) == pytest.approx((250, 10, 10), abs=3)
    band = picture[picture.shape[1] * 24 // 30 :]
    assert (band > 200).any()
    assert np.median(band) < 20
    SavedImages(Path("new/out")).save("tall", Image.new("RGB", (9, 70_000)), [("red", "90 %")])
    assert len(np.asarray(Image.open("new/out/tall.jpg"))) == 65_500


def test_an_image_that_another_program_saved_meanwhile_stays(work: Path) -> None:
    (work / "a.jpg").write_text("of the other")
    with pytest.raises(ResourceError, match="file exists"):
        SavedImages(work).save("a.jpg", b"mine", None)
    assert (work / "a.jpg").read_text() == "of the other"


def test_a_long_name_in_another_script_is_cut_between_two_characters(kdedge: Run) -> None:
    Path("類" * 60).mkdir()
    Path("pics/a.jpg").rename(f"{'類' * 60}/{'別' * 60}x.jpg")
    kdedge("predict", "art", ".", "--save", "../out").succeeds()
    assert f"類類類類_{'別' * 60}x.jpg" in saved("../out")


def test_a_folder_without_images_is_not_made(
    kdedge: Run, small_disk: Callable[[int], Path]
) -> None:
    unread = kdedge("predict", "art", "pics/broken.jpg", "--save", "new/out")
    assert (unread.code, "Wrote" in unread.err, Path("new").exists()) == (3, False, False)
    disk = small_disk(4)
    (disk / "all").write_bytes(bytes(4096))
    done = kdedge("predict", "art", "pics", "--save", str(disk / "new/out"))
    assert (done.code, "the disk is full" in done.err) == (7, True)


@pytest.mark.parametrize("option", ["--save", "--output"])
def test_what_is_there_is_not_overwritten(kdedge: Run, option: str) -> None:
    taken = "pics" if option == "--save" else "pics/a.jpg"
    done = kdedge("predict", "art", "pics", option, taken)
    assert (done.code, done.out) == (RecipeError.exit_code, "")
    assert f"{taken} exists, and nothing is overwritten." in done.err
    assert saved("pics") == ["a.jpg", "broken.jpg", "sub", "z.jpg"]


def test_the_least_certain_images_come_lowest_score_first_and_are_copied(kdedge: Run) -> None:
    every = {
        row["image"]: row["score_percent"]
        for row in map(
            json.loads, kdedge("predict", "art", "pics", "--format", "jsonl").out.split("\n")[:-1]
        )
        if "error" not in row
    }
    done = kdedge(
        "predict", "art", "pics", "--uncertain", "2", "--format", "jsonl", "--save", "out"
    )
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert "error" in rows[0]  # what cannot be read is told all the same
    assert [row["image"] for row in rows[1:]] == sorted(every, key=every.get)[:2]
    assert saved("out") == ["sub_a.jpg", "z.jpg"]
    assert Path("out/z.jpg").read_bytes() == Path("pics/z.jpg").read_bytes()


def test_every_nth_frame_of_a_video_is_named_by_file_number_and_time(kdedge: Run) -> None:
    film(Path("v.mp4"))
    Path("bad.mp4").write_bytes(Path("v.mp4").read_bytes()[:500])
    done = kdedge("predict", "art", "bad.mp4", "v.mp4", "--every", "10", "--save", "out").succeeds()
    assert [line.split("  ")[:2] for line in done.out.splitlines()[1:]] == [
        ["v.mp4:1@0.000s", "red"],
        ["v.mp4:11@1.000s", "green"],
        ["v.mp4:21@2.000s", "blue"],
    ]
    assert done.out.startswith("bad.mp4  unreadable: the video cannot be decoded: ")
    assert saved("out") == ["v-000001.jpg", "v-000011.jpg", "v-000021.jpg"]
    Path("folder").mkdir()
    Path("v.mp4").rename("folder/v.mp4")
    Path("out/v-000001.jpg").rename("folder/image.jpg")
    done = kdedge("predict", "art", "folder")
    assert "folder: skipped files: 1 .mp4.\n  To classify a video, give its path." in done.err


def test_a_turned_video_is_shown_upright(tmp_path: Path) -> None:
    from kdedge.runtime.video import frames_of_video

    (frame,) = frames_of_video(film(tmp_path / "v.mp4", is_turned=True), every=30)
    assert frame.image.size == (48, 64)
    assert np.asarray(frame.image)[:, 40:].min() > 200  # what was above is on the right
