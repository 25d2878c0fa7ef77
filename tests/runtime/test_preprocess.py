import io
import json
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, features

from kdedge.errors import DataError
from kdedge.records.record import parse_record
from kdedge.runtime.preprocess import ImageError, Preprocess, decode_image, resize_and_crop

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "mini" / "photos-full"


def preprocess_image(data: bytes, preprocess: Preprocess) -> np.ndarray:
    return normalized(decode_image(data), preprocess)


def normalized(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """[3, H, W], as training and evaluation compute it."""
    import torch

    from kdedge.loading.decoding import normalizer

    pixels = torch.from_numpy(np.array(resize_and_crop(image, preprocess)))
    return normalizer(preprocess, torch.device("cpu"))(pixels).numpy()


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def open_clip_result(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    open_clip = pytest.importorskip("open_clip")
    transform = open_clip.image_transform(
        preprocess.size_px,
        is_train=False,
        mean=preprocess.mean,
        std=preprocess.std,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
    )
    return transform(image).numpy()


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.sampled_from([1, 7, 32, 48, 65, 224]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    resize_mode=st.sampled_from(["shortest", "squash"]),
)
def test_any_rgb_image_gives_open_clips_own_tensor_to_the_last_bit(
    width, height, size, interpolation, resize_mode
):
    preprocess = Preprocess(size, MEAN, STD, interpolation, resize_mode)
    image = Image.fromarray(noise(width, height))
    expected = open_clip_result(image, preprocess)
    actual = normalized(image, preprocess)
    np.testing.assert_array_equal(expected, actual)
    assert actual.dtype == np.float32


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the folder of camera photos is not here")
def test_photos_give_open_clips_own_tensor_to_the_last_bit():
    preprocess = Preprocess(224, MEAN, STD)
    photos = sorted(PHOTOS.glob("*.jpg"))
    assert photos
    for photo in photos:
        with Image.open(photo) as image:
            expected = open_clip_result(image.convert("RGB"), preprocess)
        np.testing.assert_array_equal(expected, preprocess_image(photo.read_bytes(), preprocess))


def row(mode: str, *values: object) -> Image.Image:
    """An image one pixel high."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def palette() -> Image.Image:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return image


def deep(*values: int, order: str = "<") -> Image.Image:
    """A row of 16-bit gray values."""
    data = np.array([values], f"{order}u2").tobytes()
    return Image.frombytes("I;16B" if order == ">" else "I;16", (len(values), 1), data)


RANGES = [(0, 70000), (0, 65536), (-1, 8)]
COLORS = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
WHITE = [255, 255, 255]


def gray(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(row("RGB", (1, 2, 3), (4, 5, 6)), "PNG"), [[1, 2, 3], [4, 5, 6]]),
        (encode(row("L", 7, 200), "PNG"), gray(7, 200)),
        (encode(row("1", 0, 1), "PNG"), gray(0, 255)),
        # What is transparent shows white
        (
            encode(row("RGBA", (0, 0, 0, 0), (0, 0, 0, 128), (0, 0, 0, 255)), "PNG"),
            gray(255, 127, 0),
        ),
        (encode(row("LA", (10, 255), (10, 0)), "PNG"), gray(10, 255)),
        (encode(palette(), "PNG"), COLORS),
        (encode(palette(), "PNG", transparency=1), [COLORS[0], WHITE, COLORS[2]]),
        (encode(palette(), "PNG", transparency=b"\xff\x00\xff"), [COLORS[0], WHITE, COLORS[2]]),
        (
            encode(row("RGB", (1, 2, 3), (4, 5, 6)), "PNG", transparency=(1, 2, 3)),
            [WHITE, [4, 5, 6]],
        ),
        (encode(deep(0, 257, 514, 65535), "PNG", transparency=257), gray(0, 255, 2, 255)),
        # 16 bits are scaled and not clipped, also those of a dark image
        (encode(deep(0, 128, 129, 257, 30000, 65535), "PNG"), gray(0, 0, 1, 1, 117, 255)),
        (encode(deep(0, 128, 129, 257, 30000, 65535), "TIFF"), gray(0, 0, 1, 1, 117, 255)),
        (encode(deep(200, 200), "PNG"), gray(1, 1)),
        (encode(deep(0, 30000, 65535, order=">"), "TIFF"), gray(0, 117, 255)),
        (b"P5 3 1 65535\n" + np.array([0, 200, 65535], ">u2").tobytes(), gray(0, 1, 255)),
        (encode(row("I", 0, 257, 65535), "TIFF"), gray(0, 1, 255)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb_of_eight_bits(
    data: bytes, expected: list[list[int]]
) -> None:
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    assert np.asarray(decoded)[0].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once_in_every_format(orientation, kind):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = (255, 0, 0)  # top left
    upright[8:, :16] = (0, 255, 0)  # bottom left
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(undo(upright))), kind, exif=exif, **options)
    decoded = np.asarray(decode_image(data)).astype(int)
    assert decoded.shape == upright.shape
    # JPEG blurs color at edges; the middles of the quarters are enough to tell the turn.
    assert np.abs(decoded[2:6, 4:12] - upright[2:6, 4:12]).max() <= 8
    assert np.abs(decoded[10:14, 4:12] - upright[10:14, 4:12]).max() <= 8


def test_a_broken_exif_block_does_not_lose_the_image():
    image = Image.fromarray(noise(8, 8))
    data = encode(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xffgarbage")
    assert decode_image(data).size == (8, 8)


def cmyk_image() -> Image.Image:
    return Image.merge("CMYK", [Image.new("L", (16, 16), v) for v in (200, 30, 90, 40)])


def test_cmyk_jpegs_have_the_colors_that_were_printed():
    decoded = np.asarray(decode_image(encode(cmyk_image(), "JPEG", quality=100)))
    # (255 - ink) * (255 - black) / 255
    expected = np.array([55, 225, 165]) * 215 / 255
    assert np.abs(decoded[8, 8] - expected).max() <= 3


def test_ycck_jpegs_have_the_colors_that_were_printed():
    # A CMYK JPEG becomes YCCK by its Adobe marker's last byte; the stored numbers stay.
    plain = encode(cmyk_image(), "JPEG", quality=100)
    at = plain.index(b"Adobe") + 11
    assert plain[at] == 0
    data = plain[:at] + b"\x02" + plain[at + 1 :]
    y, cb, cr, stored_black = (255 - v for v in (200, 30, 90, 40))  # Adobe stores inverted
    # libjpeg gives 255 - RGB, which Adobe's files hold inverted: RGB are the inks.
    inks = np.clip(
        [
            y + 1.402 * (cr - 128),
            y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
            y + 1.772 * (cb - 128),
        ],
        0,
        255,
    )
    expected = (255 - inks) * stored_black / 255
    assert np.abs(np.asarray(decode_image(data))[8, 8] - expected).max() <= 3


@pytest.mark.parametrize(
    ("image", "said"),
    [
        *((row("I", *v), f"gray values from {v[0]} to {v[1]}") for v in RANGES),
        (row("F", 0.5, 2.0), "float pixels have no fixed range"),
    ],
)
def test_gray_beyond_16_bits_is_refused_with_its_range(image: Image.Image, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        decode_image(encode(image, "TIFF"))


def test_lab_images_are_refused_though_pillow_would_convert_them():
    image = Image.new("LAB", (4, 4), (128, 20, 30))
    assert image.convert("RGB").size == (4, 4)
    with pytest.raises(ImageError, match="Lab color is not supported"):
        decode_image(encode(image, "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_the_first_image_of_many_is_taken(kind):
    _skip_without(kind)
    frames = [Image.new("RGB", (64, 64), color) for color in ("#ff0000", "#00ff00")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(decode_image(data))[4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def _skip_without(kind: str) -> None:
    """Lets Pillow write HEIC; AVIF needs Pillow 11.3."""
    pillow_heif.register_heif_opener()
    if kind == "AVIF" and not ("avif" in features.modules and features.check("avif")):
        pytest.skip("this Pillow has no AVIF")


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_newer_formats_are_read_upright(kind):
    _skip_without(kind)
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:32] = (200, 20, 20)  # upper half red
    lying = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(lying, kind, quality=95, exif=exif.tobytes())  # HEIC says it in a box of its own
    decoded = np.asarray(decode_image(data))
    assert decoded.shape == (64, 32, 3)
    assert abs(decoded[8, 16].astype(int) - (200, 20, 20)).max() < 12
    assert decoded[56, 16].max() < 12


def test_heic_without_its_package_is_refused_with_the_way_to_get_it(tmp_path):
    pillow_heif.register_heif_opener()
    folder = tmp_path / "images"
    folder.mkdir()
    for name, kind in {"a.heic": "HEIF", "b.png": "PNG"}.items():
        (folder / name).write_bytes(encode(Image.new("RGB", (32, 32)), kind))
    (tmp_path / "list.csv").write_text("images/a.heic\nimages/b.png\n")
    script = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from kdedge.cli.main import run\n"
        "for place in sys.argv[1:]: run(['data', 'scan', place])"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "list.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.search(
        r"images +1\b.*skipped: +1 \.heic; \.heic: pip install 'kdedge\[heif\]'",
        done.stdout,
        re.DOTALL,
    ), done.stdout + done.stderr
    said = "a HEIC image; to read it, run: pip install 'kdedge[heif]'"
    assert said in done.stdout + done.stderr


def test_pillows_switches_are_as_before_also_while_many_threads_decode(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encode(Image.fromarray(noise(64, 64)), "JPEG")
    filters = list(warnings.filters)

    def outcome(i: int) -> bool:
        try:
            decode_image(whole if i % 2 else whole[: len(whole) // 2])
        except ImageError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, range(200)))
    assert outcomes == [False, True] * 100
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert filters == warnings.filters


def test_decoding_does_not_make_python_repeat_other_warnings():
    data = encode(Image.fromarray(noise(4, 4)), "PNG")
    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        for _ in range(3):
            decode_image(data)
            warnings.warn("told once", stacklevel=1)
    assert len(shown) == 1


def _read(values):
    return parse_record(Preprocess, json.dumps(values), where="x.json", remedy="Export again.")


def test_settings_survive_a_json_record():
    preprocess = Preprocess(48, MEAN, STD, "bilinear", "squash")
    assert _read(preprocess.to_dict()) == preprocess
    assert isinstance(preprocess.to_dict()["mean"], list)


@pytest.mark.parametrize(
    "change",
    [
        {"size_px": 0},
        {"size_px": "48"},
        {"mean": [0.5]},
        {"std": [0.1, 0.0, 0.1]},
        {"std": [0.1, float("nan"), 0.1]},
        {"interpolation": "nearest"},
        {"resize_mode": "longest"},
        {"mean": None},
    ],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(DataError, match=r"^x\.json"):
        _read(Preprocess(48, MEAN, STD).to_dict() | change)
