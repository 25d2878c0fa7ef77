"""Speed, size and work of a run's models and of an artifact's files."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdedge.api.evaluate import run_argument
from kdedge.benchmarking.artifact_subjects import artifact_subjects, comparison, find_artifact
from kdedge.benchmarking.run import run_bench
from kdedge.benchmarking.subject import Subject
from kdedge.benchmarking.timing import TimingPlan
from kdedge.errors import RecipeError
from kdedge.files import highest_number, write_new_numbered_json
from kdedge.runs.find import find_run
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.threads import set_up_threads
from kdedge.setup.packages import need_training_packages
from kdedge.speed_results import SpeedResult

AGAINST = ("coop", "cocoop", "promptsrc")
"""Methods whose architectures a run is compared with by default."""


def bench(
    *sources: Any,
    against: Sequence[str] = AGAINST,
    batches: Sequence[int] = (1, 8, 32, 100),
    seconds: float = 2.0,
    threads: int | None = None,
    root: str | Path = "runs",
    device: str | None = None,
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
        root: folder of all runs.
        device: for torch: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The measurements, with every timed call. Rows that other processes disturbed are marked and
        have no ratio.

    Raises:
        RecipeError: no such run or method, or a number is too small.
        SetupError: torch or the device is missing; artifacts need no torch.
    """
    if not batches or min(batches) < 1 or not seconds > 0:
        raise RecipeError(
            f"batches is {list(batches)} and seconds is {seconds:g}. Give batches of 1 or more, and"
            " more than 0 seconds."
        )
    set_up_threads(threads)
    names = [against] if isinstance(against, str) else against
    gathered = Gathered(Path(root), against=names, device=device, n_threads=threads)
    for source in sources or (None,):
        gathered.add(run_argument(source))
    result = run_bench(
        gathered.subjects,
        plan=TimingPlan(seconds=seconds, most_seconds=10 * seconds),
        batches=tuple(batches),
        n_threads=threads,
        left_out=gathered.left_out,
        command=shlex.join(sys.argv),
    )
    if gathered.run is not None:
        write_new_numbered_json(gathered.run / "bench", result.to_dict())
    return result


class Gathered:
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
        """The models; those of the same name get the path that the user gave as their source."""
        n_called = Counter((row.source, row.label) for _, rows in self._groups for row in rows)
        found = []
        for name, rows in self._groups:
            is_alone = all(n_called[row.source, row.label] == 1 for row in rows)
            found += rows if is_alone else [replace(row, source=name) for row in rows]
        return found

    def add(self, source: str | None) -> None:
        """Adds a run, an artifact or a file of one; None for the newest finished student."""
        found = None if source is None else find_artifact(Path(source))
        if found is None:
            self._add_run(source)
        else:
            self._groups.append((str(source), self._of_artifact(*found)))

    def _of_artifact(self, folder: Path, file: str | None) -> list[Subject]:
        artifact = load_artifact(folder)
        if file is not None:
            artifact.file(file)  # an unknown file is an error that lists the known ones
        found = artifact_subjects(artifact, n_threads=self._n_threads)
        return [one for one in found if file in (None, one.model)]

    def _add_run(self, source: str | None) -> None:
        need_training_packages("Measuring a run")
        from kdedge.benchmarking.run_subjects import folded_name, run_subjects
        from kdedge.setup.device import choose_device
        from kdedge.setup.workspace import Workspace

        run = find_run(source, self._root)
        workspace = Workspace(self._root, choose_device(self._device))
        newest = highest_number(run.exports)
        artifact = None if newest is None else load_artifact(newest)
        compared = None if artifact is None else comparison(artifact)
        rows, missing = run_subjects(run, workspace, against=self._against, compared=compared)
        self.left_out |= missing
        self.run = self.run or run.path
        if artifact is not None:
            rows += artifact_subjects(artifact, n_threads=self._n_threads)
        else:
            command = f"kdedge export {shlex.quote(str(run.path))} --onnx --int8"
            self.left_out.setdefault(folded_name(run), f"not exported yet; export with {command}")
        self._groups.append((run.name, rows))
