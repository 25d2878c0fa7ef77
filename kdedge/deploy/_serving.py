"""Shared code of the folders for inference servers: choosing a file, checking class names."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from kdedge.errors import DataError, RecipeError
from kdedge.runtime.artifact import Artifact, ModelFile

log = logging.getLogger(__name__)


def choose_file(
    artifact: Artifact,
    wanted: Sequence[tuple[str, str]],
    *,
    server: str,
    built: Collection[str] = (),
) -> ModelFile:
    """Chooses the first file of a target and precision that did not miss its gate.

    Args:
        artifact: the artifact.
        wanted: pairs of target and precision, the best first.
        server: name of the server, for messages.
        built: names of the engines that were just built on this machine. Without them, an engine
            is used only if it is the only one of its kind, as others are for other GPUs.

    Raises:
        RecipeError: the artifact has open classes.
        DataError: there is no such file, or several engines, of which only one fits this server.
    """
    if artifact.open_classes is not None:
        raise RecipeError(
            f"The graphs of {artifact.path} give image features, as its classes are open, but"
            f" {server} needs graphs that give logits.\n"
            "  Export the run again without --open-classes (export.open_classes)."
        )
    for target, precision in wanted:
        kind = [f for f in artifact.files if (f.target, f.precision) == (target, precision)]
        found = [file for file in kind if file.gate != "missed"]
        if kind and not found:
            log.warning("%s is not used for %s, as it missed its gate.", kind[0].name, server)
        here = [file for file in found if file.name in built]
        if len(here or found) > 1 and target != "onnx":
            raise DataError(
                f"{artifact.path} has {len(found)} engines in {precision}, each for another GPU or"
                f" version: {', '.join(file.name for file in found)}.\n"
                f"  On {server}'s machine, run the command with the target's flag, such as --trt,"
                " which selects its engine."
            )
        for file in here or found:
            log.info("Using %s for %s.", file.name, server)
            return file
    missed = [file.name for file in artifact.files if file.gate == "missed"]
    why = f" ({', '.join(missed)} missed the parity gate)" if missed else ""
    raise DataError(
        f"{artifact.path} has no file that {server} can run{why}.\n"
        "  Export the run again with another precision, such as --fp16."
    )


def check_class_names(artifact: Artifact, forbidden: dict[str, str], *, server: str) -> None:
    """Checks that a server's labels file can hold the class names.

    Args:
        artifact: the artifact with the class names.
        forbidden: character -> its name in messages.
        server: name of the server, for the message.

    Raises:
        DataError: a name holds one of the characters.
    """
    for name in artifact.class_names:
        for character, called in forbidden.items():
            if character in name:
                raise DataError(
                    f"The class name {name!r} contains {called}, which {server}'s labels file"
                    " cannot hold.\n"
                    "  Rename the class in the class list, and export again."
                )


def copy_file(artifact: Artifact, file: ModelFile, folder: Path, name: str) -> None:
    """Copies a model file under a new name, and its external data under its own name.

    Raises:
        DataError: a file is missing, or has changed since the export.
    """
    shutil.copyfile(artifact.checked(file.name), folder / name)  # and its data's hash is checked
    if file.data is not None:
        # The graph refers to it by name, so its name stays
        shutil.copyfile(artifact.path / file.data, folder / file.data)
