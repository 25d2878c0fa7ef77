"""The kind of a file that should hold weights, by its content and never by its name.

Libraries that detect file types know neither torch's formats nor git-lfs pointers and GGUF.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from kdedge.clip._unpickle import LEGACY_MAGIC, MALFORMED
from kdedge.errors import DataError

_KINDS = (
    (rb"version https://git-lfs", "a git-lfs pointer, not the file it points to"),
    (rb"\s*(<!doctype|<html|<\?xml|<head)", "a web page, perhaps of a failed download"),
    (rb"\s*[\{\[]\s*[\"\{\]\}]", "JSON text"),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd",
        "a compressed archive; unpack it first",
    ),
    (rb"\x89HDF", "an HDF5 file (TensorFlow or Keras)"),
    (rb"GGUF", "a GGUF file (llama.cpp)"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
    (rb"\x80[\x02-\x05]", "a Python pickle that torch.save did not write"),
)
REMEDY = (
    "  Expected .safetensors, a state dict of torch.save or an archive of OpenAI's; fetch the file"
    " again or convert it."
)


def kind_of(path: Path) -> Literal["safetensors", "state dict", "OpenAI archive"]:
    """Tells a file's kind by its first bytes and, for a zip, by its list of records.

    Raises:
        DataError: it cannot be read, or is not a file of weights; names what it looks like.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"The weights {path} cannot be read: {reason}.") from error
    if not head:
        raise DataError(f"{path} is empty.\n{REMEDY}")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return "state dict"
    if head[8:9] == b"{":
        if int.from_bytes(head[:8], "little") + 8 <= size:
            return "safetensors"
        if path.suffix == ".safetensors":
            raise DataError(f"{path} is a safetensors file that ends too early.\n{REMEDY}")
    for pattern, what in _KINDS:
        if re.match(pattern, head, re.IGNORECASE):
            raise DataError(f"{path} looks like {what}.\n{REMEDY}")
    raise DataError(f"{path} is not a file of weights, or is damaged at its start.\n{REMEDY}")


def _kind_of_zip(path: Path) -> Literal["state dict", "OpenAI archive"]:
    try:
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2] for name in archive.namelist()}
    except MALFORMED as error:
        raise DataError(
            f"{path} begins like a torch file but has no end: it is truncated.\n{REMEDY}"
        ) from error
    if "data.pkl" not in records:
        raise DataError(f"{path} is a zip archive that torch did not write.\n{REMEDY}")
    return "OpenAI archive" if "constants.pkl" in records else "state dict"
