"""The image preprocessing: decode, orient, resize, crop.

Evaluation, calibration and the device all use this file, so they cannot differ. Training crops are
made in `loading/views.py`. `loading/decoding.py` and exported graphs normalize the pixels; on RGB
images the result equals open_clip's evaluation transform bit for bit
(`open_clip.image_transform(size, is_train=False)`).
"""

from __future__ import annotations

import functools
import io
import re
import struct
import threading
import warnings
import zlib
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features
from pydantic import Field

from kdedge.errors import DataError
from kdedge.records.record import Positive

# Larger images are refused after reading their header: 100 megapixels are 0.3 GB decoded
MAX_PIXELS = 100_000_000

# Longer side over shorter side. Resizing the shorter side of a 1 x 100,000 strip to 224 would
# give an image of 5 gigapixels.
MAX_ASPECT = 100

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# Pillow starts Ghostscript on EPS files and calls the operating system for WMF files, which is not
# safe for untrusted files.
_OUTSIDE_PROGRAMS = frozenset({"EPS", "WMF"})

# Exceptions of Pillow's readers on damaged files, known from fuzzing; a reader's bug on one file
# must not end a run over a million other files. MemoryError is not among them.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(DataError):
    """One image cannot be read or decoded.

    Args:
        reason: the reason, as a sentence without a full stop; the skip list contains it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read or decoded.

    Attributes:
        key: identifies the image, such as its path.
        reason: why, as a sentence without a full stop.
    """

    key: str
    reason: str


Side = Annotated[int, Field(ge=1, le=4096)]
Mean = tuple[float, float, float]
Std = tuple[Positive, Positive, Positive]


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's input.

    Attributes:
        size_px: side of the model's square input, pixels.
        mean: per channel in RGB order, subtracted from values 0-1.
        std: per channel in RGB order; values are divided by it after the mean is subtracted.
        interpolation: Pillow's filter for resizing, always with antialiasing.
        resize_mode: `shortest` brings the shorter side to `size_px` and crops the center; `squash`
            ignores the aspect ratio.
    """

    size_px: Side
    mean: Mean
    std: Std
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"

    def __post_init__(self) -> None:
        modes = (self.interpolation, self.resize_mode)
        if self.interpolation not in RESAMPLING or self.resize_mode not in ("shortest", "squash"):
            raise DataError(
                f"The model's images are resized by {' and '.join(modes)}, which kdedge does not"
                " know: it knows bicubic and bilinear, shortest and squash."
            )

    def to_dict(self) -> dict[str, Any]:
        """Values for a JSON record."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


_SILENCE = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)


class _StrictPillow:
    """Context in which Pillow does not warn and refuses truncated files.

    Both are process-wide switches, so threads are counted: the first one sets the switches, the
    last one restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._filters: list[Any] = []
        self._load_truncated = False

    def __enter__(self) -> None:
        with self._lock:
            self._n_inside += 1
            if self._n_inside > 1:
                return
            self._load_truncated = ImageFile.LOAD_TRUNCATED_IMAGES
            if self._load_truncated:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            # Changes the list itself, since warnings.catch_warnings would also reset, at every
            # image, which warnings of other packages were already shown.
            self._filters = cast("list[Any]", warnings.filters)
            self._filters.insert(0, _SILENCE)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside:
                return
            self._filters.remove(_SILENCE)
            if self._load_truncated:
                ImageFile.LOAD_TRUNCATED_IMAGES = True


_STRICT_PILLOW = _StrictPillow()


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file to 8-bit RGB, upright.

    EXIF orientation is applied. Animations and multi-page files give their first image.
    Transparent parts become white (alpha is composited over white). CMYK (also Adobe's inverted
    kind and YCCK), gray, palettes and YCbCr become RGB. 16-bit gray is scaled by 1/257 and not
    clipped; 16-bit color keeps its high byte.

    Args:
        data: the file's bytes.
        max_pixels: images with more pixels are refused before they are decoded. Pillow's own limit
            (`PIL.Image.MAX_IMAGE_PIXELS`, refused from twice its value) also applies.

    Returns:
        An image of mode RGB.

    Raises:
        ImageError: the file is empty, not an image, truncated, damaged, too large, longer than
            100 times its shorter side, or of a kind without a fixed range (float, Lab, 32-bit).
    """
    if not data:
        raise ImageError("the file is empty")
    with _STRICT_PILLOW:
        return _upright_rgb(_open(data, max_pixels))


def is_upright_jpeg(data: bytes) -> bool:
    """Whether a file is a complete JPEG in color that `decode_image` only decodes.

    Raises:
        ImageError: its header is damaged, or it is too large; see `decode_image`.
    """
    if not (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")):
        return False
    with _STRICT_PILLOW:
        image = _open(data, MAX_PIXELS)
        return (image.format, image.mode, _orientation(image)) == ("JPEG", "RGB", 1)


def convert_image(image: Image.Image) -> Image.Image:
    """Converts a Pillow image as `decode_image` does with a file: to 8-bit RGB, upright.

    Raises:
        ImageError: the image cannot be decoded, is empty, too large, longer than 100 times its
            shorter side, or has no fixed range of values.
    """
    _check_size(image, MAX_PIXELS)
    with _STRICT_PILLOW:
        return _upright_rgb(image)


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Loads an image, converts it to RGB and applies its EXIF orientation."""
    try:
        image.load()
        # Read the orientation after loading: PNG may store it behind the pixels, and for TIFF and
        # AVIF Pillow rotates the image while it loads.
        upright = _to_rgb(image)
        turn = _TURNS.get(_orientation(image))
        return upright if turn is None else upright.transpose(turn)
    except ImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise ImageError(f"{image.format} data cannot be decoded: {_text(error)}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Opens an image and checks its header."""
    is_heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    if is_heif and register_heif() is None:
        raise ImageError(f"a HEIC image; to read it, run: {HEIF_REMEDY}")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError(f"not a readable image ({_kind(data)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {_text(error)}") from error
    except _PILLOW_ERRORS as error:
        raise ImageError(f"the image's header is damaged: {_text(error)}") from error
    if image.format in _OUTSIDE_PROGRAMS:
        raise ImageError(
            f"{image.format} files need another program; convert the image to PNG or JPEG"
        )
    _check_size(image, max_pixels)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    """Refuses images that are empty, too large or too long."""
    width, height = image.size
    if not all(image.size):
        raise ImageError("the image has no pixels")
    if width * height > max_pixels:
        raise ImageError(f"too large: {width} x {height} pixels, the limit is {max_pixels} pixels")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(
            f"{width} x {height} pixels: longer than {MAX_ASPECT} times its shorter side"
        )


def _kind(data: bytes) -> str:
    """Describes the kind of a file that is not an image."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_svg_in_xml = head.startswith(b"<?xml") and b"<svg" in data[:4096].lower()
    if head.startswith(b"<svg") or is_svg_in_xml:
        return "an SVG drawing"
    if head.startswith((b"<!doctype", b"<html")):
        return "a web page"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file with: git lfs pull"
    return f"it begins with {data[:8]!r}"


def _text(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Turns a loaded image of any mode into RGB."""
    if image.mode == "F":
        raise ImageError("float pixels have no fixed range; save the image with 8 or 16 bits")
    if image.mode == "LAB":
        raise ImageError("Lab color is not supported; save the image as RGB")
    if image.mode.startswith("I"):
        return _wide_gray_to_rgb(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # its owner may close or change it
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _wide_gray_to_rgb(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray to 8 bits with rounding; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    # Older Pillow reads 16-bit PNG and PPM as 32-bit "I"; for these the depth is known.
    is_16_bit = image.mode.startswith("I;16") or image.format in {"PNG", "PPM"}
    lowest, highest = int(np.min(values)), int(np.max(values))
    if lowest < 0 or highest > 65535:
        raise ImageError(
            f"gray values from {lowest} to {highest}: expected 8 or 16 bits, 0 to 65535"
        )
    clear = image.info.get("transparency")
    gray = (values + 128) // 257 if is_16_bit or highest > 255 else values
    if isinstance(clear, int):
        gray[values == clear] = 255
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 (upright) if it is missing or unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _PILLOW_ERRORS:
        return 1


def resize_and_crop(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resizes an RGB image and crops its center, as torchvision's Resize and CenterCrop do.

    Returns:
        An image of `size_px` x `size_px` pixels.
    """
    size = preprocess.size_px
    width, height = image.size
    if preprocess.resize_mode == "squash":
        new_size = (size, size)
    elif width <= height:
        new_size = (size, int(size * height / width))
    else:
        new_size = (int(size * width / height), size)
    if new_size != image.size:
        image = image.resize(new_size, RESAMPLING[preprocess.interpolation])
    if new_size == (size, size):
        return image
    # round() rounds halves to even; torchvision's center_crop does the same.
    left, top = (round((side - size) / 2) for side in new_size)
    return image.crop((left, top, left + size, top + size))


_ALWAYS = (
    "jpe", "jfif", "mpo", "apng", "gif", "dib", "pbm", "pgm", "pnm", "pcx", "tga", "sgi", "qoi",
    "psd",
)  # fmt: skip
_JPEG_2000 = ("jp2", "j2k", "jpf", "jpx")
_AVIF = ("avif", "avifs")
_HEIF = ("heic", "heif", "hif")

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# Installs the package that reads HEIC
HEIF_REMEDY = "pip install 'kdedge[heif]'"

# Extensions of image files that this machine may be unable to read, each with a remedy or ""
UNREAD_FORMATS = {
    **dict.fromkeys(_HEIF, HEIF_REMEDY),
    **dict.fromkeys(_AVIF, "Pillow 11.3 or later reads it"),
    **dict.fromkeys((*_JPEG_2000, "jxl", "svg", "eps", "pdf", "ico"), ""),
    **dict.fromkeys(("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "raw"), ""),
}


@functools.cache
def more_extensions() -> frozenset[str]:
    """Extensions of readable images besides the usual ones, in lower case without the dot."""
    # `features.check` warns of a name that an older Pillow does not know
    has_avif = "avif" in features.modules and features.check("avif")
    extensions = {*_ALWAYS}
    extensions.update(_JPEG_2000 if features.check("jpg_2000") else ())
    extensions.update(_AVIF if has_avif else ())
    extensions.update(_HEIF if register_heif() else ())
    return frozenset(extensions)


@functools.cache
def register_heif() -> str | None:
    """Makes Pillow read HEIC if pillow-heif is installed; returns that package's version."""
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.register_heif_opener()
    return str(pillow_heif.__version__)
