"""CLIP-PR: the loss and its gradients against sums written out, the prior, what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.errors import RecipeError
from kdedge.loading.batch import Batch
from kdedge.paper.methods import clip_pr

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
Build = Callable[..., Any]


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plain_logits(weights: dict[str, Tensor], features: Tensor) -> Tensor:
    """The adapter one image and one unit after the other, in the features' precision."""
    rows = []
    for feature in features:
        values = feature
        for layer in ("linear1", "linear2"):
            values = weights[f"{layer}.weight"] @ values + weights[f"{layer}.bias"]
            values = torch.stack([v if v > 0 else 0.01 * v for v in values])
        rows.append(weights["linear3.weight"] @ values)
    return torch.stack(rows)


def plain_loss(logits: Tensor, labels: Tensor, prior: list[float], weight: float) -> Tensor:
    """The module's equation, with every sum written out."""
    n_images, n_classes = logits.shape
    probabilities = [
        [logits[i, c].exp() / logits[i].exp().sum() for c in range(n_classes)]
        for i in range(n_images)
    ]
    loss = sum(-probabilities[i][int(labels[i])].log() for i in range(n_images)) / n_images
    for c in range(n_classes):
        mean = sum(probabilities[i][c] for i in range(n_images)) / n_images
        loss = loss + weight * prior[c] * torch.log(prior[c] / mean)
    return loss


@pytest.mark.parametrize(
    "prior", [None, {"cat": 1, "fox": 5.0, "school_bus": 2, "golden retriever": 2}]
)
def test_loss_and_gradients_are_those_of_the_equation(
    build: Build, tiny_backbone: Backbone, prior: dict[str, float] | None
) -> None:
    method = build("clip_pr", prior_weight=30.0, prior=prior, n_hidden=5)
    shares = [0.25] * 4 if prior is None else [0.1, 0.2, 0.5, 0.2]
    weights = {
        name: value.detach().double().requires_grad_()
        for name, value in method.trainable_parameters().items()
    }
    features = tiny_backbone.image_features(images()).double()
    texts = [f"a blurred photo of a {name}." for name in ("cat", "school bus", "fox")]
    texts.append("a blurred photo of a golden retriever.")
    zero_shot = features @ unit_length(tiny_backbone.text_features_raw(texts)).double().T
    labels = zero_shot.argmax(dim=1)
    expected = plain_loss(plain_logits(weights, features), labels, shares, 30.0)
    expected.backward()

    step = method.training_step(Batch(images(), None))
    step.loss.backward()

    assert float(step.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in method.trainable_parameters().items():
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, **FLOAT32)
    total = step.scalars["loss_cross_entropy"] + 30 * step.scalars["prior_divergence"]
    torch.testing.assert_close(step.loss.detach(), total)


@given(
    n_images=st.integers(1, 5),
    shares=st.lists(st.floats(0.01, 10), min_size=2, max_size=6),
    seed=st.integers(0, 100),
)
def test_the_divergence_is_never_below_zero_and_zero_at_the_prior(
    n_images: int, shares: list[float], seed: int
) -> None:
    prior = torch.tensor(shares, dtype=torch.float64)
    prior = prior / prior.sum()
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_images, len(shares), generator=generator, dtype=torch.float64)
    assert float(clip_pr.prior_divergence(10 * logits, prior)) >= -1e-12
    at_prior = prior.log().repeat(n_images, 1) + logits[:, :1]
    assert float(clip_pr.prior_divergence(at_prior, prior)) == pytest.approx(0, abs=1e-12)


def test_a_class_that_no_image_is_given_makes_no_infinite_loss() -> None:
    logits = torch.tensor([[0.0, -500.0]], requires_grad=True)
    divergence = clip_pr.prior_divergence(logits, torch.tensor([0.5, 0.5]))
    divergence.backward()
    assert float(divergence.detach()) == pytest.approx(math.log(0.5) + 250, rel=1e-4)
    assert bool(logits.grad.isfinite().all())


def test_training_brings_the_mean_prediction_to_the_prior(build: Build, learn: Any) -> None:
    prior = {"cat": 7, "school_bus": 1, "fox": 1, "golden retriever": 1}
    method = build("clip_pr", prior=prior)
    learn(method, Batch(images(16), None), n_steps=60, kind=torch.optim.Adam, lr=0.01)
    mean = method.own_logits(images(16)).softmax(dim=-1).mean(dim=0)
    torch.testing.assert_close(mean, torch.tensor([0.7, 0.1, 0.1, 0.1]), atol=0.02, rtol=0)


def test_features_are_those_of_the_frozen_tower_whatever_the_batch(
    build: Build, tiny_backbone: Backbone
) -> None:
    method = build("clip_pr")
    many = images(130)  # more than one chunk
    expected = tiny_backbone.image_features(many)
    torch.testing.assert_close(method.forward_features(many), expected, **FLOAT32)
    torch.testing.assert_close(method.own_logits(many), method.module(expected), **FLOAT32)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"cat": 1, "school_bus": 1, "fox": 1}, "settings.prior lacks 'golden retriever'"),
        ({**dict.fromkeys(NAMES, 1), "dog": 1}, "settings.prior has 'dog', which is no class"),
    ],
)
def test_a_prior_of_other_names_is_refused(
    build: Build, prior: dict[str, float], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        build("clip_pr", prior=prior)
