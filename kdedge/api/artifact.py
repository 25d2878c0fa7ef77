"""Reads an existing artifact, prepares it for a server, and checks a program's answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import DataError, RecipeError
from kdedge.files import highest_number
from kdedge.runs.find import newest
from kdedge.runtime.artifact import FILE_NAME, Artifact, ModelFile, Precision, load_artifact
from kdedge.runtime.cpu_choice import CpuChoice, choice_here

if TYPE_CHECKING:
    from kdedge.deploy.client import ClientCheck, Pictures


def open_artifact(source: Any) -> Artifact:
    """Reads an artifact: class names, files and their comparisons; loads no model.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.

    Raises:
        DataError: there is no artifact, or its record is damaged.
        SetupError: a newer kdedge wrote it.
    """
    return load_artifact(artifact_folder(source))


def cpu_choice(source: Any) -> CpuChoice | None:
    """The fastest file for this machine's CPU, with the table that shows why.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.

    Returns:
        What `kdedge export --cpu` chose on a machine like this; None if it was not run on one.

    Raises:
        DataError: there is no artifact, or a record was changed or damaged.
        SetupError: a newer kdedge wrote it.
    """
    return choice_here(open_artifact(source))


def write_triton(source: Any, folder: str | Path, *, precision: Precision | None = None) -> Path:
    """Writes a model repository for the Triton Inference Server.

    A TensorRT engine is preferred to ONNX, and FP16 to other precisions.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        folder: the model repository; it may have other models.
        precision: precision of the file; None for the preferred file.

    Returns:
        The model's folder.

    Raises:
        RecipeError: the model's folder exists.
        DataError: the artifact has no file for Triton, or a file has changed since the export.
        ResourceError: the folder cannot be written.
    """
    from kdedge.deploy import servers

    return servers.write_triton(open_artifact(source), Path(folder), precision=precision)


def write_browser(source: Any, folder: str | Path, *, precision: Precision | None = None) -> Path:
    """Writes a page that classifies pictures and the camera in a browser.

    The page needs onnxruntime-web, which `npm install` gets into its folder.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        folder: a new folder.
        precision: precision of the file, fp32 or int8; None for fp32.

    Returns:
        Path of the page.

    Raises:
        RecipeError: the folder exists, or the artifact has open classes.
        DataError: the artifact has no file with preprocessing, or it has changed since the export.
        ResourceError: the folder cannot be written.
    """
    from kdedge.deploy import servers

    return servers.write_browser(open_artifact(source), Path(folder), precision=precision)


def artifact_folder(source: Any, root: str | Path | None = None) -> Path:
    """The artifact that an argument means: the folder itself, or the newest artifact of a run.

    Args:
        source: an artifact, its folder, or its artifact.json; or a run, its folder, `name/NN`, or
            a recipe's name for its newest finished run with an artifact.
        root: folder of all runs; None for the environment's KDEDGE_RUNS, or else `runs`.

    Raises:
        DataError: there is none.
    """
    path = Path(getattr(source, "path", source)).expanduser()
    path = path.parent if path.name == FILE_NAME else path
    named = Path(root or os.environ.get("KDEDGE_RUNS") or "runs") / path
    for folder in (path, named):
        if (folder / FILE_NAME).is_file():
            return folder
        artifact = highest_number(file.parent for file in folder.glob(f"artifacts/*/{FILE_NAME}"))
        if artifact is not None:
            return artifact
    for folder in (named, path):
        run = newest(folder.parent, folder.name, exported=True)
        if run is not None:
            return artifact_folder(run)
    raise DataError(
        f"{path} is not an artifact, nor a run with one.\n"
        "  Name the folder that `kdedge export` wrote, or export the run first."
    )


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
