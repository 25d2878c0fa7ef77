"""Reads an existing artifact, and prepares it for a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kdedge.errors import DataError
from kdedge.files import highest_number
from kdedge.runs.find import newest
from kdedge.runtime.artifact import FILE_NAME, Artifact, Precision, load_artifact
from kdedge.runtime.cpu_choice import CpuChoice, choice_here


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
    from kdedge.deploy import triton

    return triton.write_triton(open_artifact(source), Path(folder), precision=precision)


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
    from kdedge.deploy import browser

    return browser.write_browser(open_artifact(source), Path(folder), precision=precision)


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
