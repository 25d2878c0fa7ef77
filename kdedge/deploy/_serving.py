"""What the folders for inference servers share: which file they take, and being whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdedge._files import explain_os_error
from kdedge.errors import DataError, RecipeError
from kdedge.runtime.artifact import Artifact, ModelFile


def choose_file(artifact: Artifact, wanted: Sequence[tuple[str, str]], *, server: str) -> ModelFile:
    """Gives the first file of a target and precision that did not miss its gate.

    Args:
        artifact: the folder.
        wanted: pairs of target and precision, the best first.
        server: for the message.

    Raises:
        DataError: there is none.
    """
    for target, precision in wanted:
        for file in artifact.files:
            if (file.target, file.precision) == (target, precision) and file.gate != "missed":
                return file
    missed = [file.name for file in artifact.files if file.gate == "missed"]
    why = f" ({', '.join(missed)} missed the parity gate)" if missed else ""
    raise DataError(
        f"{artifact.path} has no file that {server} can run{why}.\n"
        "  Export its run again, with the precision that is missing."
    )


def check_class_names(artifact: Artifact, forbidden: dict[str, str], *, server: str) -> None:
    """Refuses class names that a server's labels file cannot hold.

    Args:
        artifact: whose names.
        forbidden: character -> what it is called.
        server: for the message.

    Raises:
        DataError: a name holds one of the characters.
    """
    for name in artifact.class_names:
        for character, called in forbidden.items():
            if character in name:
                raise DataError(
                    f"The class name {name!r} holds {called}, which {server}'s labels file cannot"
                    " hold.\n  Rename the class in the class list, and export again."
                )


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Context with a new folder to fill, which gets its name when all in it is written.

    Args:
        path: the folder's name. Folders above it are made where they are missing.

    Raises:
        RecipeError: something of that name exists.
        ResourceError: it cannot be written.
    """
    if os.path.lexists(path):
        raise RecipeError(
            f"{path} exists, and nothing is overwritten.\n  Name another folder, or move it away."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.part-"))
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        part.chmod(0o755)  # servers run as a user of their own
        yield part
        part.rename(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def copy_file(artifact: Artifact, file: ModelFile, folder: Path, name: str) -> None:
    """Copies a model file under a new name, and its external data under the name that it has.

    Raises:
        DataError: a file is missing, or is not the one that was exported.
    """
    shutil.copyfile(artifact.checked(file.name), folder / name)
    if file.data is not None:
        # The graph names it, so its name stays
        shutil.copyfile(artifact.checked(file.data), folder / file.data)
