"""Speed, size and work of a run's models and of an artifact's files."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdedge.api.evaluate import AnyArtifact, run_argument
from kdedge.benchmarking.artifact_subjects import artifact_subjects
from kdedge.benchmarking.run import run_bench
from kdedge.benchmarking.timing import Subject, TimingPlan
from kdedge.errors import Interrupted, RecipeError, ResourceError, check_at_least
from kdedge.files import highest_number, new_file, write_json, write_new_numbered_json
from kdedge.plugins import need_training_packages
from kdedge.records.speed import SpeedResult
from kdedge.runs.find import find_artifact, find_run
from kdedge.runs.folder import runs_folder
from kdedge.runtime.artifact import load_artifact, model_file_at
from kdedge.runtime.threads import given_number, threads_of_a_call, torch_as_before

log = logging.getLogger(__name__)

AGAINST = ("coop", "cocoop", "promptsrc")
"""Methods whose architectures a run is compared with by default."""


def bench(
    *sources: AnyArtifact,
    against: Sequence[str] = AGAINST,
    batches: Sequence[int] = (1, 8, 32, 100),
    seconds: float = 2.0,
    threads: int | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    calls: int = 20,
    slowest: float = 10.0,
    output: str | Path | None = None,
) -> SpeedResult:
    """Measures models against each other: work, latency, FPS, memory, accuracy.

    A run is measured with its teacher, plain CLIP, the methods of `against` and the files of its
    newest artifact. The measurements are written to `bench/NN.json` in the first run.

    Args:
        sources: runs, artifacts, or files of an artifact; the newest finished student if left out.
        against: methods on the student's backbone to compare a run with.
        batches: images per call.
        seconds: shortest measurement of each model at each batch size.
        threads: CPU threads; None for one per physical core.
        root: folder of all runs; None for the one of KDEDGE_RUNS, or `runs`.
        device: for torch: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        calls: smallest number of calls; as few as 3 if more would take over 10 times `seconds`.
        slowest: seconds; batch sizes at which one call of a model would take longer are skipped.
        output: a new file for the measurements; by default `bench/NN.json` in the first run.

    Returns:
        The measurements, with every timed call. Rows that other processes disturbed are marked and
        have no ratio.

    Raises:
        RecipeError: no such run or method, a number is too small, or the file exists.
        SetupError: torch or the device is missing; artifacts need no torch.
        ResourceError: the measurements cannot be written; the error has them as `result`.
        Interrupted: on Ctrl-C; `result` has what was measured before.

    Examples:
        >>> speed = kdedge.bench("artifacts/01", batches=[1], threads=1, seconds=0.1, calls=3)
        >>> for row in speed.rows:
        ...     print(row.model, [measured.p50_ms for measured in row.measurements])
    """
    check_at_least(3, calls=calls)
    if isinstance(batches, int):
        raise RecipeError(f"batches is {batches}; give a list, such as [{batches}].")
    check_at_least(1, batches=min(batches, default=0), threads=threads)
    check_at_least(0.01, seconds=seconds)
    check_at_least(0.1, slowest=slowest)
    file = None if output is None else Path(output)
    threads = given_number() if threads is None else threads
    with (
        contextlib.nullcontext() if file is None else new_file(file),
        threads_of_a_call(threads),
        torch_as_before(),
    ):
        names = [against] if isinstance(against, str) else against
        models = Models(
            runs_folder(root, *sources), against=names, device=device, n_threads=threads
        )
        for source in sources or (None,):
            models.add(run_argument(source))

        try:
            result = run_bench(
                models.subjects,
                plan=TimingPlan(seconds, calls, most_seconds=10 * seconds, call_seconds=slowest),
                batches=tuple(batches),
                n_threads=threads,
                left_out=models.left_out,
            )
        except Interrupted as error:
            models.write(error.result, file)
            raise
        models.write(result, file)
    return result


class Models:
    """The models to measure.

    Attributes:
        left_out: what cannot be measured, and why.
        run: folder of the first run.
    """

    def __init__(
        self, root: Path, *, against: Sequence[str], device: str | None, n_threads: int | None
    ) -> None:
        self._groups: list[tuple[str, list[Subject]]] = []
        self.left_out: dict[str, str] = {}
        self.run: Path | None = None
        self._root, self._against = root, against
        self._device, self._n_threads = device, n_threads

    @property
    def subjects(self) -> list[Subject]:
        """The models; those of the same name have the path that the user gave as source."""
        n_called = Counter((row.source, row.label) for _, rows in self._groups for row in rows)
        rows_of_all = []
        for name, rows in self._groups:
            is_alone = all(n_called[row.source, row.label] == 1 for row in rows)
            rows_of_all += rows if is_alone else [replace(row, source=name) for row in rows]
        return rows_of_all

    def write(self, result: SpeedResult, output: Path | None) -> None:
        """Writes the measurements, if there is a place for them.

        Raises:
            ResourceError: they cannot be written; it has them as `result`.
        """
        try:
            if output is not None:
                write_json(output, result.to_dict())
            elif self.run is not None:
                output = write_new_numbered_json(self.run / "bench", result.to_dict())
        except ResourceError as error:
            error.result = result
            raise
        if output is not None:
            log.info("Wrote %s", output)

    def add(self, source: str | None) -> None:
        """Adds a run, an artifact or a file of one; None for the newest finished student."""
        file = model_file_at(source)
        folder = find_artifact(source, self._root) if file is None else file.parent
        if folder is None:
            self._add_run(source)
            return
        artifact = load_artifact(folder)
        rows = artifact_subjects(artifact, n_threads=self._n_threads)
        if file is not None:
            artifact.file(file.name)  # an unknown file is an error that lists the known ones
            rows = [row for row in rows if row.model == file.name]
        self._groups.append((str(source), rows))

    def _add_run(self, source: str | None) -> None:
        need_training_packages("Measuring a run")
        from kdedge.benchmarking.run_subjects import folded_name, run_subjects
        from kdedge.setup.workspace import Workspace, choose_device

        run = find_run(source, self._root)
        workspace = Workspace(self._root, choose_device(self._device))
        newest = highest_number(run.exports)
        artifact = None if newest is None else load_artifact(newest)
        rows, missing = run_subjects(run, workspace, against=self._against)
        self.left_out |= missing
        self.run = self.run or run.path
        if artifact is not None:
            original = rows[-1].accuracy
            rows += artifact_subjects(artifact, n_threads=self._n_threads, original=original)
        else:
            command = f"kdedge export {shlex.quote(str(run.path))} --cpu"
            self.left_out.setdefault(folded_name(run), f"not exported yet; export with {command}")
        self._groups.append((run.name, rows))
