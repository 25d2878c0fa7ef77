"""Runs one job of a teacher, student or baseline in a run folder: trains, stores, evaluates it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import dump_recipe
from kdedge.data.images import write_skipped_csv
from kdedge.errors import DataError, Interrupted, RecipeError, signum_of
from kdedge.files import write_json
from kdedge.loading.decoding import choose_n_workers
from kdedge.loading.loader import check_shards, step_sizes
from kdedge.messages import option, same_call
from kdedge.runs.find import newest_run
from kdedge.runs.folder import RunFolder, logged_to
from kdedge.runs.measure import measure_accuracy
from kdedge.runs.results import write_evaluations
from kdedge.runs.weights import check_stored_weights, write_weights
from kdedge.runtime.process import threads_with_workers
from kdedge.setup.method import settings_record
from kdedge.training.closed_form import fit
from kdedge.training.evaluate_job import (
    adjusted,
    count_cost,
    evaluations,
    unlabeled_result,
    warn_of_failure,
)
from kdedge.training.job import Job
from kdedge.training.loop.checkpoint import rng_kept
from kdedge.training.loop.train import train
from kdedge.training.teacher_check import reference_accuracies

log = logging.getLogger(__name__)

# Key of a hash of a run -> its input, in the words of messages
_INPUTS = {
    "class_list": "class names, or another order of them",  # first, as image lists depend on it
    "labeled_list": "labeled images",
    "unlabeled_list": "unlabeled images",
    "prior_list": "labeled images",
    "validation_list": "validation images",
    "test_list": "test images",
    "pseudo_labels": "pseudo-labels",
    "class_texts": "sentences about classes",
    "train_classes": "classes that have labels",
    "backbone": "weights",
    "teacher": "teacher",
}


def changed_input(run: RunFolder, job: Job) -> str:
    """The input in which a run differs from a job, for a message; `settings` if no hash differs."""
    record = run.read_provenance()
    now = job.hashes()
    if record.method != job.setup.method_name:  # another one may use other inputs
        return "settings"
    before = record.hashes
    changed = (text for key, text in _INPUTS.items() if before.get(key) != now.get(key))
    return next(changed, "settings")


def run_job(job: Job, *, resume: bool) -> RunFolder:
    """Trains a job in a new run folder, or resumes an interrupted run.

    With several processes, only rank 0 writes the folder.

    Args:
        job: the job.
        resume: continue the newest interrupted run of this job. If there is none, return its
            finished run; if there is no run, start a new one.

    Returns:
        The finished run.

    Raises:
        Interrupted: a signal ended the run after its state was saved.
        RecipeError: there are more processes than the job has work for.
        DivergedError: the loss is not finite.
        ResourceError: the disk is full.
        InUseError: another process uses the run folder.
        DataError: `resume` finds a finished run whose weights are missing or damaged.
    """
    group = job.setup.workspace.group
    _check_processes(job)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_cores_left(job))
        key = job.key()  # may read images, which all processes do together
        run, is_resumed = group.on_rank0(lambda: _choose_run(job, key, resume=resume))
        if group.on_rank0(lambda: run.is_finished):
            return run
        job.load()  # before the generators are seeded, since building also draws
        if group.is_rank0:
            for context in (run.lock(), logged_to(run.log), _status(run, job, is_resumed)):
                stack.enter_context(context)
            _write_skipped_images(run, job)
        if job.setup.role == "teacher":  # before the training, which may take hours
            group.on_rank0(lambda: reference_accuracies(run, job))
        with rng_kept(job.setup.device):
            # An image encoder with dropout draws from torch's global generators
            torch.manual_seed(job.setup.recipe.seed)
            summary = _train(run, job)
        if group.is_rank0:
            _finish(run, job, summary)
        group.all_reduce_max(0)  # all processes wait until the run is finished
    return run


@contextlib.contextmanager
def _cores_left(job: Job) -> Iterator[None]:
    """Context in which torch leaves cores to the data workers.

    A resumed run must have as many threads as an uninterrupted one, since their number determines
    the order of sums.
    """
    images = job.images
    optim = job.setup.optim
    n_images = 0 if images is None else len(images.indices)
    if images is not None and not job.setup.is_closed_form:
        n_images = (
            optim.epochs * job.n_steps * sum(step_sizes(images, job.labeled_per_batch, optim))
        )
    n_images //= job.setup.workspace.group.world_size  # the share of each
    n_threads = threads_with_workers(choose_n_workers(optim.n_workers, n_images))
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose_run(job: Job, key: str, *, resume: bool) -> tuple[RunFolder, bool]:
    """The interrupted run and True, or False with the finished run to return or a new run."""
    root = job.setup.workspace.root
    waiting = newest_run(root, key=key, is_finished=False)
    if resume and waiting is not None:
        log.info(f"{waiting.path}: resuming where it stopped.")
        return waiting, True
    if waiting is not None:
        why = f"was interrupted; add {option('--resume', 'resume=True')} to continue it"
        if waiting.is_in_use:
            why = "is in use by another process"
        log.info(f"{waiting.path} {why}. Starting a new run.")
    elif resume:
        done = newest_run(root, key=key)
        if done is not None:
            _check_has_weights(done, job)
            log.info(f"{done.path} is already finished: there is nothing to resume.")
            return done, False
        role = job.setup.role
        name = job.setup.recipe.name
        log.info(f"There is no interrupted run of this {role} to resume. Starting a new run.")
        other = newest_run(root, name, role=role, is_finished=False)
        if other is not None:
            log.info(f"{other.path} was interrupted with different {changed_input(other, job)}.")
    job.load()  # raises its errors before there is a folder
    recipe = job.setup.recipe
    teacher_run = job.teacher_run
    run = RunFolder.create(
        root,
        recipe.name,
        role=job.setup.role,
        recipe_text=dump_recipe(recipe),
        provenance={
            "key": key,
            **_where(job),
            "seed": recipe.seed,
            **settings_record(job.setup),
            "hashes": job.hashes(),
            "teacher_run": None if teacher_run is None else teacher_run.name_in(root),
            "official": recipe.official,
        },
    )
    return run, False


def _check_has_weights(run: RunFolder, job: Job) -> None:
    """Checks that a finished run still has the tensors that make it a model of its job.

    Raises:
        DataError: its weights or class vectors are missing or damaged.
    """
    try:
        check_stored_weights(run, job.setup, load_class_vectors(run.class_vectors))
    except DataError as error:
        raise DataError(
            f"{run.path} is already finished, but {error}\n"
            f"  {same_call()} without {option('--resume', 'resume=True')} to train again."
        ) from error


def _where(job: Job) -> dict[str, str | int]:
    """Device, processes and threads, for the provenance."""
    group = job.setup.workspace.group
    threads = torch.get_num_threads()
    return {"device": str(job.setup.device), "n_processes": group.world_size, "threads": threads}


def _check_processes(job: Job) -> None:
    """Checks that every process has work, before a run is made.

    Raises:
        RecipeError: a batch has fewer images than there are processes, or the method has its own
            training, which only one process can do.
    """
    n_processes = job.setup.workspace.group.world_size
    optim = job.setup.optim
    if job.setup.settings.own_training is not None and n_processes > 1:
        raise RecipeError(
            f"{job.setup.method_name} trains in its own way, which needs a single process, but"
            f" {n_processes} were started.\n"
            "  Run the command without torchrun."
        )
    if job.images is not None:
        check_shards(min(len(job.images.indices), optim.batch_size), n_processes)
    if job.unlabeled is not None and job.labeled is not None:
        check_shards(optim.labeled_batch_size or optim.batch_size, n_processes)


@contextlib.contextmanager
def _status(run: RunFolder, job: Job, is_resumed: bool) -> Iterator[None]:
    """Context that records in the run's provenance how it ends."""
    try:
        if is_resumed and not run.is_finished:
            run.resume(**_where(job))
        yield
    except Interrupted:
        run.mark("interrupted")
        raise
    except KeyboardInterrupt as error:
        # Before the training loop, which handles signals itself, or while the model is evaluated
        run.mark("interrupted")
        raise Interrupted(
            f"Interrupted in {run.path}.\n"
            f"  {same_call()} with {option('--resume', 'resume=True')} to go on from there.",
            signum=signum_of(error),
        ) from error
    except BaseException:
        # The error that ended the run matters more than an error of `mark`, such as on a full disk
        with contextlib.suppress(Exception):
            run.mark("failed")
        raise


def _train(run: RunFolder, job: Job) -> dict[str, Any]:
    """Trains the job, if it has anything to train; returns entries of the run's summary."""
    if job.setup.is_closed_form:
        return fit(job)
    own_training = job.setup.settings.own_training
    if own_training is not None:
        return own_training.train(job, run, validate=_validation(job))
    if not job.method.trainable_parameters():
        return {}
    settings = job.setup.optim
    group = job.setup.workspace.group
    if settings.warmup_epochs >= settings.epochs:
        log.warning(
            f"The {job.setup.role}'s warm-up covers all of its epochs ({settings.epochs}), so its"
            f" learning rate stays at warmup_lr ({settings.warmup_lr:g}).\n"
            "  Raise optim.epochs, or lower optim.warmup_epochs."
        )
    if job.filler is not None:
        job.filler.fill()
    result = train(
        job.method,
        partial(job.batches, features=None if job.filler is None else job.filler.store.read),
        job.n_steps,
        settings=settings,
        run=run,
        validate=_validation(job),
        device=job.setup.device,
        group=group,
    )
    return {"training": result.model_dump()}


def _write_skipped_images(run: RunFolder, job: Job) -> None:
    """Writes the images that a run skips, with the reasons."""
    sources = {
        "labeled": job.labeled,
        "unlabeled": job.unlabeled,
        "validation": job.validation,
        "test": job.test,
    }
    write_skipped_csv(
        run.skipped, {name: images.skipped for name, images in sources.items() if images}
    )


def _finish(run: RunFolder, job: Job, summary: dict[str, Any]) -> None:
    """Writes the trained weights and evaluates them."""
    write_weights(run, job.setup, job.method, vectors_hash=job.vectors_hash())
    model = adjusted(job, job.model())
    if model.logit_adjustment is not None:
        write_json(run.logit_adjustment, model.logit_adjustment.to_dict())
    results = evaluations(job, model)
    if results:
        write_evaluations(run, results)
        warn_of_failure(job, results)
    unlabeled = unlabeled_result(job, model)
    if unlabeled is not None:
        write_json(run.unlabeled_evaluation, unlabeled.to_dict())
    measured_on = None if job.test is None else job.test.list_hash
    run.finish(measured_on=measured_on, **summary, **count_cost(job))


def _validation(job: Job) -> Callable[[], float] | None:
    """The function that measures the accuracy by which an epoch is selected, on validation images.

    An official recipe uses test images instead. None if the last epoch is always selected.
    """
    images = job.selecting_images
    if images is None:
        return None

    def validate() -> float:
        by = job.setup.optim.selection
        result = measure_accuracy(job.model(), images, job.setup.classes, selection=by).result
        if result.split == "all":
            return result.all
        assert result.base is not None  # `RecipeImages` ensures images of base classes
        return result.base

    return validate
