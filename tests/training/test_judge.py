"""What is said of a model that training has not made better."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kdedge.results import CalibrationBin, EvalDetails
from kdedge.training.judge import warn_of_failure


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
    job: Any = SimpleNamespace(setup=SimpleNamespace(role="teacher"))
    result: Any = None  # the accuracies of its halves are not asked for
    found = {
        "teacher": (result, details(n_right, n_images)),
        "zeroshot": (result, details(n_zero_shot, n_images)),
    }
    warn_of_failure(job, found)
    told = (
        f"The teacher is right on {n_right / n_images:.2%} of {n_images:,} test images, and"
        f" zero-shot CLIP on its backbone on {n_zero_shot / n_images:.2%}: training made it"
        " worse.\n  Change optim.lr, optim.epochs or the method's settings."
    ).replace("%", " %")
    assert caplog.messages == [told] * is_said


@pytest.mark.parametrize("zero_shot_too", [True, False])
def test_test_images_that_look_alike_are_named_and_not_blamed_on_the_student(
    zero_shot_too: bool, caplog: Any
) -> None:
    source = SimpleNamespace(items=[SimpleNamespace(key="cat/0.jpg")])
    held_out = SimpleNamespace(test=SimpleNamespace(source=source, indices=[0]))
    job: Any = SimpleNamespace(setup=SimpleNamespace(role="student"), held_out=held_out)
    one_class = replace(details(110, 1000), confusion=((0, 0, 500), (1, 0, 500)))
    zero_shot = one_class if zero_shot_too else details(110, 1000)
    result: Any = None
    warn_of_failure(job, {"student": (result, one_class), "zeroshot": (result, zero_shot)})
    (message,) = caplog.messages
    assert message.startswith("The student predicts 'cat' for every test image.\n")
    assert ("all the same, such as cat/0.jpg." in message) == zero_shot_too
    assert ("optim.lr" in message) != zero_shot_too


def test_a_model_without_zero_shot_results_is_not_compared(caplog: Any) -> None:
    job: Any = SimpleNamespace(setup=SimpleNamespace(role="student"))
    result: Any = None
    warn_of_failure(job, {"student": (result, details(110, 1000))})
    assert caplog.messages == []
