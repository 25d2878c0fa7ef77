"""Reads an existing artifact, and prepares it for a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdedge.errors import DataError
from kdedge.files import highest_number
from kdedge.runtime.artifact import FILE_NAME, Artifact, Precision, load_artifact
from kdedge.runtime.cpu_choice import CpuChoice, choice_here


def open_artifact(source: Any) -> Artifact:
    """Reads an artifact: class names, files and their comparisons; loads no model.

    Args:
        source: an artifact's folder; or a run or its folder, for its newest artifact.

    Raises:
        DataError: there is no artifact, or its record is damaged.
        SetupError: a newer kdedge wrote it.
    """
    return load_artifact(artifact_folder(source))


def cpu_choice(source: Any) -> CpuChoice | None:
    """The fastest file for this machine's CPU, with the table that shows why.

    Args:
        source: an artifact or its folder; or a run or its folder, for its newest artifact.

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
        source: an artifact or its folder; or a run or its folder, for its newest artifact.
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
        source: an artifact or its folder; or a run or its folder, for its newest artifact.
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


def artifact_folder(source: Any) -> Path:
    """The artifact of an argument: the folder itself, or the newest artifact of a run.

    Raises:
        DataError: there is none.
    """
    path = Path(getattr(source, "path", source)).expanduser()
    if (path / FILE_NAME).is_file():
        return path
    newest = highest_number(file.parent for file in path.glob(f"artifacts/*/{FILE_NAME}"))
    if newest is None:
        raise DataError(
            f"{path} is not an artifact, nor a run with one.\n"
            "  Name the folder that `kdedge export` wrote, or export the run first."
        )
    return newest
