"""What the folders for inference servers share: which file they take, and what they refuse."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from kdedge.errors import DataError
from kdedge.runtime.artifact import Artifact, ModelFile

log = logging.getLogger(__name__)


def choose_file(
    artifact: Artifact,
    wanted: Sequence[tuple[str, str]],
    *,
    server: str,
    built: Collection[str] = (),
) -> ModelFile:
    """Gives the first file of a target and precision that did not miss its gate.

    Args:
        artifact: the folder.
        wanted: pairs of target and precision, the best first.
        server: for messages.
        built: names of the engines that were just built here. Without, an engine is taken only
            where the artifact has one of its kind: others run on other GPUs.

    Raises:
        DataError: there is none, or one cannot tell which engine is for this server.
    """
    for target, precision in wanted:
        kind = [f for f in artifact.files if (f.target, f.precision) == (target, precision)]
        found = [file for file in kind if file.gate != "missed"]
        if kind and not found:
            log.warning("%s gets another file: %s missed its gate.", server, kind[0].name)
        here = [file for file in found if file.name in built]
        if len(here or found) > 1 and target != "onnx":
            raise DataError(
                f"{artifact.path} has {len(found)} engines in {precision}, each for another GPU or"
                f" version: {', '.join(file.name for file in found)}.\n"
                f"  Name the target too, on {server}'s machine, so that its own is taken."
            )
        for file in here or found:
            log.info("%s gets %s.", server, file.name)
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


def copy_file(artifact: Artifact, file: ModelFile, folder: Path, name: str) -> None:
    """Copies a model file under a new name, and its external data under the name that it has.

    Raises:
        DataError: a file is missing, or is not the one that was exported.
    """
    shutil.copyfile(artifact.checked(file.name), folder / name)  # and its data's hash is checked
    if file.data is not None:
        # The graph names it, so its name stays
        shutil.copyfile(artifact.path / file.data, folder / file.data)
