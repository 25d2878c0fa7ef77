"""What can be known before a run: recipe, images, weights, memory, disk, time.

No run is made. What is wrong is raised as the run itself would raise it.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from kdedge.config.load import LoadedRecipe, check_paths
from kdedge.data.batch import FeaturesOfViews
from kdedge.errors import ResourceError
from kdedge.progress import rough_duration
from kdedge.setup.images import Images
from kdedge.setup.workspace import Workspace
from kdedge.training.baseline import baseline_job
from kdedge.training.distill import (
    named_teacher,
    open_teacher,
    student_job,
    student_parts,
    teaching_of,
    untrained_teaching,
)
from kdedge.training.job.job import Job
from kdedge.training.job.trial import trial_steps
from kdedge.training.pseudo_labels.rounds import trial_round
from kdedge.training.teach import teacher_job
from kdedge.training.teacher_store.fill import StoreFiller

_MAX_TRIAL_STEPS = 32
"""Twice what eight data workers load ahead: later steps wait for the images as a long run does."""
_TRIAL_S = 5.0
_CHECKPOINT_COPIES = 6
"""A run's bytes over those of its trained tensors: two checkpoints with momentum and averages."""


@dataclass(frozen=True)
class Finding:
    """One line of the preflight: what was looked at and what was found."""

    what: str
    found: str


@dataclass(frozen=True)
class Preflight:
    """What `check` found.

    Attributes:
        findings: in the order of the run.
        seconds: estimated training time in all, without reading images before it, validation and
            evaluation.
    """

    findings: tuple[Finding, ...]
    seconds: float

    def __str__(self) -> str:
        found = [f"{finding.what}: {finding.found}" for finding in self.findings]
        return "\n".join([*found, self.estimate])

    @property
    def estimate(self) -> str:
        """How long the training takes, in words."""
        return f"Ready: about {rough_duration(self.seconds)} of training, evaluation not counted."


def check(loaded: LoadedRecipe, workspace: Workspace) -> Preflight:
    """Goes through a recipe's run up to the first steps, without making a run.

    Weights that are named by a tag and are not on this machine yet are downloaded.

    Args:
        loaded: the recipe.
        workspace: read-only; stored teachers are read from its folder of runs.

    Raises:
        KdedgeError: whatever would stop the run.
    """
    check_paths(loaded)
    findings = [Finding("recipe", f"{loaded.path}: valid")]
    jobs = _jobs(loaded, workspace)
    device = workspace.device
    seconds = 0.0
    for job in jobs:
        findings += describe(job)
        if job.filler is not None:
            found, took = look_at_store(job.filler)
            findings.append(found)
            seconds += took
        took = estimate_seconds(job)
        seconds += took
        findings.append(
            Finding(f"{job.setup.role}: time", f"about {rough_duration(took)} on {device}")
        )
    findings += [memory(device), disk(jobs, workspace.root)]
    return Preflight(tuple(findings), seconds)


def _jobs(loaded: LoadedRecipe, workspace: Workspace) -> list[Job]:
    """A recipe's trainings: the teacher's unless it is stored, the student's, the baseline's."""
    jobs: list[Job] = []
    recipe = loaded.recipe
    stored = None if recipe.student is None else named_teacher(loaded, workspace)
    # First, as by `distill`: it compares the sizes of both models
    parts = None if recipe.student is None else student_parts(loaded, workspace)
    if recipe.teacher is not None and (parts is None or stored is None):
        jobs.append(teacher_job(loaded, workspace))
    if parts is not None:
        if stored is not None:
            teaching = teaching_of(open_teacher(stored, parts), parts)
        else:
            teaching = untrained_teaching(jobs[0], parts)
        jobs.append(student_job(parts, teaching))
    if recipe.baseline is not None and recipe.baseline.method is not None:
        jobs.append(baseline_job(loaded, workspace))
    return [trial_round(job) if job.data.pool is not None else job for job in jobs]


def describe(job: Job) -> list[Finding]:
    """What a job is made of."""
    setup, data, test = job.setup, job.data, job.held_out.test
    recipe, classes, role = setup.loaded.recipe, setup.classes, setup.role
    reads_labels = job.choice.sees.labels and recipe.data.labeled is not None
    half = f", labels of the first {len(classes.labeled)} are read" if reads_labels else ""
    measured = f"none: accuracy of {recipe.name} will not be measured"
    if job.teaching is not None:
        measured = "none: agreement with the teacher is measured instead"
    rows = [
        (f"{role}: classes", f"{len(classes.names)}{half}"),
        (f"{role}: images", count(data.images) if data.images else "none are needed"),
        (f"{role}: weights", f"{setup.backbone.name}, {setup.backbone.weights_hash[:12]}"),
        (f"{role}: method", f"{job.choice.name}, {_training(job)}"),
        (f"{role}: test images", measured if test is None else count(test)),
    ]
    return [Finding(*row) for row in rows]


def _training(job: Job) -> str:
    """How much is trained, and for how long."""
    n_parameters = sum(p.numel() for p in job.method.trainable_parameters().values())
    if not n_parameters:
        return "nothing to train"
    steps = job.n_steps
    n_rounds = job.choice.settings.n_rounds
    rounds = f"{n_rounds} rounds of about " if n_rounds > 1 else ""
    n_epochs = job.choice.optim.epochs
    return f"{n_parameters:,} parameters, {rounds}{n_epochs} epochs of {steps} steps"


def count(images: Images) -> str:
    """How many images are used and how many cannot be read."""
    skipped = f", {len(images.skipped)} unreadable" if images.skipped else ""
    return f"{len(images.indices):,} used of {len(images.source.items):,}{skipped}"


def estimate_seconds(job: Job) -> float:
    """Times a job's first steps, loading their images included, and multiplies.

    The earlier half is left out: it holds what happens once, and images loaded ahead. Features that
    a teacher store will give cost the steps nothing, whatever they are.
    """
    features = None if job.filler is None else _stand_in(job.filler.store.dim)
    times = trial_steps(job, _MAX_TRIAL_STEPS, budget_s=_TRIAL_S, features=features)
    if not times:
        return 0.0
    settings = job.choice.optim
    steps = settings.epochs * job.n_steps
    later = times[len(times) // 2 :]
    return sum(later) / len(later) * steps * max(1, job.choice.settings.n_rounds)


def _stand_in(dim: int) -> FeaturesOfViews:
    """Gives every view the same unit-length features."""
    return lambda positions, view: torch.full((len(positions), dim), dim**-0.5)


def look_at_store(filler: StoreFiller) -> tuple[Finding, float]:
    """What a teacher store takes, and the seconds that running the teacher for it still needs."""
    chunks = filler.store.chunks()
    missing = filler.store.load(chunks)
    took = filler.seconds(missing)
    state = (
        f"{len(missing)} of {len(chunks)} files to compute, about {rough_duration(took)}"
        if missing
        else "whole"
    )
    return Finding("student: teacher store", f"{filler.store.size}; {state}"), took


def memory(device: torch.device) -> Finding:
    """Most memory in use at any time up to here, the trial steps' included.

    Args:
        device: of the steps; on the CPU it is this process's memory that counts, without its data
            workers'.

    Raises:
        ResourceError: less is left on this machine than the run takes.
    """
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device)
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        return Finding("memory", f"{_share(peak_bytes, total_bytes)} at the peak on {device}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return check_memory(
        peak_bytes=peak if sys.platform == "darwin" else peak * 1024,
        total_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        usable_bytes=_usable_bytes(),
    )


def check_memory(*, peak_bytes: int, total_bytes: int, usable_bytes: int | None) -> Finding:
    """Compares what the check took at its peak with what a run would find.

    Args:
        peak_bytes: most that this process held.
        total_bytes: this machine's.
        usable_bytes: what is free once this process has ended; None where that is not known.

    Raises:
        ResourceError: the run would find less than the check took, which then was swapped out or
            has been taken by others since.
    """
    if usable_bytes is not None and usable_bytes < peak_bytes:
        raise ResourceError(
            f"The first steps took {peak_bytes / 2**30:.1f} GiB of memory, and this machine has"
            f" {usable_bytes / 2**30:.1f} GiB to give of its {total_bytes / 2**30:.1f} GiB.\n"
            "  End other processes, or set optim.batch_size to a smaller number."
        )
    return Finding("memory", f"{_share(peak_bytes, total_bytes)} at the peak")


def _share(part_bytes: int, total_bytes: int) -> str:
    return f"{part_bytes / 2**30:.1f} GiB of {total_bytes / 2**30:.1f} GiB"


def _usable_bytes() -> int | None:
    """Memory that is available on Linux, and what this process holds of the rest."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return available + resident_pages * os.sysconf("SC_PAGE_SIZE")


def disk(jobs: list[Job], root: Path) -> Finding:
    """Free space against what a run writes.

    Raises:
        ResourceError: it is not enough.
    """
    place = next(
        folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists()
    )
    if not place.is_dir() or not os.access(place, os.W_OK):
        what = "may not be written to" if place.is_dir() else "is a file"
        raise ResourceError(
            f"{root} cannot be the folder of the runs: {place} {what}.\n  Name another with --runs."
        )
    free = shutil.disk_usage(place).free
    needed = _CHECKPOINT_COPIES * sum(
        max(1, job.choice.settings.n_rounds) * tensor.nbytes
        for job in jobs
        for tensor in job.method.module.state_dict().values()
    )
    for job in jobs:
        if job.filler is not None:
            store = job.filler.store
            needed += store.bytes_of(chunk for chunk in store.chunks() if not store.has(chunk))
    if free < needed:
        raise ResourceError(
            f"{place} has {free / 2**20:.0f} MiB free, and these runs write about"
            f" {needed / 2**20:.0f} MiB.\n"
            "  Free some space, or name another folder with --runs."
        )
    return Finding(
        "disk", f"about {needed / 2**20:.0f} MiB needed, {free / 2**30:.1f} GiB free in {place}"
    )
