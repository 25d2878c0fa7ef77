"""New folders that are complete or absent: they get their name once all in them is written."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kdedge._files import explain_os_error, new_numbered_folder, set_mode
from kdedge.errors import RecipeError


@contextlib.contextmanager
def new_folder(
    folder: Path, *, is_numbered: bool = False
) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Context with a new folder to fill, which gets its name once all in it is written.

    Args:
        folder: its name or, where it is numbered, the folder of the numbers. Folders above it are
            made where they are missing.
        is_numbered: take the next free number in `folder`.

    Yields:
        The folder to write into, and what gives its final path afterwards.

    Raises:
        RecipeError: something of that name exists.
        ResourceError: it cannot be written.
    """
    if not is_numbered and os.path.lexists(folder):
        raise RecipeError(
            f"{folder} exists, and nothing is overwritten.\n  Name another folder, or move it away."
        )
    above = folder if is_numbered else folder.parent
    try:
        above.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=above, prefix=f".{folder.name}.part-"))
    except OSError as error:
        raise explain_os_error(error, folder) from error
    final: list[Path] = []
    try:
        set_mode(part, 0o755)  # servers run as a user of their own
        yield part, lambda: final[0]
        name = new_numbered_folder(folder) if is_numbered else folder
        part.rename(name)  # onto an empty folder, or a free name
        final.append(name)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
