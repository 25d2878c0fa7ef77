"""A run: its results, its recipe, its teacher and its artifacts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdedge.api.arguments import need_training_packages
from kdedge.api.inputs import AnyPath, InputSource, open_inputs, path_list
from kdedge.config.load import load_recipe
from kdedge.config.recipe import Recipe
from kdedge.data.images import check_limit, scan
from kdedge.errors import KdedgeError, RecipeError
from kdedge.progress import progress
from kdedge.records.evaluation import EvalResult, results_table
from kdedge.records.tables import Table, Tabled
from kdedge.reporting.headline import conclusion_of
from kdedge.reporting.model_records import model_records
from kdedge.runs.find import RunOrArtifact, find_run, runs_in
from kdedge.runs.folder import RunFolder, runs_folder
from kdedge.runs.provenance import Provenance
from kdedge.runs.results import labeled_results, read_evaluation, sorted_results
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.process import torch_as_before

log = logging.getLogger(__name__)


class ImageFeatures(NamedTuple):
    """Features of N images.

    Attributes:
        features: [N, D], float32, unit length.
        paths: the images, in the order of the rows.
    """

    features: npt.NDArray[np.float32]
    paths: list[str]


class Run(Tabled):
    """A run folder of a teacher, a student or a baseline.

    Attributes:
        folder: its files.
        path: the folder's path.
        name: `name/NN`.
        role: `teacher`, `student` or `baseline`.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.path = folder.path
        self.name = folder.name
        self.role = folder.role

    @property
    def provenance(self) -> Provenance:
        """How the run was made: command, versions, device, seed, hashes."""
        return self.folder.read_provenance()

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run, with all defaults written out."""
        return load_recipe(self.folder.recipe).recipe

    @property
    def results(self) -> dict[str, EvalResult]:
        """Accuracies on the test images by model, with the names of eval.json.

        The run's own are under its `role`; a student's record also has its `teacher`. Others are
        `zeroshot`, `zeroshot_balanced` and `labels_alone` (`ridge` on the labeled images).
        """
        self.folder.read_provenance()  # an error if the folder is gone
        return sorted_results(self.folder, read_evaluation(self.folder))

    @property
    def result(self) -> EvalResult | None:
        """The run's own accuracies; None if the recipe has no test images."""
        return self.results.get(self.role)

    @property
    def teacher(self) -> Run | None:
        """The run of a student's teacher; None for other runs, and if it is missing."""
        try:
            folder = self.folder.teacher_folder()
        except KdedgeError:
            return None
        return None if folder is None else Run(folder)

    @property
    def artifacts(self) -> list[Artifact]:
        """The run's artifacts, by number."""
        self.folder.read_provenance()  # an error if the folder is gone
        return [load_artifact(folder) for folder in self.folder.artifacts]

    @property
    def headline(self) -> str | None:
        """How good a student is and whether to deploy it, a sentence a line; None if not known."""
        return "\n".join(conclusion_of(model_records(self.folder))) or None

    @torch_as_before()
    def features(self, *paths: AnyPath, device: str | None = None) -> ImageFeatures:
        """Computes the features of images, for search, clustering or detection of duplicates.

        If the method's own features are logits, as those of `ridge`, they are the frozen encoder's.
        Images that cannot be read are left out, with a warning.

        Args:
            paths: images, folders with all their subfolders, shards and CSV lists; each a path or a
                list of paths.
            device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

        Raises:
            RecipeError: no path is given, or a video; or the run is not finished.
            DataError: a path does not exist, a folder has no images, or none can be read.
            SetupError: torch, weights or the device is missing.

        Examples:
            >>> features, paths = kdedge.open_run("line3").features("new-images")
            >>> similar = features @ features[0]  # cosine similarity to the first image
        """
        inputs = open_inputs(path_list(paths, takes_stdin=False))
        if not isinstance(inputs, list):
            raise RecipeError("A video is among the paths.\n  Name images and folders of images.")
        need_training_packages("Computing features")
        from kdedge.runs.model import load_run, run_workspace

        model = load_run(self.folder, run_workspace(self.folder, device))
        source = InputSource(inputs)
        n_images = len(inputs)
        with progress("reading images", n_images, unit="images") as advance:
            images = scan(source, progress=advance)
        bad = images.skipped
        check_limit(images, len(bad), "The paths")
        if bad:
            log.warning(
                f"{len(bad)} of {n_images} images cannot be read and are left out. The first is"
                f" {bad[0].key}: {bad[0].reason}."
            )
        features = model.features_of(images, what="computing features").numpy()
        return ImageFeatures(features, [inputs[i].key for i in images.indices])

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.role}>"

    @property
    def table(self) -> Table:
        """The run's name, role, status and accuracies."""
        title = f"{self.name} ({self.role}, {self.provenance.status})"
        rows = labeled_results(self.folder, self.results)
        return results_table(rows, first=title) if rows else Table("", [title], [])

    @property
    def notes(self) -> list[str]:
        """The headline."""
        return [*filter(None, [self.headline])]


def open_run(run: RunOrArtifact | None = None, *, root: str | Path | None = None) -> Run:
    """Finds a run.

    Args:
        run: its folder, `name/NN`, or a recipe's name for its newest finished student; None for the
            newest finished student, or any finished run if there is no student.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Raises:
        RecipeError: no such run.

    Examples:
        >>> student = kdedge.open_run("line3")
        >>> print(student.teacher, student.result, student.artifacts)
    """
    return Run(find_run(run, runs_folder(root)))


def list_runs(root: str | Path | None = None) -> list[Run]:
    """Lists all runs, by name and number; other folders are ignored."""
    return [Run(folder) for folder, _ in runs_in(runs_folder(root))]
