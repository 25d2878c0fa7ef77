"""One run from its parts to its folder: train, store, measure; teacher and student alike."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdedge.clip.backbone import Backbone
from kdedge.config.load import dump_recipe
from kdedge.data.few_shot import keep_list
from kdedge.data.images import write_skipped_csv
from kdedge.data.loader import n_steps
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import Interrupted, RecipeError, Terminated
from kdedge.eval_details import EvalDetails
from kdedge.methods.protocol import Method
from kdedge.results import EvalResult
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import measure
from kdedge.runs.results import Evaluations, write_evaluations
from kdedge.runs.weights import store_trained
from kdedge.setup.images import Images
from kdedge.setup.method import settings_record
from kdedge.training.job.job import Job, batches_of, zero_shot
from kdedge.training.loop.checkpoint import rng_kept
from kdedge.training.loop.train import train
from kdedge.training.pseudo_labels.rounds import train_rounds

log = logging.getLogger(__name__)


def unfinished_run(root: Path, job: Job) -> RunFolder | None:
    """The newest run of the same job that was interrupted, or None."""
    key = job.key()
    found = [
        run
        for run, record in runs_in(root)
        if record.get("key") == key and record.get("status") != "finished"
    ]
    return max(found, key=lambda run: str(run.read_provenance().get("started_at")), default=None)


def finished_run(root: Path, key: str) -> RunFolder | None:
    """The newest finished run of exactly the job with this key, or None."""
    found = [
        (str(record.get("finished_at")), run)
        for run, record in runs_in(root)
        if record.get("key") == key and record.get("status") == "finished"
    ]
    return max(found, key=lambda entry: entry[0])[1] if found else None


def run_job(
    job: Job, *, root: Path, resume: bool, group: ProcessGroup = SINGLE_PROCESS
) -> RunFolder:
    """Trains a job in a folder of its own, or goes on with its interrupted one.

    Args:
        job: what to train.
        root: folder of all runs; of several processes the first alone writes in it.
        resume: go on with the newest interrupted run of exactly this job, where there is one; where
            there is none but a finished one, give that.
        group: those that train together.

    Returns:
        The finished run.

    Raises:
        Interrupted: a signal ended it after its state was saved.
        RecipeError: validation and test share an image, or several processes are to train a method
            that labels its pool.
        DivergedError: the loss is not finite.
        ResourceError: the disk is full, or another process works in the run.
    """
    _check_selection(job)
    if job.pool is not None and group.world_size > 1:
        raise RecipeError(
            f"{job.choice.name} labels its images in rounds, which one process does, and"
            f" {group.world_size} were started.\n  Run the command without torchrun."
        )
    run = group.on_rank0(lambda: _choose_run(job, root, resume=resume, group=group))
    if group.on_rank0(lambda: run.is_finished):
        return run
    with _at_work(run, job, group):
        _fill(run, job, group)
        group.all_reduce_max(0)  # no process goes on before the run is finished
    return run


def _choose_run(job: Job, root: Path, *, resume: bool, group: ProcessGroup) -> RunFolder:
    """The interrupted run to go on with, the finished one to give, or a new one."""
    waiting = unfinished_run(root, job)
    if resume and waiting is not None:
        log.info("%s: going on where it stopped.", waiting.path)
        return waiting
    if waiting is not None:
        log.info(
            "%s is in use by another process. This is a new run."
            if waiting.is_in_use
            else "%s was interrupted; add --resume to go on with it. This is a new run.",
            waiting.path,
        )
    elif resume:
        done = finished_run(root, job.key())
        if done is not None:
            log.info("%s is finished: there is nothing to go on with.", done.path)
            return done
        log.info("No interrupted run of this %s to resume: this is a new run.", job.role)
    notes = job.choice.settings.notes(len(job.classes.names))
    for message in notes.messages:
        log.info(message)
    return RunFolder.create(
        root,
        job.loaded.recipe.name,
        kind=job.role,
        recipe_text=dump_recipe(job.loaded.recipe),
        provenance={
            "key": job.key(),
            "device": str(job.device),
            "n_processes": group.world_size,
            "seed": job.loaded.recipe.seed,
            **settings_record(job.choice),
            **notes.record,
            "hashes": job.hashes(),
            "teacher_run": job.teacher_run,
            "official": job.loaded.recipe.official,
        },
    )


@contextlib.contextmanager
def _at_work(run: RunFolder, job: Job, group: ProcessGroup) -> Iterator[None]:
    """Context of the work in a run: its lock, log and status are the first process's."""
    if not group.is_rank0:
        yield
        return
    with run.lock(), run.logging_to_file(), _status(run, job.device, group.world_size):
        yield


def _check_selection(job: Job) -> None:
    """Makes sure that no test image chooses an epoch.

    Raises:
        RecipeError: validation and test share an image.
    """
    if job.validation is None or job.test is None:
        return
    tested = {job.test.digests[index] for index in job.test.indices}
    shared = [i for i in job.validation.indices if job.validation.digests[i] in tested]
    if shared:
        raise RecipeError(
            f"data.validation and data.test share {len(shared)} images, first"
            f" {job.validation.source.items[shared[0]].key}.\n"
            "  An epoch chosen on test images makes the test worthless: use other images."
        )


@contextlib.contextmanager
def _status(run: RunFolder, device: torch.device, n_processes: int) -> Iterator[None]:
    """Records in the run's provenance how it ended."""
    try:
        run.mark("running", device=str(device), n_processes=n_processes)
        yield
    except Interrupted:
        run.mark("interrupted")
        raise
    except KeyboardInterrupt as error:
        # Not in the training loop, which saves its state: before it, or storing and measuring.
        run.mark("interrupted")
        raise Interrupted(
            f"Interrupted in {run.path}.\n"
            "  Run the same command with --resume to go on from there.",
            signum=signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT,
        ) from error
    except BaseException:
        # The error that ended the run matters more than one while noting it (a full disk gives
        # both).
        with contextlib.suppress(Exception):
            run.mark("failed")
        raise


def _fill(run: RunFolder, job: Job, group: ProcessGroup) -> None:
    """Trains, stores and measures; what is not training is the first process's work."""
    if group.is_rank0:
        _write_skipped(run, job)
        _keep_few_shot_list(job)
    with _own_rng(job):
        summary = _train(run, job, group)
    if group.is_rank0:
        _finish(run, job, summary)


@contextlib.contextmanager
def _own_rng(job: Job) -> Iterator[None]:
    """Context of random draws that the seed alone decides, whatever was drawn before.

    An image tower with dropout draws from torch's global generators.
    """
    with rng_kept(job.device):
        torch.manual_seed(job.loaded.recipe.seed)
        yield


def _train(run: RunFolder, job: Job, group: ProcessGroup) -> dict[str, Any]:
    """Trains what is to be trained; gives what the run's summary says of it."""
    if job.pool is not None:
        return train_rounds(job, run, validate=_validation(job))
    if not job.method.trainable_parameters():
        return {}
    settings = job.choice.optim
    if settings.schedule_per == "epoch" and settings.warmup_epochs >= settings.epochs:
        log.warning(
            "The %s's warm-up takes every one of its epochs, %d: its learning rate stays at"
            " warmup_lr, %g.\n  Raise optim.epochs, or lower optim.warmup_epochs.",
            *(job.role, settings.epochs, settings.warmup_lr),
        )
    features = None
    if job.filler is not None:
        job.filler.fill()
        features = job.filler.store.read
    result = train(
        job.method,
        batches=partial(batches_of, job, features=features, group=group),
        n_steps=n_steps(len(job.training_images.indices), settings.batch_size),
        settings=settings,
        run=run,
        validate=_validation(job),
        device=job.device,
        identity={"key": job.key()},
        group=group,
    )
    return {"training": result.to_dict()}


def _write_skipped(run: RunFolder, job: Job) -> None:
    """Records which images are left out, and why."""
    sources = {
        "unlabeled" if job.labels is None else "labeled": job.images,
        **({} if job.labeled is None else {"labeled": job.labeled.images}),
        **({} if job.pool is None else {"unlabeled": job.pool}),
        "validation": job.validation,
        "test": job.test,
    }
    write_skipped_csv(
        run.skipped, {name: images.skipped for name, images in sources.items() if images}
    )


def _finish(run: RunFolder, job: Job, summary: dict[str, Any]) -> None:
    """Writes what was trained, and measures it."""
    store_trained(
        run,
        method_name=job.choice.name,
        method=job.method,
        backbone=job.backbone,
        classes=job.classes,
        made_by=job.made_by(),
    )
    evaluation = evaluate_job(job)
    if evaluation:
        write_evaluations(run, evaluation)
    run.finish(**summary)


def _keep_few_shot_list(job: Job) -> None:
    """Lists the shots of a benchmark set beside it, once."""
    recipe = job.loaded.recipe
    spec = recipe.data.labeled
    has_labels = job.labels is not None or job.labeled is not None
    if has_labels and spec is not None and spec.shots is not None:
        keep_list(spec, shots=spec.shots, seed=recipe.seed, data=recipe.data)


def _validation(job: Job) -> Callable[[], float] | None:
    """Accuracy on validation images, for choosing an epoch; on test images where official."""
    images = job.validation or job.chosen_on_test
    if images is None:
        return None

    def validate() -> float:
        result, _ = _measure(job, job.method, images)
        if result.split == "all":
            return result.all
        assert result.base is not None  # the images were looked at before
        return result.base

    return validate


def _measure(job: Job, model: Method, images: Images) -> tuple[EvalResult, EvalDetails]:
    return measure(
        model,
        images,
        job.classes,
        preprocess=job.backbone.preprocess,
        device=job.device,
        selection=job.choice.optim.selection if model is job.method else "last",
    )


def evaluate_job(job: Job) -> Evaluations:
    """Results of the trained method and of zero-shot CLIP on the same backbone, by row name.

    An image tower alone has no zero-shot answers.
    """
    if job.test is None:
        return {}
    own = {str(job.role): _measure(job, job.method, job.test)}
    if not isinstance(job.backbone, Backbone):
        return own
    return {**own, "zeroshot": _measure(job, zero_shot(job), job.test)}
