"""Image files that are broken, hostile or not images at all."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from kdedge.runtime.preprocess import ImageError, decode_image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), kind)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_of_claimed_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", body)
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("load_truncated", [False, True])
def test_a_truncated_file_is_refused_whatever_pillow_was_told(kind, load_truncated, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", load_truncated)
    data = photo(kind)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) * 2 // 3])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is load_truncated


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_a_bomb_is_refused_by_its_header_whatever_limit_pillow_has(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="too large"):
        decode_image(png_of_claimed_size(65_500, 65_500))


def test_the_pixel_limit_is_exact():
    data = encode(Image.new("RGB", (20, 10)), "PNG")
    assert decode_image(data, max_pixels=200).size == (20, 10)
    with pytest.raises(ImageError, match="20 x 10 pixels, the limit is 199 pixels"):
        decode_image(data, max_pixels=199)


def test_the_limit_is_a_hundred_million_pixels_where_none_is_given() -> None:
    data = b"P5 100000001 1 255\n"  # a head alone: nothing is to be reserved for it
    with pytest.raises(ImageError, match="the limit is 100000000 pixels"):
        decode_image(data)


def test_a_thin_strip_is_refused_because_resizing_would_blow_it_up():
    with pytest.raises(ImageError, match="longer than 100 times its shorter side"):
        decode_image(encode(Image.new("RGB", (101, 1)), "PNG"))
    assert decode_image(encode(Image.new("RGB", (100, 1)), "PNG")).size == (100, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, this is no image\n", "begins with b'hello, t'"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b'<?xml version="1.0"?>\n<svg/>', "SVG"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0" * 4096, r"begins with b'\\x00\\x00"),
        (b"\xde\xad\xbe\xef" * 10, r"b'\\xde\\xad"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data)
    assert caught.value.reason in str(caught.value)
    assert "BytesIO" not in caught.value.reason


def test_postscript_is_never_handed_to_ghostscript():
    data = encode(Image.new("RGB", (8, 8)), "EPS")
    with pytest.raises(ImageError, match="need another program"):
        decode_image(data)


def test_a_png_with_a_damaged_checksum_is_refused():
    data = bytearray(photo("PNG"))
    at = data.index(b"IDAT") + 200
    data[at] ^= 0xFF
    with pytest.raises(ImageError):
        decode_image(bytes(data))


def test_a_png_text_bomb_is_refused():
    text = zlib.compress(b"a" * 200_000_000, 9)
    plain = photo("PNG")
    data = plain[:33] + png_chunk(b"zTXt", b"k\0\0" + text) + plain[33:]
    with pytest.raises(ImageError):
        decode_image(data)
