"""Checks the answers of a client program in any language against an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.api.artifact import open_artifact
from kdedge.errors import RecipeError
from kdedge.runtime.artifact import Artifact, ModelFile

if TYPE_CHECKING:
    from kdedge.deploy.client import ClientCheck, Pictures

_BY_DEFAULT = ("model.image.onnx", "model.onnx")


def write_smoke_images(
    source: Any, folder: str | Path, *, pictures: Pictures = "ppm"
) -> list[Path]:
    """Writes the images of an artifact's smoke set, for a client program to classify.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        folder: a new folder.
        pictures: format of the images, `ppm` or `png`; both are lossless.

    Returns:
        The images, in the order of the answers that `verify_client` takes.

    Raises:
        RecipeError: the folder exists.
        DataError: there is no artifact or no smoke set, or it has changed since the export.
        ResourceError: the folder cannot be written.
    """
    from kdedge.deploy.client import write_images

    if pictures not in ("ppm", "png"):
        raise RecipeError(f"pictures is {pictures!r}; expected ppm or png.")
    return write_images(open_artifact(source), Path(folder), pictures=pictures)


def verify_client(source: Any, answers: str | Path, *, file: str | None = None) -> ClientCheck:
    """Checks that a program classifies the images of an artifact's smoke set as the artifact does.

    `write_smoke_images` writes the images. The program's answers are a file with a line such as
    `{"label": "cat", "score": 93.1}` for each image. Its label has to be the artifact's, and its
    score within one percentage point.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        answers: the file of answers.
        file: the model file that the program ran; None for `model.image.onnx` if there is one, and
            else `model.onnx`.

    Returns:
        The largest differences.

    Raises:
        GateError: an answer differs, or the file does not have one for each image.
        RecipeError: the artifact has no such file.
        DataError: there is no artifact or no smoke set, a file has changed since the export, or the
            answers cannot be read.
    """
    found = compare_answers(source, answers, file=file)
    if found.error is not None:
        raise found.error
    return found


def compare_answers(source: Any, answers: str | Path, *, file: str | None) -> ClientCheck:
    """Checks a client's answers; `error` of the result says whether one differs."""
    from kdedge.deploy.client import check_answers

    artifact = open_artifact(source)
    return check_answers(artifact, Path(answers), file=_file(artifact, file))


def _file(artifact: Artifact, name: str | None) -> ModelFile:
    there = {file.name: file for file in artifact.files}
    wanted = _BY_DEFAULT if name is None else (name,)
    found = next((there[one] for one in wanted if one in there), None)
    if found is None:
        raise RecipeError(
            f"{artifact.path} has no {wanted[-1]}; it has: {', '.join(there) or 'no model files'}."
            "\n  Name one of them with --file."
        )
    return found
