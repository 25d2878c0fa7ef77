"""Compares a job's images with those that a run has recorded."""

from __future__ import annotations

import logging

from kdedge.runs.folder import RunFolder
from kdedge.runs.image_lists import describe_changes, write_image_lists
from kdedge.setup.images import Images
from kdedge.training.job.job import Job

log = logging.getLogger(__name__)


def images_by_source(job: Job) -> dict[str, Images | None]:
    """A job's images by their key in the recipe's `data` section."""
    data = job.data
    return {
        "unlabeled" if data.labels is None else "labeled": data.images,
        **({} if data.labeled is None else {"labeled": data.labeled.images}),
        **({} if data.pool is None else {"unlabeled": data.pool}),
        "validation": job.held_out.validation,
        "test": job.held_out.test,
    }


def record_images(run: RunFolder, job: Job) -> None:
    """Records a run's images; warns if those of an interrupted run have changed."""
    lists = images_by_source(job)
    if not run.is_new:
        changes = describe_changes(run, lists, job.classes.names)
        if changes is not None:
            log.warning("The images of %s have changed since it began: %s.", run.path, changes)
    write_image_lists(run, lists, job.classes.names)


def describe_other_images(run: RunFolder, job: Job) -> str | None:
    """Says in words how a job's images differ from a run's lists; None if the lists are missing."""
    if not run.image_lists.is_file():
        return None
    return describe_changes(run, images_by_source(job), job.classes.names)
