"""A run's evaluation: what is added to it, and what never is."""

from __future__ import annotations

from pathlib import Path

import torch

from kdedge.evaluation.accuracy import accuracy_result, evaluation_details
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import Evaluation, add_evaluation, read_evaluation, write_evaluations

NAMES = ("cat", "dog")


def measured(n_images: int) -> Evaluation:
    logits, labels = torch.eye(2).repeat(n_images, 1), torch.arange(2).repeat(n_images)
    result = accuracy_result(logits, labels, class_names=NAMES, split="all")
    details = evaluation_details(logits, labels, class_names=NAMES, split="all")
    return Evaluation(result, details)


def test_nothing_is_added_to_the_record_of_another_test_set(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "x", role="student", recipe_text="name: x\n", provenance={})
    first = measured(3)
    write_evaluations(run, {"student": first})
    run.evaluation_details.unlink()
    assert add_evaluation(run, measured(4)) == []
    assert not run.evaluation_details.exists()
    assert add_evaluation(run, first) == [run.evaluation_details, run.evaluation]
    assert read_evaluation(run) == {"student": first.result}
