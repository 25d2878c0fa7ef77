"""Checks before a run: recipe, images, weights, memory, disk, time.

No run is made. Errors are those that the run itself would raise.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdedge.config.load import LoadedRecipe
from kdedge.data.images import Images
from kdedge.errors import ResourceError
from kdedge.files import nearest_existing
from kdedge.loading.batch import FeaturesOfViews
from kdedge.methods.base import BaseMethod
from kdedge.progress import rough_duration
from kdedge.records.record import Record
from kdedge.records.tables import Table, Tabled
from kdedge.runtime.machine import memory_bytes
from kdedge.setup.workspace import Workspace
from kdedge.training.closed_form import fit_seconds
from kdedge.training.evaluation_time import evaluation_seconds
from kdedge.training.job import Job
from kdedge.training.loop.checkpoint import rng_kept
from kdedge.training.loop.optim import learning_rate
from kdedge.training.loop.selection import state_kept
from kdedge.training.loop.step import Stepper
from kdedge.training.output_store.fill import StoreFiller, check_disk_space
from kdedge.training.output_store.store import n_crops
from kdedge.training.student import one_pass_job, student_job
from kdedge.training.teacher import baseline_job, teacher_job

# Twice the steps that eight data workers load ahead: later steps wait for images as in a long run
_MAX_TRIAL_STEPS = 32
_TRIAL_S = 5.0
_TIGHT = 0.9  # share of a GPU's memory above which fragmentation may end a longer run
_FEW_UNLABELED = 100


@dataclass(frozen=True)
class Finding:
    """One line of the preflight: the subject of a check, and the result."""

    what: str
    result: str


@dataclass(frozen=True)
class Preflight(Record, Tabled):
    """The result of `check`.

    Attributes:
        findings: one per check, in the order of the run.
        seconds: estimated time until the verdict: the start, training and evaluation.
        int8_minutes: the recipe's limit for the search of an INT8 export.
    """

    findings: tuple[Finding, ...]
    seconds: float
    int8_minutes: float

    @property
    def table(self) -> Table:
        """A row for each finding."""
        return Table("", (), [[found.what, found.result] for found in self.findings], align="l")

    @property
    def notes(self) -> list[str]:
        """The estimated time, in words."""
        return [
            f"Ready: about {rough_duration(self.seconds)} from the start to the verdict.",
            "The export comes after that: it takes minutes, and INT8 up to"
            f" {self.int8_minutes:g} more (export.int8_minutes).",
        ]


def check(loaded: LoadedRecipe, workspace: Workspace) -> Preflight:
    """Checks a recipe up to its first training steps, without making a run.

    Weights that a tag names are downloaded if they are not on this machine yet.

    Args:
        loaded: the recipe.
        workspace: the command's workspace; only finished teachers are read from its folder of runs.

    Raises:
        KdedgeError: any error that would stop the run.
    """
    began = time.perf_counter()
    findings = [Finding("recipe", f"{loaded.path}: valid")]
    device = workspace.device
    estimates_s = estimating_s = 0.0
    for job in _jobs(loaded, workspace):
        findings += [finding for finding in _describe_job(job) if finding not in findings]
        began_to_estimate = time.perf_counter()
        if job.filler is not None:
            finding, took = _store_finding(job.filler)
            findings.append(finding)
            estimates_s += took
        training_s = estimate_seconds(job)
        evaluation_s = evaluation_seconds(job)
        estimates_s += training_s + evaluation_s
        role = job.setup.role
        name = job.setup.method_name
        took_text = f"{name}, about {rough_duration(training_s)} on {device}"
        findings.append(Finding(f"{role}: time", took_text))
        findings.append(Finding(f"{role}: evaluation", f"about {rough_duration(evaluation_s)}"))
        estimating_s += time.perf_counter() - began_to_estimate
    # A run, too, begins by reading every image and loading the weights
    start_s = time.perf_counter() - began - estimating_s
    findings.append(Finding("start", f"about {rough_duration(start_s)}, as in this check"))
    findings += [memory_finding(device), _disk_finding(workspace.root)]
    int8_minutes = loaded.recipe.export.int8_minutes
    return Preflight(tuple(findings), start_s + estimates_s, int8_minutes)


def _jobs(loaded: LoadedRecipe, workspace: Workspace) -> list[Job]:
    """The jobs of a recipe: a missing teacher, student, baseline.

    If the recipe has no student, its teacher is a job even if a finished run exists.
    """
    recipe = loaded.recipe
    jobs: list[Job] = []
    if recipe.student is None:
        jobs.append(teacher_job(loaded, workspace))
    else:
        student, missing = student_job(loaded, workspace)
        jobs += [job for job in (missing, one_pass_job(student), student) if job is not None]
    if recipe.baseline is not None and recipe.baseline.method is not None:
        jobs.append(baseline_job(loaded, workspace))
    return [_as_trained(job) for job in jobs]


def _as_trained(job: Job) -> Job:
    """The job whose steps the training loop takes: of a round, if the method trains in rounds."""
    own_training = job.setup.settings.own_training
    return job if own_training is None else own_training.trial(job)


def _describe_job(job: Job) -> list[Finding]:
    """Findings about a job's classes, images, weights and method."""
    setup = job.setup
    images_used = job.images
    recipe = setup.recipe
    role = setup.role
    classes = setup.classes
    is_half = len(classes.labeled) < len(classes.names)
    reads_labels = is_half and job.setup.data_needs.labels and recipe.data.labeled is not None
    images = _count_text(images_used) if images_used else "none are needed"
    if job.teacher is not None and images_used and len(images_used.indices) < _FEW_UNLABELED:
        images += "; few: a student needs hundreds"
    half = f", labels of the first {len(classes.labeled)} are used" if reads_labels else ""
    measured = f"none: accuracy of {recipe.name} will not be measured"
    if job.teacher is not None:
        measured = "none: agreement with the teacher is measured instead"
    run = job.teacher_run
    return [
        *([] if run is None else [Finding("teacher", f"{run.path} is finished and is used")]),
        Finding(f"{role}: classes", f"{len(classes.names)}{half}"),
        Finding(f"{role}: images", images),
        Finding(f"{role}: weights", f"{setup.backbone.name}, {setup.backbone.weights_hash[:12]}"),
        Finding(f"{role}: method", f"{job.setup.method_name}, {_training(job)}"),
        Finding(f"{role}: test images", measured if job.test is None else _count_text(job.test)),
    ]


def _training(job: Job) -> str:
    """Number of trained parameters, epochs and steps, in words."""
    if job.setup.is_closed_form:
        return "solved in one pass over the images"
    n_parameters = sum(p.numel() for p in job.method.trainable_parameters().values())
    if not n_parameters:
        return "nothing to train"
    rounds = f"{job.n_rounds} rounds of about " if job.n_rounds > 1 else ""
    epochs = f"{job.setup.optim.epochs} epochs of {job.n_steps} steps"
    return f"{n_parameters:,} parameters, {rounds}{epochs}"


def _count_text(images: Images) -> str:
    """Number of images that are used and that cannot be read, in words."""
    skipped = f", {len(images.skipped)} unreadable" if images.skipped else ""
    return f"{len(images.indices):,} used of {len(images.source.items):,}{skipped}"


def estimate_seconds(job: Job) -> float:
    """Estimates a job's training time from its first steps, including the loading of images.

    The first half of the steps is left out, since it has one-time work and images loaded ahead.
    Constant features replace a teacher store, since their values do not affect the time.
    """
    if job.setup.is_closed_form:
        return fit_seconds(job)
    features = None if job.filler is None else partial(_constant_features, job.filler.store.dim)
    times = trial_steps(job, _MAX_TRIAL_STEPS, budget_s=_TRIAL_S, features=features)
    if not times:
        return 0.0
    steps = job.setup.optim.epochs * job.n_steps
    later = times[len(times) // 2 :]
    return sum(later) / len(later) * steps * job.n_rounds


def _constant_features(dim: int, positions: Sequence[int], view: int) -> Tensor:
    """[B, D], the same vector of unit length for each image; see `FeaturesOfViews`."""
    return torch.full((len(positions), dim), dim**-0.5)


def trial_steps(
    job: Job, n_trials: int, *, budget_s: float = math.inf, features: FeaturesOfViews | None = None
) -> list[float]:
    """Takes a job's first steps as the training loop does, then undoes them.

    Args:
        job: the job; its method and the global random generators are restored bit for bit.
        n_trials: maximum number of steps. The end of the first epoch stops them, too.
        budget_s: seconds after which no further step starts; at least two steps are taken. Leave
            it out if several processes train, since all must take the same number of steps.
        features: stored teacher features; if given, the teacher is not run.

    Returns:
        Seconds of each step, including the loading of its images and the optimizer's update. The
        first step includes the start of the data workers. Empty if the method trains nothing.

    Raises:
        DivergedError: a loss or a gradient is not finite.
        KdedgeError: any other error that would stop the run in its first steps.
    """
    if not job.method.trainable_parameters():
        return []
    settings = job.setup.optim
    group = job.setup.workspace.group
    times: list[float] = []
    with (
        rng_kept(job.setup.device),
        _weights_kept(job.method),
        contextlib.closing(job.batches(1, 0, features)) as batches,
    ):
        stepper = Stepper(job.method, settings, job.setup.device, group)
        lr = learning_rate(settings, epoch=1)
        job.method.module.train()
        began = ended = time.perf_counter()
        for step, batch in enumerate(itertools.islice(batches, n_trials)):
            stepper.take(batch, lr=lr, place=f"trial step {step + 1}")
            if job.setup.device.type == "cuda":
                torch.cuda.synchronize(job.setup.device)
            before = ended
            ended = time.perf_counter()
            times.append(ended - before)
            if len(times) > 1 and ended - began >= budget_s:
                break
    return times


@contextlib.contextmanager
def _weights_kept(method: BaseMethod) -> Iterator[None]:
    """Context manager that restores the method's tensors, gradients and mode on exit."""
    was_training = method.module.training
    try:
        with state_kept(method.module):
            yield
    finally:
        method.module.train(was_training)
        for parameter in method.trainable_parameters().values():
            parameter.grad = None


def _store_finding(filler: StoreFiller) -> tuple[Finding, float]:
    """Finding about the size of a teacher store, and the seconds that are needed to fill it.

    Raises:
        ResourceError: the disk has too little room for it.
    """
    missing = filler.store.load()
    check_disk_space(filler.store, missing)
    took = 0.0
    state = "complete"
    if missing:
        took = filler.seconds(missing)
        action = f"crops to compute, about {rough_duration(took)}"
        state = f"{n_crops(missing):,} of {filler.store.n_crops:,} {action}"
    return Finding("student: teacher store", f"{filler.store.size}; {state}"), took


def memory_finding(device: torch.device) -> Finding:
    """Finding about the peak of memory so far, including the trial steps.

    Args:
        device: device of the steps. On the CPU, the memory of data workers is not counted.
    """
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_reserved(device)
        # Without the memory that other processes use
        room_bytes = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        share = f"{_share(peak_bytes, room_bytes)} at the peak on {device}"
        if peak_bytes > _TIGHT * room_bytes:
            share += ", which is close to all of it; set optim.batch_size or micro_batch lower"
        return Finding("memory", share)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return Finding("memory", f"{_share(peak_bytes, memory_bytes())} at the peak")


def _share(part_bytes: int, total_bytes: int | None) -> str:
    total = "" if total_bytes is None else f" of {total_bytes / 2**30:.1f} GiB"
    return f"{part_bytes / 2**30:.1f} GiB{total}"


def _disk_finding(root: Path) -> Finding:
    """Finding about the free space on the disk of the runs.

    Raises:
        ResourceError: the folder cannot be written.
    """
    place = nearest_existing(root)
    if not place.is_dir() or not os.access(place, os.W_OK):
        what = "is not writable" if place.is_dir() else "is a file"
        raise ResourceError(
            f"{root} cannot be the folder of the runs: {place} {what}.\n  Choose another one."
        )
    return Finding("disk", f"{shutil.disk_usage(place).free / 2**30:.1f} GiB free in {place}")
