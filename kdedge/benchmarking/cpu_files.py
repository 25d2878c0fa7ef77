"""Measures an artifact's files on this CPU, and chooses the fastest that passes its gate.

The candidates are all in memory and timed in turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

from kdedge.artifacts.parity import decisive_parity, failed_gates, parity_on_smoke_set
from kdedge.benchmarking.artifact_subjects import LoadedModelFile
from kdedge.benchmarking.timing import TimedCall, TimingPlan, measure, percentile, summarize
from kdedge.errors import GateError, KdedgeError
from kdedge.messages import first_line
from kdedge.progress import working
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import Backend
from kdedge.runtime.cpu_choice import CpuChoice, CpuMachine, TimedFile
from kdedge.targets.registry import list_targets, load_file

log = logging.getLogger(__name__)

# Candidates this close to the fastest count as equally fast, as noise alone may order them
TIE_SHARE = 0.1

PLAN = TimingPlan(seconds=1.0, n_rounds=10)

_PERCENTILE = 10  # the percentile of call times that candidates are compared by


def fastest_on_cpu(
    artifact: Artifact, *, not_tried: dict[str, str], plan: TimingPlan = PLAN
) -> CpuChoice:
    """Measures an artifact's files for CPUs, and chooses one.

    A file can be chosen if it passed its gate when it was made, and agrees as well on the smoke set
    on this machine (`is_worse`): processors multiply bytes in different ways. A file that was
    compared on no other images must pass its gate on the smoke set here. Of files that are equally
    fast, the one with the highest agreement is chosen.

    Args:
        artifact: the artifact; calls have as many images as its smallest batch.
        not_tried: files that could not be built, each with the reason, for the record.
        plan: how long each candidate is timed.

    Raises:
        GateError: no file runs here and passes its gate; the message has each file's reason.
    """
    candidates = _measure(artifact, plan)
    chosen = choose(candidates, where=str(artifact.path))
    return CpuChoice(
        machine=CpuMachine.this(),
        file=chosen.file,
        sha256=artifact.file(chosen.file).sha256,
        batch=artifact.batches[0],
        candidates=tuple(candidates),
        not_tried=not_tried,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def cpu_files(artifact: Artifact) -> list[ModelFile]:
    """An artifact's files that their targets can run on a CPU; the float32 ONNX file is first."""
    runs = {t.name: t.cpu_precisions for t in list_targets() if t.backend is not None}
    return [
        file
        for file in artifact.files
        if file.device != "gpu" and file.precision in runs.get(file.target, ())
    ]


def choose(candidates: Sequence[TimedFile], *, where: str) -> TimedFile:
    """Returns the fastest candidate that can be chosen, by the rules of `fastest_on_cpu`.

    Args:
        candidates: all measured files.
        where: the artifact, for the message.

    Raises:
        GateError: no candidate can be chosen.
    """
    speedups = {c.file: c.speedup for c in candidates if c.out is None and c.speedup is not None}
    if not speedups:
        reasons = "\n".join(f"  {candidate.file}: {candidate.out}" for candidate in candidates)
        raise GateError(
            f"{where} has no file that this CPU can run and that passes its gate.\n{reasons}"
        )
    limit = (1 - TIE_SHARE) * max(speedups.values())
    equally_fast = [c for c in candidates if speedups.get(c.file, 0) >= limit]
    return max(equally_fast, key=lambda c: (c.agreement_percent or 0, speedups[c.file]))


def _measure(artifact: Artifact, plan: TimingPlan) -> list[TimedFile]:
    """Loads the files, compares them with the float32 model, and times the loaded ones in turns."""
    candidates: list[TimedFile] = []
    calls: dict[str, TimedCall] = {}
    batch = artifact.batches[0]
    with contextlib.ExitStack() as opened:
        for file in cpu_files(artifact):
            runtime: str | None = None
            agreement: float | None = None
            out: str | None
            try:
                with working(f"comparing {file.name}"):
                    backend = load_file(artifact, file)
                    opened.callback(backend.close)
                    agreement, out = _compare(artifact, file, backend)
                loaded = LoadedModelFile(artifact, backend)
                runtime = loaded.runtime
                calls[file.name] = loaded.call(batch, "on device")
            except KdedgeError as error:
                out = first_line(error)
            candidates.append(
                TimedFile(
                    file=file.name,
                    precision=file.precision,
                    runtime=runtime,
                    agreement_percent=agreement,
                    time=None,
                    speedup=None,
                    out=out,
                )
            )
        log.info("Timing %d files in turns.", len(calls))
        with working(f"timing {len(calls)} files in turns"):
            timed = measure(calls, plan)
    baseline = next((times for times in timed.values() if times.rounds), None)
    for i, candidate in enumerate(candidates):
        times = timed.get(candidate.file)
        if times is not None and times.problem is not None and candidate.out is None:
            candidate = candidates[i] = replace(candidate, out=first_line(times.problem))
        if times is not None and baseline is not None and times.rounds:
            time = summarize(times, batch=batch, inputs="on device", baseline=baseline)
            assert time is not None  # it has rounds
            baseline_ms = percentile(baseline.samples, _PERCENTILE)
            own_ms = percentile(times.samples, _PERCENTILE)
            time = replace(time, samples_ms=())
            candidates[i] = replace(candidate, time=time, speedup=baseline_ms / own_ms)
    return candidates


def _compare(artifact: Artifact, file: ModelFile, backend: Backend) -> tuple[float, str | None]:
    """Returns the agreement on this machine, and the gates missed here or at the export."""
    measured = parity_on_smoke_set(artifact, backend)
    decisive = decisive_parity(file, measured)
    for parity in (file.parity or decisive, decisive):
        if missed := failed_gates(parity, file.precision, artifact.gates):
            where = "on the sample images: " if parity is measured else ""
            return measured.agreement_percent, where + "; ".join(missed)
    return measured.agreement_percent, None
