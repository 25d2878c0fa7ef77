"""Saves classified images to a folder: with the prediction written below them, or unchanged."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from kdedge.errors import explain_os_error
from kdedge.files import printable
from kdedge.inference.classify import ImageInput, decode_input, read_input
from kdedge.runtime.preprocess import ImageError

_MIN_WIDTH_PX = 320
_MAX_SIDE_PX = 65_500  # Pillow's limit for JPEG
_MAX_NAME_BYTES = 200  # file systems take 255; the rest is for a number


class SavedImages:
    """A folder of saved images.

    Args:
        path: an empty folder that no other process writes to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = set[str]()

    def save(self, name: str, image: ImageInput, classes: Sequence[tuple[str, str]] | None) -> None:
        """Saves an image.

        Args:
            name: name of the file; a number is added if the name is taken.
            image: the classified image.
            classes: names and scores to write below the image, which is then saved as JPEG; None
                saves the bytes of an image file unchanged.

        Raises:
            ResourceError: the file cannot be written.
        """
        data = read_input(image)
        if isinstance(data, bytes) and classes is None:
            self._write(name, data)
            return
        decoded = decode_input(data)
        if isinstance(decoded, ImageError):  # since it was classified
            return
        if classes is not None:
            decoded = with_text(decoded, ["  ".join(texts) for texts in classes])
        decoded.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
        file = io.BytesIO()
        decoded.save(file, "JPEG", quality=92)
        self._write(str(Path(name).with_suffix(".jpg")), file.getvalue())

    def _write(self, name: str, data: bytes) -> None:
        # The end, with the suffix; part of a character at the cut is left out
        name = printable(name).encode()[-_MAX_NAME_BYTES:].decode(errors="ignore")
        path = self._path / self._free(Path(name))
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
        except OSError as error:
            if not isinstance(error, FileExistsError):  # then the file is another program's
                with contextlib.suppress(OSError):  # the first error says more
                    path.unlink()
            raise explain_os_error(error, path) from error

    def _free(self, name: Path) -> str:
        number = 1
        free = name.name
        while free in self._names:
            number += 1
            free = f"{name.stem}-{number}{name.suffix}"
        self._names.add(free)
        return free


def with_text(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Draws lines of text in a band below an image.

    A small image is enlarged by a whole factor, so that the text is readable.

    Args:
        image: RGB image.
        lines: one or more lines of text.
    """
    enough = math.ceil(_MIN_WIDTH_PX / image.width)
    largest = _MAX_SIDE_PX // image.height
    factor = max(1, min(enough, largest))
    width, height = factor * image.width, factor * image.height
    size_px = max(14, width // 28)
    font = _font(size_px)
    whole_width = max(width, size_px + max(int(font.getlength(line)) for line in lines))
    line_px = int(1.4 * size_px)
    canvas = Image.new("RGB", (whole_width, height + line_px * len(lines) + size_px // 2))
    canvas.paste(image.resize((width, height), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        place = (size_px // 2, height + size_px // 4 + row * line_px)
        draw.text(place, line, fill="white", font=font)
    return canvas


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which has many scripts, or Pillow's own font, which has only Latin letters."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size_px)
    except OSError:
        return ImageFont.load_default(size_px)
