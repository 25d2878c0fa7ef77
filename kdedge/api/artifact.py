"""An artifact that is there: looked at, accepted after a change by hand, given to a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import DataError
from kdedge.files import highest_number
from kdedge.runtime import artifact as artifacts
from kdedge.runtime.artifact import FILE_NAME, Artifact, Precision, load_artifact


@dataclass(frozen=True)
class ResealedArtifact:
    """What accepting a record gave.

    Attributes:
        artifact: as it is now.
        problem: what the change was known by; None where there was none.
        has_card: whether the model card says what the record says; one that was changed by hand
            stays as it is.
    """

    artifact: Artifact
    problem: str | None
    has_card: bool


def open_artifact(source: Any) -> Artifact:
    """Reads what an artifact holds: class names, files, how each compares; loads no model.

    Args:
        source: an artifact's folder, or a run or its folder: its newest artifact.

    Raises:
        DataError: there is no artifact, or its record was changed or is damaged.
        SetupError: a newer kdedge wrote it.
    """
    return load_artifact(artifact_folder(source))


def reseal(source: Any) -> Artifact:
    """Accepts an `artifact.json` that was changed by hand; the record keeps that.

    The model card is written again, unless it was changed by hand too.

    Args:
        source: the artifact, its folder, or a run or its folder: its newest artifact.

    Raises:
        DataError: there is no artifact, or the changed record is not what one may hold.
        ResourceError: the folder cannot be written.
    """
    return make_reseal(artifact_folder(source)).artifact


def write_triton(source: Any, folder: str | Path, *, precision: Precision | None = None) -> Path:
    """Writes a model repository for the Triton Inference Server.

    A TensorRT engine is taken where there is one, else ONNX; FP16 before the others.

    Args:
        source: an artifact, its folder, or a run or its folder: its newest artifact.
        folder: the model repository, with other models perhaps.
        precision: which of the artifact's files; None for the best that there is.

    Returns:
        The model's folder.

    Raises:
        RecipeError: the folder exists.
        DataError: the artifact has no file for Triton, or it is not the file that was exported.
        ResourceError: the folder cannot be written.
    """
    from kdedge.deploy import triton

    return triton.write_triton(open_artifact(source), Path(folder), precision=precision)


def write_deepstream(source: Any, folder: str | Path) -> Path:
    """Writes a folder for DeepStream's nvinfer, which builds the engine itself.

    Args:
        source: an artifact, its folder, or a run or its folder: its newest artifact.
        folder: is made, and must not exist.

    Returns:
        The configuration's path.

    Raises:
        RecipeError: the folder exists, or the artifact is of a kind that nvinfer cannot run.
        DataError: the artifact has no file for it, or it is not the file that was exported.
        SetupError: onnx is not installed.
        ResourceError: the folder cannot be written.
    """
    from kdedge.deploy import deepstream

    return deepstream.write_deepstream(open_artifact(source), Path(folder))


def make_reseal(folder: Path) -> ResealedArtifact:
    """Accepts a changed record, and writes the model card again."""
    from kdedge.deploy.model_card import renew_model_card

    artifact, problem = artifacts.reseal(folder)
    if not artifact.resealed:
        return ResealedArtifact(artifact, problem, has_card=True)
    artifact, has_card = renew_model_card(artifact)
    return ResealedArtifact(artifact, problem, has_card)


def artifact_folder(source: Any) -> Path:
    """The artifact that a caller means: its folder, or the newest one of a run.

    Raises:
        DataError: there is none.
    """
    path = Path(getattr(source, "path", source)).expanduser()
    if (path / FILE_NAME).is_file():
        return path
    newest = highest_number(file.parent for file in path.glob(f"artifacts/*/{FILE_NAME}"))
    if newest is None:
        raise DataError(
            f"{path} is no artifact, and no run that was exported.\n"
            "  Name the folder that `kdedge export` wrote, or export the run."
        )
    return newest
