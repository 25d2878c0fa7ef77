"""Streams of JPEGs: each image as it arrives, whole, and nothing else."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.errors import DataError, SetupError
from kdedge.runtime.frames import frames_from_camera, frames_from_stream
from kdedge.runtime.preprocess import UnusableImage, decode_image


def jpeg(seed: int, **options: Any) -> bytes:
    """A noisy JPEG: its data has many 0xff bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30 + seed, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 98, **options})
    return file.getvalue()


def with_thumbnail(data: bytes) -> bytes:
    """The JPEG with a whole JPEG in an APP1 segment, as cameras write them."""
    inner = jpeg(50)[:60000]
    segment = b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner
    return data[:2] + segment + data[2:]


def split(data: bytes, block: int) -> list[bytes]:
    blocks = iter([data[i : i + block] for i in range(0, len(data), block)])
    return list(frames_from_stream(lambda: next(blocks, b"")))


KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "all eight restart markers": {"restart_marker_blocks": 1, "subsampling": 0},
    "gray quality 20": {"quality": 20},
    "comment": {"comment": b"\xff\xd9\xff\xd8\xff"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 7, 65536])
def test_images_come_out_byte_by_byte_as_they_went_in(kind: str, block: int) -> None:
    images = [jpeg(seed, **KINDS[kind]) for seed in range(3)]
    assert split(b"".join(images), block) == images


@pytest.mark.parametrize("block", [1, 1000])
def test_a_thumbnail_is_not_an_image_of_its_own(block: int) -> None:
    images = [with_thumbnail(jpeg(1)), jpeg(2)]
    assert split(b"".join(images), block) == images


@pytest.mark.parametrize("block", [1, 5, 65536])
def test_what_stands_between_images_is_skipped(block: int) -> None:
    boundary = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n"
    images = [jpeg(1, **KINDS["all eight restart markers"]), jpeg(2)]
    assert split(images[0] + boundary + images[1] + b"\r\n--frame--\xff", block) == images


@pytest.mark.parametrize("block", [1, 5, 65536])
@pytest.mark.parametrize("before", [b"", b"\r\n", b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n"])
def test_a_multipart_answer_may_begin_with_its_boundary(before: bytes, block: int) -> None:
    boundary = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
    images = [jpeg(1), jpeg(2)]
    stream = before + boundary + images[0] + b"\r\n" + boundary + images[1]
    assert split(stream, block) == images


def test_a_multipart_answers_first_image_is_given_before_the_next_one_is_read() -> None:
    blocks = iter([b"--frame\r\n", b"Content-Type: image/jpeg\r\n\r\n", jpeg(1), jpeg(2)])
    assert next(frames_from_stream(lambda: next(blocks, b""))) == jpeg(1)
    assert next(blocks) == jpeg(2)


def test_an_image_is_given_before_the_next_one_is_read() -> None:
    images = [jpeg(1), jpeg(2)]
    blocks = iter(images)
    found = frames_from_stream(lambda: next(blocks, b""))
    assert next(found) == images[0]
    assert next(blocks) == images[1]


@pytest.mark.parametrize("n_missing", [1, 2, 100, 1500])
def test_a_last_image_that_is_cut_off_is_given_and_cannot_be_decoded(n_missing: int) -> None:
    images = [jpeg(1), jpeg(2)]
    found = split(b"".join(images)[:-n_missing], 4096)
    assert found == [images[0], images[1][:-n_missing]]
    if n_missing > 2:
        with pytest.raises(UnusableImage):
            decode_image(found[1])


@pytest.mark.parametrize("n_kept", [624, 700, 1500])
def test_an_image_that_breaks_off_in_its_scan_does_not_take_the_next_one_along(n_kept: int) -> None:
    images = [jpeg(1)[:n_kept], jpeg(2), jpeg(3)]
    assert split(b"".join(images), 4096) == images


@pytest.mark.parametrize("n_fill", [1, 2, 3])
def test_fill_bytes_before_a_marker_are_part_of_the_image(n_fill: int) -> None:
    whole = with_thumbnail(jpeg(1))  # whose start is found if the image's own markers are lost
    images = [whole[:2] + b"\xff" * n_fill + whole[2:], jpeg(2)]
    assert split(b"".join(images), 7) == images
    assert np.array_equal(decode_image(images[0]), decode_image(whole))


@pytest.mark.parametrize("n_kept", [3, 4, 5])
def test_a_stream_that_ends_in_a_segments_head_gives_what_there_is(n_kept: int) -> None:
    images = [jpeg(1), jpeg(2)[:n_kept]]
    assert split(b"".join(images), 7) == images


@pytest.mark.parametrize("n_kept", [50, 200, 600])
def test_an_image_that_breaks_off_in_a_segment_takes_one_along(n_kept: int) -> None:
    """The segment's length reaches into the next image, whose end is then the first to be found."""
    images = [jpeg(1)[:n_kept], jpeg(2), jpeg(3)]
    assert split(b"".join(images), 4096) == [images[0] + images[1], images[2]]


def test_damaged_markers_lose_one_image_only() -> None:
    damaged = bytearray(jpeg(1))
    damaged[20:22] = b"\0\0"  # where a marker should be
    assert split(bytes(damaged) + jpeg(2), 4096)[-1] == jpeg(2)


def test_a_stream_that_is_no_jpeg_is_one_image() -> None:
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    assert split(png.getvalue(), 10) == [png.getvalue()]
    assert split(b"x", 10) == [b"x"]


def test_an_empty_stream_has_no_image() -> None:
    assert split(b"", 10) == []


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xda\x00\x02", b"PNG"])
def test_a_stream_without_an_end_is_stopped(start: bytes) -> None:
    blocks = iter([start])
    with pytest.raises(DataError, match="without the end of an image"):
        list(frames_from_stream(lambda: next(blocks, bytes(1 << 16)), max_bytes=1 << 20))


class Camera:
    """A camera behind OpenCV with two frames: blue, then green, in OpenCV's order BGR."""

    n_open = 0

    def __init__(self, index: int) -> None:
        self._frames = iter([(255, 0, 0), (0, 255, 0)])
        self._is_there = index == 0
        Camera.n_open += 1

    def isOpened(self) -> bool:
        return self._is_there

    def set(self, key: int, value: int) -> None:
        pass

    def read(self) -> tuple[bool, Any]:
        color = next(self._frames, None)
        is_there = color is not None
        return is_there, np.full((4, 4, 3), color, np.uint8) if is_there else None

    def release(self) -> None:
        Camera.n_open -= 1


@pytest.fixture
def opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV with one camera, number 0."""
    module = ModuleType("cv2")
    monkeypatch.setattr(Camera, "n_open", 0)
    vars(module).update(
        VideoCapture=Camera,
        CAP_PROP_BUFFERSIZE=38,
        COLOR_BGR2RGB=4,
        cvtColor=lambda frame, code: frame[:, :, ::-1].copy(),
    )
    monkeypatch.setitem(sys.modules, "cv2", module)


@pytest.mark.usefixtures("opencv")
def test_a_cameras_frames_are_rgb_and_its_end_is_told() -> None:
    found = frames_from_camera(0)
    assert next(found).getpixel((0, 0)) == (0, 0, 255)
    assert next(found).getpixel((0, 0)) == (0, 255, 0)
    with pytest.raises(SetupError, match="Camera 0 gives no more frames"):
        next(found)
    assert Camera.n_open == 0


@pytest.mark.usefixtures("opencv")
def test_a_camera_is_given_back_where_its_reader_stops() -> None:
    found = frames_from_camera(0)
    next(found)
    assert Camera.n_open == 1
    found.close()
    assert Camera.n_open == 0


@pytest.mark.usefixtures("opencv")
def test_a_camera_that_is_not_there_is_told() -> None:
    with pytest.raises(SetupError, match="Camera 5 cannot be opened"):
        next(frames_from_camera(5))


def test_without_opencv_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SetupError, match="pip install opencv-python-headless"):
        next(frames_from_camera(0))
