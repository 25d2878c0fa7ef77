"""New folders that are complete or absent: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kdedge.errors import RecipeError
from kdedge.files import explain_os_error, move_to_number


@contextlib.contextmanager
def new_folder(
    folder: Path, *, is_numbered: bool = False
) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Context with a new folder to fill; it gets its final name when the context ends.

    Until then it is `.NAME.part-*` and locked. Folders of that name without a lock were left by
    killed processes and are deleted.

    Args:
        folder: the new folder or, with `is_numbered`, the folder to make it in. Missing parents are
            made.
        is_numbered: take the next free number in `folder`.

    Yields:
        The folder to write into, and a function that returns its final path afterwards.

    Raises:
        RecipeError: the folder exists.
        ResourceError: it cannot be written.
    """
    if not is_numbered and os.path.lexists(folder):
        raise RecipeError(
            f"{folder} exists, and nothing is overwritten.\n  Name another folder, or move it away."
        )
    above = folder if is_numbered else folder.parent
    part = above / f".{folder.name}.part-{secrets.token_hex(4)}"
    final: list[Path] = []
    is_made = not above.exists()
    try:
        above.mkdir(parents=True, exist_ok=True)
        _delete_left_behind(above, f".{folder.name}.part-")
        with _made(part):
            yield part, lambda: final[0]
            if is_numbered:
                final.append(move_to_number(part, folder))
            else:
                final.append(part.rename(folder))  # onto an empty folder, or a free name
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if is_made:
            with contextlib.suppress(OSError):  # it has the new folder
                above.rmdir()


@contextlib.contextmanager
def _made(part: Path) -> Iterator[None]:
    """Context of a new folder with a lock, if its file system has locks."""
    descriptor = _open_new(part)
    try:
        yield
    finally:
        os.close(descriptor)


def _open_new(part: Path) -> int:
    while True:
        part.mkdir()
        try:
            descriptor = os.open(part, os.O_RDONLY)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        if part.exists():  # else another process took it for one that was left behind
            return descriptor
        os.close(descriptor)


def _delete_left_behind(above: Path, start: str) -> None:
    for part in above.iterdir():
        if part.name.startswith(start):
            with contextlib.suppress(OSError):
                descriptor = os.open(part, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(part, ignore_errors=True)
                finally:
                    os.close(descriptor)
