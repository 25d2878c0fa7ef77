"""The kinds of image files that Pillow reads on this machine, by their extensions."""

from __future__ import annotations

import functools

from PIL import features

_ALWAYS = (
    *("jpe", "jfif", "mpo", "apng", "gif", "dib", "pbm", "pgm", "pnm", "pcx", "tga", "sgi"),
    *("qoi", "psd"),
)
_JPEG_2000 = ("jp2", "j2k", "jpf", "jpx")
_AVIF = ("avif", "avifs")
_HEIF = ("heic", "heif", "hif")

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

HEIF_REMEDY = "pip install 'kdedge[heif]'"
"""Installs what reads HEIC."""

UNREAD_PICTURES = {
    **dict.fromkeys(_HEIF, HEIF_REMEDY),
    **dict.fromkeys(_AVIF, "Pillow 11.3 or later reads it"),
    **dict.fromkeys((*_JPEG_2000, "jxl", "svg", "eps", "pdf", "ico"), ""),
    **dict.fromkeys(("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "raw"), ""),
}
"""Extensions of image files that this machine may be unable to read, each with a remedy or ""."""


@functools.cache
def more_extensions() -> frozenset[str]:
    """Extensions of readable images besides the usual ones, in lower case without the dot."""
    # `check` warns of a name that an older Pillow does not know
    has_avif = "avif" in features.modules and features.check("avif")
    return frozenset(
        (
            *_ALWAYS,
            *(_JPEG_2000 if features.check("jpg_2000") else ()),
            *(_AVIF if has_avif else ()),
            *(_HEIF if register_heif() else ()),
        )
    )


@functools.cache
def register_heif() -> str | None:
    """Makes Pillow read HEIC if pillow-heif is installed; returns that package's version."""
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.register_heif_opener()
    return str(pillow_heif.__version__)


def is_heif(data: bytes) -> bool:
    """Whether an image file's bytes begin like HEIC."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
