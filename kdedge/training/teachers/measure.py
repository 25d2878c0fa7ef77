"""Accuracy of several teachers, each and all together, on the same labeled images."""

from __future__ import annotations

import logging

import torch

from kdedge.runs.measure import measure_logits
from kdedge.runs.results import Evaluations
from kdedge.setup.classes import Classes
from kdedge.setup.images import Images
from kdedge.training.teachers.ensemble import Ensemble

log = logging.getLogger(__name__)

UNKNOWN = -1e4
"""Logit of a class that a teacher does not know: its softmax in float32 is 0."""


def measure_teachers(ensemble: Ensemble, images: Images, classes: Classes) -> Evaluations:
    """Measures each teacher that can answer, and all together if all can.

    A teacher that knows a part of the classes is right about no image of the others, and chooses
    among the others by chance.

    Args:
        ensemble: asked. Its temperatures change its own calibration, not that of each teacher.
        images: with labels.
        classes: the class list.

    Returns:
        By name: `teacher` for all together, `teacher 1: NAME` and so on for each.
    """
    labels = torch.tensor([images.source.items[index].label for index in images.indices])
    found = {}
    if ensemble.can_answer(images):
        together = ensemble.logits_of(images)
        found["teacher"] = measure_logits(together, labels, images, classes, selection="last")
    else:
        log.info(
            "The accuracy of the teachers together is not measured: a file of probabilities has no"
            " test."
        )
    for number, teacher in enumerate(ensemble.teachers, start=1):
        if teacher.can_answer(images):
            own = ensemble.ask(teacher, images)
            whole = own.new_full((len(own), len(classes.names)), UNKNOWN)
            whole[:, list(teacher.classes)] = own
            name = f"teacher {number}: {teacher.name}"
            found[name] = measure_logits(whole, labels, images, classes, selection="last")
    return found
