"""Finds the fastest file of an artifact on this CPU among those that pass their gates here.

The candidates of a round are all in memory and timed in turns, so that a busy machine slows all
alike. First every file runs with one thread per physical core; then the fastest two are timed again
with other numbers of threads, one number after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from kdedge.benchmarking.artifact_subjects import LoadedModelFile
from kdedge.benchmarking.timing import Call, Timed, TimingPlan, measure, percentile, summarize
from kdedge.deploy.parity import misses, parity_on_smoke_set
from kdedge.errors import GateError, KdedgeError
from kdedge.progress import working
from kdedge.results import ParityResult
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import Backend
from kdedge.runtime.cpu_choice import Candidate, CpuChoice, CpuMachine
from kdedge.runtime.machine import physical_cores, usable_cores
from kdedge.runtime.threads import is_number_given, number_of_threads
from kdedge.targets.load import load_file
from kdedge.targets.registry import list_targets

EQUAL = 0.03
"""Candidates this close to the fastest count as equally fast: rounds of one differ by more."""

PLAN = TimingPlan(seconds=1.0, n_rounds=10)

_N_WITH_OTHER_THREADS = 2
_UNLIKELY = 0.01
_QUICK = 10  # the percentile of calls that decides


def fastest_on_cpu(
    artifact: Artifact, *, not_tried: dict[str, str], plan: TimingPlan = PLAN
) -> CpuChoice:
    """Measures an artifact's files for CPUs, and chooses one.

    A file can be chosen if it passed its gate when it was made, and agrees as well on the smoke set
    on this machine (`is_worse`): processors multiply bytes in different ways. One that was compared
    on no other images must pass on these. Of files that are equally fast, the one that agrees best
    is chosen, then the one with the fewest threads.

    Args:
        artifact: the artifact; calls have as many images as its smallest batch.
        not_tried: why files that could exist do not, for the record.
        plan: how long each candidate is timed.

    Raises:
        GateError: no file can be run and passes its gate here; the message says why of each.
    """
    counts = _thread_counts()
    trial = _Trial(artifact, plan)
    found = trial.measure([(file, counts[0]) for file in cpu_files(artifact)])
    best = sorted(filter(_is_fit, found), key=_speedup, reverse=True)[:_N_WITH_OTHER_THREADS]
    if best and len(counts) > 1:
        first = next(one for one in found if one.time is not None)  # others are compared with it
        merged = {(one.file, one.threads): one for one in found}
        for count in counts:  # one at a time: programs of ExecuTorch share their threads
            again = [(first.file, first.threads), *((one.file, count) for one in best)]
            more = trial.measure([(artifact.file(name), n) for name, n in dict.fromkeys(again)])
            merged |= {(one.file, one.threads): one for one in more}
        found = list(merged.values())
    chosen = choose(found, where=str(artifact.path))
    return CpuChoice(
        machine=CpuMachine.this(),
        file=chosen.file,
        sha256=artifact.file(chosen.file).sha256,
        threads=chosen.threads,
        batch=artifact.batches[0],
        candidates=tuple(found),
        not_tried=not_tried,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def cpu_files(artifact: Artifact) -> list[ModelFile]:
    """An artifact's files that run on a CPU, as their targets say; float32 for ONNX first."""
    runs = {one.name: one.cpu_precisions for one in list_targets() if one.backend is not None}
    return [
        file
        for file in artifact.files
        if file.device != "gpu" and file.precision in runs.get(file.target, ())
    ]


def choose(candidates: Sequence[Candidate], *, where: str) -> Candidate:
    """The fastest of those that can be chosen; see `fastest_on_cpu` for equally fast ones.

    Args:
        candidates: all that were measured.
        where: the artifact, for the message.

    Raises:
        GateError: none can be chosen.
    """
    fit = [one for one in candidates if _is_fit(one)]
    if not fit:
        reasons = "\n".join(f"  {one.file}: {one.out}" for one in candidates)
        raise GateError(
            f"{where} has no file that this CPU can run and that passes its gate.\n{reasons}"
        )
    least = (1 - EQUAL) * max(map(_speedup, fit))
    equal = [one for one in fit if _speedup(one) >= least]
    return min(equal, key=lambda one: (-(one.agreement_percent or 0), one.threads, -_speedup(one)))


def is_worse(here: ParityResult, made: ParityResult) -> bool:
    """Whether a file agrees less on this machine than when it was made, beyond chance.

    With the agreement of `made`, so few images or fewer would agree in less than 1 % of draws.
    """
    agreeing = round(here.n_images * here.agreement_percent / 100)
    share = made.agreement_percent / 100
    chance = sum(
        math.comb(here.n_images, n) * share**n * (1 - share) ** (here.n_images - n)
        for n in range(agreeing + 1)
    )
    return here.n_nonfinite > made.n_nonfinite or chance < _UNLIKELY


class _Trial:
    """Runs candidates; compares each file with the model once."""

    def __init__(self, artifact: Artifact, plan: TimingPlan) -> None:
        self._artifact, self._plan = artifact, plan
        self._compared: dict[str, tuple[float, str | None]] = {}

    def measure(self, wanted: Iterable[tuple[ModelFile, int]]) -> list[Candidate]:
        """Loads files with numbers of threads, and times those that load in turns."""
        found: dict[str, Candidate] = {}
        calls: dict[str, Call] = {}
        with contextlib.ExitStack() as opened:
            for file, threads in wanted:
                key = f"{file.name} {threads}"
                found[key] = Candidate(
                    file.name, file.precision, threads, None, None, None, None, None
                )
                try:
                    found[key], calls[key] = self._loaded(file, found[key], opened)
                except KdedgeError as error:
                    reason = str(error).partition("\n")[0].rstrip(".")
                    found[key] = dataclasses.replace(found[key], out=reason)
            with working(f"timing {len(calls)} candidates in turns"):
                timed = measure(calls, self._plan)
        first = next((one for one in timed.values() if one.rounds), None)
        for key, one in timed.items():
            found[key] = self._with_time(found[key], one, first)
        return list(found.values())

    def _loaded(
        self, file: ModelFile, candidate: Candidate, opened: contextlib.ExitStack
    ) -> tuple[Candidate, Call]:
        """A candidate with its comparison, and its call; it is freed with `opened`."""
        with working(f"comparing {file.name}"):
            backend = load_file(self._artifact, file, n_threads=candidate.threads)
            opened.callback(backend.close)
            if file.name not in self._compared:
                self._compared[file.name] = self._compare(file, backend)
        loaded = LoadedModelFile(self._artifact, backend)
        agreement, out = self._compared[file.name]
        candidate = dataclasses.replace(
            candidate, runtime=loaded.runtime, agreement_percent=agreement, out=out
        )
        return candidate, loaded.call(self._artifact.batches[0], "on device")

    def _compare(self, file: ModelFile, backend: Backend) -> tuple[float, str | None]:
        """Agreement here, and which gate the file misses, here or when it was made."""
        here, made = parity_on_smoke_set(self._artifact, backend), file.parity
        compared = [here] if made is None else [made, here]
        if made is not None and made.n_images > here.n_images and not is_worse(here, made):
            compared = [made]  # of more images: few alone would put out every other close file
        found = (misses(one, file.precision, self._artifact.gates) for one in compared)
        return here.agreement_percent, "; ".join(next(filter(None, found), ())) or None

    def _with_time(self, candidate: Candidate, timed: Timed, first: Timed | None) -> Candidate:
        """A candidate with its times, compared with those of the first one."""
        batch = self._artifact.batches[0]
        time = summarize(timed, batch=batch, inputs="on device", baseline=first)
        if time is None or first is None:
            return dataclasses.replace(candidate, out=candidate.out or str(timed.problem))
        speedup = percentile(first.samples, _QUICK) / percentile(timed.samples, _QUICK)
        time = dataclasses.replace(time, samples_ms=())
        return dataclasses.replace(candidate, time=time, speedup=speedup)


def _is_fit(candidate: Candidate) -> bool:
    return candidate.out is None and candidate.speedup is not None


def _speedup(candidate: Candidate) -> float:
    """That of a candidate that can be chosen."""
    assert candidate.speedup is not None
    return candidate.speedup


def _thread_counts() -> list[int]:
    """Numbers of threads to try, the default first; only the user's, if there is one."""
    given = number_of_threads()
    if given is not None and is_number_given():
        return [given]
    cores = usable_cores()
    powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    return list(dict.fromkeys([physical_cores(), *powers, cores]))
