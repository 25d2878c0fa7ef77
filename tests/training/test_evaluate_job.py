"""What is said of a model that training has not made better."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kdedge.records.evaluation import CalibrationBin, EvalDetails
from kdedge.runs.results import Evaluation
from kdedge.training.evaluate_job import warn_of_failure


def details(n_right: int, n_images: int) -> EvalDetails:
    """A model that takes cats for dogs, but for some; dogs are always right."""
    n_dogs = n_images // 10
    pairs = ((0, 0, n_right - n_dogs), (0, 1, n_images - n_right), (1, 1, n_dogs))
    bins = (CalibrationBin(n_images, 50.0, 100 * n_right / n_images),)
    return EvalDetails(
        class_names=("cat", "dog", *(f"other {number}" for number in range(98))),
        n_images=n_images,
        confusion=pairs,
        bins=bins,
    )


def job_of(role: str, *, trains_by_gradient: bool = True) -> Any:
    """A model's job, as far as it is asked for."""
    source = SimpleNamespace(items=[SimpleNamespace(key="0.jpg")])
    return SimpleNamespace(
        setup=SimpleNamespace(role=role, trains_by_gradient=trains_by_gradient),
        images=SimpleNamespace(source=source, indices=[0]),
    )


@pytest.mark.parametrize(
    ("n_right", "n_zero_shot", "n_images", "is_said"),
    [
        (110, 150, 1000, True),  # 4 points, deviation 1.5
        (125, 150, 1000, False),
        (160, 150, 1000, False),
        (11, 40, 99, False),  # too few images
    ],
)
def test_a_model_that_training_made_worse_is_warned_of(
    n_right: int, n_zero_shot: int, n_images: int, is_said: bool, caplog: Any
) -> None:
    job = job_of("teacher")
    result: Any = None  # the accuracies of its halves are not asked for
    found = {
        "teacher": Evaluation(result, details(n_right, n_images)),
        "zeroshot": Evaluation(result, details(n_zero_shot, n_images)),
    }
    warn_of_failure(job, found)
    told = (
        f"The teacher is right on {n_right / n_images:.2%} of {n_images:,} test images, and"
        f" zero-shot CLIP on its backbone on {n_zero_shot / n_images:.2%}: training made it"
        " worse.\n  Change optim.lr, optim.epochs or the method's settings."
    ).replace("%", " %")
    assert caplog.messages == [told] * is_said


@pytest.mark.parametrize("trains_by_gradient", [False, True])
def test_a_model_of_one_class_is_told_of_with_remedies_that_the_method_has(
    trains_by_gradient: bool, caplog: Any
) -> None:
    job = job_of("student", trains_by_gradient=trains_by_gradient)
    one_class = replace(details(110, 1000), confusion=((0, 0, 500), (1, 0, 500)))
    result: Any = None
    warn_of_failure(
        job, {"student": Evaluation(result, one_class), "zeroshot": Evaluation(result, one_class)}
    )
    (message,) = caplog.messages
    assert message.startswith("The student predicts 'cat' for every test image.\n")
    assert "such as 0.jpg are black or of other classes" in message
    assert ("optim.lr" in message) == trains_by_gradient


def test_a_model_that_guesses_is_told_of(caplog: Any) -> None:
    result: Any = None
    guessing = replace(details(110, 1000), confusion=((0, 0, 12), (0, 1, 900), (1, 0, 88)))
    warn_of_failure(job_of("student"), {"student": Evaluation(result, guessing)})
    (message,) = caplog.messages
    assert "no better than guessing among 100 classes" in message


def test_a_model_without_zero_shot_results_is_not_compared(caplog: Any) -> None:
    job = job_of("student")
    result: Any = None
    warn_of_failure(job, {"student": Evaluation(result, details(110, 1000))})
    assert caplog.messages == []
