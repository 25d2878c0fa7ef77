"""Soft labels combined with a teacher's probabilities."""

from __future__ import annotations

import pytest
import torch

from kdedge.data.batch import SoftTargets

TEACHER = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]])
Z = torch.tensor([[0.1, 0.7, 0.2], [0.0, 0.0, 1.0]])


def combined(how: str, weight: float) -> torch.Tensor:
    logits = SoftTargets(Z, how, weight).combine(TEACHER)  # type: ignore[arg-type]
    return logits.softmax(dim=1)


def test_replace_gives_the_labels() -> None:
    torch.testing.assert_close(combined("replace", 0.3), Z, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_mix_adds_probabilities(weight: float) -> None:
    expected = (1 - weight) * TEACHER.softmax(dim=1) + weight * Z
    torch.testing.assert_close(combined("mix", weight), expected, rtol=1e-5, atol=1e-7)


def test_multiply_gives_the_normalized_product() -> None:
    z = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])
    product = TEACHER.softmax(dim=1) ** 0.6 * z**0.4
    found = SoftTargets(z, "multiply", 0.4).combine(TEACHER).softmax(dim=1)
    torch.testing.assert_close(found, product / product.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("how", ["replace", "mix", "multiply"])
def test_a_label_of_probability_zero_has_a_finite_logarithm(how: str) -> None:
    logits = SoftTargets(Z, how, 1.0).combine(TEACHER)  # type: ignore[arg-type]
    assert bool(logits.isfinite().all())


def test_half_precision_logits_are_combined_in_float32() -> None:
    assert SoftTargets(Z, "mix", 0.5).combine(TEACHER.half()).dtype == torch.float32
