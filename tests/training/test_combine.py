"""Several teachers' probabilities, combined: against a slow version, and what must not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.config.recipe import EnsembleSpec
from kdedge.training.teachers.combine import Combined, combine, matching_temperature

C = 5
ALL = range(C)
BASE = range(3)
WEIGHTS = ["equal", "entropy", "confidence"]


def logits(seed: int, n: int = 7, classes: int = C) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def together(
    given: list[Tensor], classes: list[Any], temperatures: list[float], **settings: Any
) -> Combined:
    return combine(given, classes, EnsembleSpec(**settings), temperatures=temperatures, n_classes=C)


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [value / sum(powers) for value in powers]


def weigh(rows: list[list[float]], kind: str, tau: float) -> list[float]:
    """The weights of several teachers for one image."""
    if kind == "equal":
        given = [1.0 for _ in rows]
    elif kind == "entropy":
        given = [math.exp(sum(p * math.log(p) for p in row if p) / tau) for row in rows]
    else:
        given = [max(row) for row in rows]
    return [value / sum(given) for value in given]


def mix(rows: list[list[float]], weights: list[float]) -> list[float]:
    return [sum(w * row[k] for w, row in zip(weights, rows, strict=True)) for k in ALL]


def slow(
    given: list[Tensor], classes: list[Any], temperatures: list[float], kind: str, tau: float
) -> list[list[float]]:
    """Image by image and class by class, as the equations say."""
    answers = []
    for image in range(len(given[0])):
        own = [
            softmax(one[image].tolist(), temperature)
            for one, temperature in zip(given, temperatures, strict=True)
        ]
        whole = [row for row, known in zip(own, classes, strict=True) if len(known) == C]
        q = mix(whole, weigh(whole, kind, tau))
        completed = []
        for row, known in zip(own, classes, strict=True):
            mass = sum(q[k] for k in known)
            parts = dict(zip(known, row, strict=True))
            is_whole = len(known) == C
            completed.append(
                row if is_whole else [mass * parts[k] if k in parts else q[k] for k in ALL]
            )
        answers.append(mix(completed, weigh(completed, kind, tau)))
    return answers


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_the_combination_is_the_one_of_the_equations(kind: str, tau: float) -> None:
    given = [logits(1), logits(2), logits(3, classes=len(BASE))]
    classes, temperatures = [ALL, ALL, BASE], [1.0, 2.5, 0.7]
    found = together(given, classes, temperatures, weights=kind, tau=tau)
    expected = torch.tensor(slow(given, classes, temperatures, kind, tau))
    torch.testing.assert_close(found.log_probabilities.exp(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.weights.sum(dim=0), torch.ones(7))
    torch.testing.assert_close(found.probabilities.sum(dim=-1), torch.ones(3, 7))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_two_equal_teachers_say_what_one_says(kind: str) -> None:
    one = logits(4)
    found = together([one, one], [ALL, ALL], [1.0, matching_temperature(one, one)], weights=kind)
    torch.testing.assert_close(found.log_probabilities, one.log_softmax(dim=-1))
    assert found.weights.tolist() == [[0.5] * 7] * 2


def test_the_surer_teacher_has_the_larger_weight_and_a_small_tau_follows_it_alone() -> None:
    sure, unsure = torch.tensor([[9.0, 0, 0, 0, 0]]), torch.tensor([[0.0, 0, 0, 1, 0]])
    for settings in ({"weights": "confidence"}, {"weights": "entropy"}):
        found = together([unsure, sure], [ALL, ALL], [1.0, 1.0], **settings)
        assert found.weights[1] > 0.6
    found = together([unsure, sure], [ALL, ALL], [1.0, 1.0], weights="entropy", tau=0.01)
    torch.testing.assert_close(found.log_probabilities, sure.log_softmax(dim=-1))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_teacher_of_some_classes_does_not_change_how_probable_these_are_together(
    kind: str,
) -> None:
    whole, part = logits(5), logits(6, classes=len(BASE))
    found = together([whole, part], [ALL, BASE], [1.0, 1.0], weights=kind).log_probabilities.exp()
    q = whole.softmax(dim=-1)
    torch.testing.assert_close(found[:, 3:], q[:, 3:])
    torch.testing.assert_close(found[:, :3].sum(dim=1), q[:, :3].sum(dim=1))
    assert (found[:, :3] - q[:, :3]).abs().max() > 0.01


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_teacher_of_classes_that_are_on_no_image_abstains_on_all_of_them(kind: str) -> None:
    whole = logits(7)
    whole[:, :3] = -1e4
    part = logits(8, classes=len(BASE))
    found = together([whole, part], [ALL, BASE], [1.0, 1.0], weights=kind)
    assert torch.equal(found.probabilities[1], found.probabilities[0])
    torch.testing.assert_close(found.log_probabilities.exp(), whole.softmax(dim=-1))


def test_a_class_that_no_teacher_deems_possible_has_a_finite_logarithm() -> None:
    one = torch.tensor([[0.0, -1e4, -1e4, -1e4, -1e4]])
    found = together([one, one], [ALL, ALL], [1.0, 1.0])
    assert found.log_probabilities.isfinite().all()
    assert found.log_probabilities.exp().tolist() == [[1.0, *[pytest.approx(0, abs=1e-37)] * 4]]


def test_the_temperature_gives_the_references_mean_confidence() -> None:
    own, reference = 20 * logits(9, n=50), logits(10, n=50)
    temperature = matching_temperature(own, reference)

    def confidence(given: Tensor) -> float:
        return float(given.double().softmax(dim=-1).amax(dim=-1).mean())

    assert confidence(own.double() / temperature) == pytest.approx(confidence(reference), abs=1e-9)
    assert temperature > 10


def test_a_teacher_that_says_the_same_of_all_images_gets_a_finite_temperature() -> None:
    flat = torch.zeros(4, C)
    assert 0 < matching_temperature(flat, logits(11, n=4)) < float("inf")
    assert 0 < matching_temperature(logits(11, n=4), flat) < float("inf")
