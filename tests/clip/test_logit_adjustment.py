"""Classes in balance, compared with a slow, obvious version."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdedge.clip.logit_adjustment import class_shares, find_offsets, offsets_for_unknown_prior


def test_shares_go_by_the_names_of_classes_however_they_are_written() -> None:
    found = class_shares(
        {"DOG": 1.0, "Caf\u00e9": 3.0}, ["Cafe\u0301", "dog"], "logit_adjustment.prior"
    )
    assert found.tolist() == [0.75, 0.25]


def pool(n_images: int = 300, n_classes: int = 4, *, bias: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(n_images)
    logits = 2 * torch.randn(n_images, n_classes, generator=generator)
    return logits + bias * torch.linspace(-1, 1, n_classes)


def slow_offsets(logits: Tensor, prior: list[float]) -> list[float]:
    offsets = [0.0] * len(prior)
    for _ in range(5):
        mean = [0.0] * len(prior)
        for row in logits.tolist():
            powers = [math.exp(x - v) for x, v in zip(row, offsets, strict=True)]
            mean = [m + p / sum(powers) / len(logits) for m, p in zip(mean, powers, strict=True)]
        offsets = [
            v + math.log(m) - math.log(q) for v, m, q in zip(offsets, mean, prior, strict=True)
        ]
    middle = sum(offsets) / len(offsets)
    return [v - middle for v in offsets]


@pytest.mark.parametrize("prior", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1]])
def test_offsets_are_those_of_the_plain_sum_and_make_the_prior_the_mean(prior: list[float]) -> None:
    found = find_offsets(pool(), torch.tensor(prior))
    torch.testing.assert_close(found, torch.tensor(slow_offsets(pool(), prior)).double())
    balanced = pool() - found
    expected = torch.tensor(prior).double()
    torch.testing.assert_close(balanced.softmax(1).mean(0), expected, atol=0.02, rtol=0)


def test_a_constant_preference_is_taken_away_whole() -> None:
    """Equal images show nothing but the model's preference: balanced, all classes are alike."""
    logits = torch.tensor([[3.0, 0.0, -1.0]]).repeat(10, 1)
    balanced = logits - find_offsets(logits, torch.full((3,), 1 / 3))
    torch.testing.assert_close(balanced, balanced[:, :1].repeat(1, 3))


def test_a_class_that_a_model_cannot_predict_stays_so() -> None:
    logits = torch.cat([pool(), torch.full((300, 1), -1e4)], dim=1)
    found = find_offsets(logits, torch.full((5,), 0.2))
    alone = find_offsets(pool(), torch.full((4,), 0.25))
    torch.testing.assert_close(found[:4] - found[:4].mean(), alone)
    assert ((logits - found).argmax(dim=1) < 4).all()


def classified(shares: list[int], *, bias: float) -> Tensor:
    """Logits of a good model on a pool with so many images of each class."""
    labels = torch.repeat_interleave(torch.arange(len(shares)), torch.tensor(shares))
    noise = torch.randn(len(labels), len(shares), generator=torch.Generator().manual_seed(0))
    logits = noise + 3 * torch.nn.functional.one_hot(labels, len(shares))
    return logits + bias * torch.linspace(-1, 1, len(shares))


def test_without_known_shares_a_models_preference_goes() -> None:
    logits = classified([100] * 4, bias=0.5)
    offsets = offsets_for_unknown_prior(logits)
    expected = find_offsets(logits, torch.full((4,), 0.25))
    torch.testing.assert_close(offsets, expected - expected.median())
    unsure = 0.5 * classified([100] * 4, bias=0) + torch.linspace(-1, 1, 4)
    assert offsets_for_unknown_prior(unsure).any()


def test_without_known_shares_an_unequal_pool_stays_as_it_is() -> None:
    """A line that sees good parts is not told that defects are as frequent."""
    assert torch.equal(
        offsets_for_unknown_prior(classified([370, 10, 10, 10], bias=0)), torch.zeros(4)
    )


def test_without_known_shares_no_class_is_held_down_far() -> None:
    logits = 0.1 * classified([100] * 4, bias=0) + torch.tensor([3.0, 0, 0, 0])
    assert offsets_for_unknown_prior(logits).max() == 0.75
    # Nothing keeps an overlooked class from being raised
    assert offsets_for_unknown_prior(logits - torch.tensor([6.0, 0, 0, 0])).min() < -2
