"""Speed, size and work of a run's models and of an artifact's files."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdedge.api.arguments import need_training_packages
from kdedge.benchmarking.artifact_subjects import artifact_subjects
from kdedge.benchmarking.device import find_power
from kdedge.benchmarking.run import run_bench
from kdedge.benchmarking.timing import Subject, TimingPlan
from kdedge.errors import Interrupted, RecipeError, ResourceError, check_at_least
from kdedge.files import home_path, new_file, write_json, write_new_numbered_json
from kdedge.methods.registry import list_methods
from kdedge.records.speed import SpeedResult
from kdedge.runs.find import RunOrArtifact, find_run, named_artifact
from kdedge.runs.folder import RunFolder, runs_folder
from kdedge.runtime.artifact import load_artifact, model_file_at
from kdedge.runtime.process import compute_threads, given_threads, torch_as_before

log = logging.getLogger(__name__)

AGAINST = tuple(name for name in ("coop", "cocoop", "promptsrc") if name in list_methods())
"""Methods whose architectures a run is compared with by default, as far as they are installed."""


def bench(
    *sources: RunOrArtifact,
    against: Sequence[str] = AGAINST,
    batches: Sequence[int] = (1, 8, 32, 100),
    seconds: float = 2.0,
    calls: int = 20,
    longest_call: float = 10.0,
    threads: int | None = None,
    output: str | Path | None = None,
    root: str | Path | None = None,
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
        calls: smallest number of calls; as few as 3 if more would take over 10 times `seconds`.
        longest_call: seconds; batch sizes at which a call of a model would take longer are skipped.
        threads: CPU threads; None for OMP_NUM_THREADS, or one per physical core.
        output: a new file for the measurements; by default `bench/NN.json` in the first run.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: for torch: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The measurements, with every timed call. Rows that other processes disturbed are marked and
        have no ratio.

    Raises:
        RecipeError: no such run or method, a number is too small, or the file exists.
        SetupError: torch or the device is missing; artifacts need no torch.
        ResourceError: the measurements cannot be written; the error has them as `result`.
        Interrupted: on Ctrl-C; `result` has the measurements made before it.

    Examples:
        >>> speed = kdedge.bench("artifacts/01", batches=[1], threads=1, seconds=0.1, calls=3)
        >>> for row in speed.rows:
        ...     print(row.model, [measured.p50_ms for measured in row.measurements])
    """
    check_at_least(3, calls=calls)
    if isinstance(batches, int | str):
        raise RecipeError(f"batches is {batches}; give a list, such as [{batches}].")
    check_at_least(1, batches=min(batches, default=0), threads=threads)
    check_at_least(0.01, seconds=seconds)
    check_at_least(0.1, longest_call=longest_call)
    plan = TimingPlan(seconds, calls, most_seconds=10 * seconds, call_seconds=longest_call)
    file = None if output is None else home_path(output)
    threads = given_threads() if threads is None else threads
    with (
        contextlib.nullcontext() if file is None else new_file(file),
        compute_threads(threads),
        torch_as_before(),
    ):
        root = runs_folder(root, *sources)
        names = [against] if isinstance(against, str) else against
        subjects, left_out, first_run = _subjects(sources, root, names, device, threads)
        try:
            result = run_bench(
                subjects,
                plan=plan,
                batches=tuple(batches),
                n_threads=threads,
                left_out=left_out,
                power=find_power(),
            )
        except Interrupted as error:
            _write(error.result, file, first_run)
            raise
        _write(result, file, first_run)
    return result


def _subjects(
    sources: Sequence[RunOrArtifact],
    root: Path,
    against: Sequence[str],
    device: str | None,
    threads: int | None,
) -> tuple[list[Subject], dict[str, str], RunFolder | None]:
    """Returns what is measured, why other models are left out, and the first run, if any."""
    subjects: list[Subject] = []
    left_out: dict[str, str] = {}
    runs: list[RunFolder] = []
    for source in sources or (None,):
        file = model_file_at(source)
        folder = named_artifact(source, root) if file is None else file.parent
        if folder is None:
            run = find_run(source, root)
            rows, missing = _run_subjects(run, against, device, threads)
            left_out |= missing
            runs.append(run)
            name = run.name_in(root)
        else:
            name = str(file or folder)
            artifact = load_artifact(folder)
            rows = artifact_subjects(artifact, n_threads=threads)
            if file is not None:
                artifact.file(file.name)  # the error for an unknown file lists the known ones
                rows = [row for row in rows if row.model == file.name]
            if not rows:
                raise RecipeError(f"kdedge does not run {name}.\n  Name another file or artifact.")
        if len(sources) > 1:  # runs of different sources may share a name
            rows = [replace(row, source=name) for row in rows]
        subjects += rows
    return subjects, left_out, runs[0] if runs else None


def _run_subjects(
    run: RunFolder, against: Sequence[str], device: str | None, threads: int | None
) -> tuple[list[Subject], dict[str, str]]:
    """Returns a run's models and its newest artifact's files, and why other models are left out."""
    need_training_packages("Measuring a run")
    from kdedge.api.bench_subjects import run_subjects
    from kdedge.runs.model import run_workspace

    newest = run.newest_artifact
    artifact = None if newest is None else load_artifact(newest)
    rows, left_out = run_subjects(run, run_workspace(run, device), against=against)
    if artifact is None:
        command = f"kdedge export {shlex.quote(str(run.path))} --cpu"
        left_out[f"{run.name} folded"] = f"not exported yet; export with {command}"
        return rows, left_out
    files = artifact_subjects(artifact, n_threads=threads, original=rows[-1].accuracy)
    return [*rows, *files], left_out


def _write(result: SpeedResult, output: Path | None, run: RunFolder | None) -> None:
    """Writes the measurements to `output`, or else to the run if there is one.

    Raises:
        ResourceError: the file cannot be written; the error has the measurements as `result`.
    """
    try:
        if output is not None:
            write_json(output, result.to_dict())
        elif run is not None:
            output = write_new_numbered_json(run.path / "bench", result.to_dict())
    except ResourceError as error:
        error.result = result
        raise
    if output is not None:
        log.info(f"Wrote {output}")
