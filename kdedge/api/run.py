"""A run: its results, its recipe, its teacher and its artifacts."""

from __future__ import annotations

from pathlib import Path

from kdedge.api.arguments import RunOrArtifact, run_argument
from kdedge.config.load import load_recipe
from kdedge.config.recipe import Recipe
from kdedge.errors import KdedgeError
from kdedge.records.evaluation import EvalResult, results_table
from kdedge.records.tables import Table, Tabled
from kdedge.reporting.facts import model_records
from kdedge.reporting.headline import conclusion_of
from kdedge.runs.find import find_run, runs_in
from kdedge.runs.folder import RunFolder, runs_folder
from kdedge.runs.provenance import Provenance
from kdedge.runs.results import labeled_results, read_evaluation, sorted_results
from kdedge.runtime.artifact import Artifact, load_artifact


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
        return [load_artifact(folder) for folder in self.folder.artifacts]

    @property
    def headline(self) -> str | None:
        """How good a student is and whether to deploy it, a sentence a line; None if not known."""
        return "\n".join(conclusion_of(model_records(self.folder))) or None

    def __repr__(self) -> str:
        return f"<Run {self.name}: {self.role}, {self.provenance.status}>"

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
    return Run(find_run(run_argument(run), runs_folder(root)))


def list_runs(root: str | Path | None = None) -> list[Run]:
    """Lists all runs, by name and number; other folders are ignored."""
    return [Run(folder) for folder, _ in runs_in(runs_folder(root))]
