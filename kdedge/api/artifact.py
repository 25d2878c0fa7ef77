"""Reads an existing artifact, changes its classes, and checks a program's answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.arguments import need_training_packages
from kdedge.errors import DataError, RecipeError
from kdedge.files import home_path
from kdedge.messages import option
from kdedge.runs.find import RunOrArtifact, find_artifact, find_run
from kdedge.runs.folder import RunFolder, recorded_export, runs_folder
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.cpu_choice import CpuChoice, choice_here, read_choices
from kdedge.runtime.process import torch_as_before

if TYPE_CHECKING:
    from kdedge.artifacts.classes import NewClasses
    from kdedge.artifacts.client import ClientCheck, ImageFormat

log = logging.getLogger(__name__)


def open_artifact(artifact: RunOrArtifact, *, root: str | Path | None = None) -> Artifact:
    """Reads an artifact: class names, files and their comparisons; loads no model.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Raises:
        DataError: there is no artifact, or its record is damaged.
        SetupError: a newer kdedge wrote it.
    """
    return load_artifact(find_artifact(artifact, runs_folder(root)))


def cpu_choice(artifact: RunOrArtifact, *, root: str | Path | None = None) -> CpuChoice | None:
    """The fastest file for this machine's CPU, with the table that shows why.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Returns:
        The choice of `kdedge export --cpu` on a machine like this; None if it never ran on one.

    Raises:
        DataError: there is no artifact, or a record was changed or damaged.
        SetupError: a newer kdedge wrote it.
    """
    return choice_here(read_choices(open_artifact(artifact, root=root)))


def write_smoke_images(
    artifact: RunOrArtifact,
    folder: str | Path,
    *,
    image_format: ImageFormat = "ppm",
    root: str | Path | None = None,
) -> list[Path]:
    """Writes the images of an artifact's smoke set, for a client program to classify.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        folder: a new folder.
        image_format: format of the images, `ppm` or `png`; both are lossless.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Returns:
        The images, in the order of the answers that `verify_client` takes.

    Raises:
        RecipeError: the folder exists.
        DataError: there is no artifact or no smoke set, or it has changed since the export.
        ResourceError: the folder cannot be written.
    """
    from kdedge.artifacts.client import write_images

    given = open_artifact(artifact, root=root)
    return write_images(given, home_path(folder), image_format=image_format)


def verify_client(
    artifact: RunOrArtifact,
    answers: str | Path,
    *,
    file: str | None = None,
    root: str | Path | None = None,
) -> ClientCheck:
    """Checks that a program classifies the images of an artifact's smoke set as the artifact does.

    `write_smoke_images` writes the images. The program's answers are a file with a line such as
    `{"label": "cat", "score": 93.1}` for each image. Its label has to be the artifact's, and its
    score within one percentage point.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        answers: the file of answers.
        file: the model file that the program ran; None for `model.image.onnx` if there is one, and
            else `model.onnx`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Returns:
        The largest differences.

    Raises:
        GateError: an answer differs (`result` has the check), or the file does not have one for
            each image.
        DataError: there is no artifact, no such file of it or no smoke set, a file has changed
            since the export, or the answers cannot be read.
    """
    from kdedge.artifacts.client import check_answers

    opened = open_artifact(artifact, root=root)
    if file is None:
        has_pixels = any(known.name == "model.image.onnx" for known in opened.files)
        file = "model.image.onnx" if has_pixels else "model.onnx"
    return check_answers(opened, home_path(answers), file=opened.file(file))


@torch_as_before()
def change_classes(
    artifact: RunOrArtifact,
    *,
    add: str | Sequence[str] = (),
    remove: str | Sequence[str] = (),
    run: RunOrArtifact | None = None,
    root: str | Path | None = None,
    device: str | None = None,
) -> Artifact:
    """Removes classes of an artifact with open classes, and adds new ones at its end.

    Nothing is trained, and no graph or engine is built again. Each change writes a new class
    matrix; the earlier ones stay. Removing needs no run and no torch.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        add: names of new classes. The teacher of `run` makes their vectors.
        remove: names of classes to remove.
        run: the run that the artifact was exported from; needed to add classes.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The artifact with its new classes.

    Raises:
        RecipeError: nothing to change, no run, no such class, or the artifact has no open classes.
        DataError: a name is there already, fewer than two classes would be left, the run is another
            one than the artifact's, or its teacher is missing.
        InUseError: another process is changing the artifact.
        ResourceError: the folder cannot be written.
    """
    from kdedge.artifacts import classes

    added = (add,) if isinstance(add, str) else tuple(add)
    removed = (remove,) if isinstance(remove, str) else tuple(remove)
    opened = open_artifact(artifact, root=root)
    if not added and not removed:
        raise RecipeError("There is no class to add or to remove.\n  Name at least one.")
    names = classes.changed_names(opened, added, removed)  # before the slow work
    new = None
    if added:
        if run is None:
            raise RecipeError(
                "The vectors of new classes are made by the teacher of a run.\n"
                f"  Name the artifact's run: {option('--from RUN', 'run=RUN')}."
            )
        need_training_packages("Making class vectors")
        folder = find_run(run, runs_folder(root, run))
        new = _encode(opened, folder, names[0], names[-len(added) :], device)
        if opened.none_of_these is not None:
            log.warning(
                'Images of new classes may be predicted as "none": its limit was fitted without'
                " them.\n  To fit it again, export with images of them in data.unlabeled."
            )
    with recorded_export(opened.path):
        return classes.write_changed_classes(opened.path, added=new, removed=removed)


def _encode(
    artifact: Artifact, run: RunFolder, present: str, names: tuple[str, ...], device: str | None
) -> NewClasses:
    """Encodes new classes with the text encoder that made the artifact's class vectors.

    Args:
        artifact: the artifact that gets the classes.
        run: the run that the artifact was exported from.
        present: a class of the artifact, encoded too because some splits need two or more classes.
        names: the new classes.
        device: as in `change_classes`.

    Raises:
        DataError: the artifact was exported from another run, or the teacher is missing.
    """
    from kdedge.artifacts.classes import NewClasses
    from kdedge.runs.model import load_run, run_workspace

    record = run.read_provenance()
    exported = artifact.provenance
    hashes = exported.get("hashes")
    same = {key: hashes.get(key) for key in record.hashes} if isinstance(hashes, dict) else None
    run_facts = (record.hashes, record.finished_at, record.seed)
    if (same, exported.get("trained_at"), exported.get("seed")) != run_facts:
        raise DataError(
            f"{artifact.path} was not exported from {run.path}, but from the run"
            f" {exported.get('run')} of {exported.get('trained_at')}.\n"
            "  Class vectors fit only the student that learned from their teacher: name that run."
        )
    model = load_run(run, run_workspace(run, device), names=(present, *names))
    return NewClasses(names, model.class_vectors()[1:].cpu().numpy(), model.vectors_hash)
