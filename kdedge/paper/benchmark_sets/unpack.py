"""Unpacks chosen files of an untrusted zip file, and writes nothing outside of the folder.

`zipfile` neither follows `..` and absolute names nor makes links or devices. This module also
limits the number of unpacked bytes.
"""

from __future__ import annotations

import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from kdedge.errors import DataError, explain_os_error
from kdedge.files import check_room
from kdedge.progress import progress, readable_bytes

_MAX_RATIO = 100  # unpacked over packed bytes. Photos reach about 1, annotations 20.

_FREE_BYTES = 1 << 24  # unpacked bytes that are accepted whatever the ratio

# Errors of `zipfile` for truncated, damaged, encrypted or unknown archives
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError,
    ValueError, LookupError, OverflowError, NotImplementedError, RuntimeError,
)  # fmt: skip


def unpack(archive: Path, folder: Path, wanted: Sequence[str]) -> None:
    """Unpacks files and folders of a zip file, each completely or not at all.

    They are unpacked into a hidden folder and then moved. Modes, owners and dates are not restored.

    Args:
        archive: the archive, which is kept.
        folder: where they are written.
        wanted: their paths below `folder`, where nothing may exist. In the archive they may lie one
            or two folders deeper; paths that the archive does not have are ignored.

    Raises:
        DataError: the archive is damaged, encrypted or a bomb.
        ResourceError: the disk is too small, or the folder may not be written.
    """
    temporary = folder / f".unpacking-{archive.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    try:
        with zipfile.ZipFile(archive) as file:
            members = [
                info
                for info in file.infolist()
                if any(f"/{path}/" in f"/{info.filename}/" for path in wanted)
            ]
            _check_size(archive, sum(info.file_size for info in members))
            n_done = 0
            n_bytes = sum(info.compress_size for info in members)
            with progress(f"unpacking {archive.name}", n_bytes, in_bytes=True) as advance:
                for info in members:
                    file.extract(info, temporary)
                    n_done += info.compress_size
                    advance(n_done)
        for path in wanted:
            places = (p for depth in ("", "*/", "*/*/") for p in temporary.glob(depth + path))
            place = next(places, None)
            if place is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                place.rename(folder / path)
    except _DAMAGED as error:
        raise DataError(
            f"{archive} cannot be unpacked: {str(error).rstrip('.') or type(error).__name__}.\n"
            "  Remove it, so that it is fetched again."
        ) from error
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_size(archive: Path, n_bytes: int) -> None:
    """Refuses an archive bomb, and one that is too large for the disk."""
    limit = _FREE_BYTES + _MAX_RATIO * archive.stat().st_size
    if n_bytes > limit:
        raise DataError(
            f"{archive} unpacks to more than {readable_bytes(limit)}, over {_MAX_RATIO} times its"
            " size. Archives that are made to fill disks do that.\n"
            "  If you trust it, unpack it by hand."
        )
    remedy = "Free some space and try again; the archive is kept."
    check_room(archive.parent, n_bytes, f"unpacking {archive.name}", remedy=remedy)
