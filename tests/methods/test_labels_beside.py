"""Labels beside the teacher: the loss, one head or two, and one layer of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.data.batch import Batch
from kdedge.methods import promptkd

Student = Callable[..., promptkd.Method]
NAMES = ["cat", "dog", "school bus", "fox", "pizza"]
LABELED = range(3)


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def batch(n_labeled: int = 3) -> Batch:
    labels = torch.arange(n_labeled) % len(LABELED)
    return Batch(images(), None, labeled=Batch(images(n_labeled, seed=1), labels))


def slow_features(method: promptkd.Method) -> tuple[Tensor, Tensor]:
    """Features of the unlabeled and the labeled images, with batch norm over both."""
    raw = method.image_features_raw(torch.cat([batch().images, batch().labeled.images]))
    projector = method.module.projector
    hidden = F.linear(raw, projector.linear1.weight, projector.linear1.bias)
    mean, variance = hidden.mean(0), hidden.var(0, unbiased=False)
    norm = projector.batch_norm
    hidden = (hidden - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    projected = F.linear(hidden.clamp(min=0), projector.linear2.weight, projector.linear2.bias)
    features = projected / projected.norm(dim=-1, keepdim=True)
    return features[:4], features[4:]


def slow_divergence(method: promptkd.Method, features: Tensor, teacher: Backbone) -> Tensor:
    vectors = unit_length(teacher.text_features_raw([f"a photo of a {name}." for name in NAMES]))
    wanted = (teacher.scale * teacher.image_features(images()) @ vectors.T).softmax(-1)
    found = (method.scale * features @ vectors.T).log_softmax(-1)
    return (wanted * (wanted.log() - found)).sum() / found.numel()


def slow_cross_entropy(method: promptkd.Method, features: Tensor, vectors: Tensor) -> Tensor:
    """Over the labeled classes alone."""
    logits = method.scale * features @ vectors.T
    labels = batch().labeled.labels
    return torch.stack(
        [logits[i].exp().sum().log() - logits[i, label] for i, label in enumerate(labels)]
    ).mean()


@pytest.mark.parametrize("share", [None, 0.25])
def test_the_loss_is_the_divergence_and_the_weighted_cross_entropy(
    student: Student, tiny_teacher_backbone: Backbone, share: float | None
) -> None:
    method = student(n_trained=3, labeled_weight=7.0, label_head_share=share)
    if share is not None:  # away from where it starts, and not of unit length
        with torch.no_grad():
            method.module.label_head.weight.add_(0.3 * images(1).flatten()[:120].reshape(3, 40))
    with torch.no_grad():
        features, labeled = slow_features(method)
        vectors = method.student_vectors()[:3]
        if share is not None:
            weight = method.module.label_head.weight
            vectors = weight / weight.norm(dim=-1, keepdim=True)
        divergence = slow_divergence(method, features, tiny_teacher_backbone)
        cross_entropy = slow_cross_entropy(method, labeled, vectors)
    output = method.training_step(batch())
    torch.testing.assert_close(
        output.loss, 1000 * divergence + 7 * cross_entropy, atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(output.scalars["label_loss"], cross_entropy, atol=1e-4, rtol=1e-4)


def test_without_a_weight_labeled_images_are_not_looked_at(student: Student) -> None:
    losses = [
        student(n_trained=3).training_step(one).loss
        for one in (replace(batch(), labeled=None), Batch(images(), None))
    ]
    assert torch.equal(losses[0], losses[1])


def test_a_head_for_labels_starts_as_the_teachers_class_vectors(student: Student) -> None:
    method = student(n_trained=3, labeled_weight=1.0, label_head_share=0.5)
    torch.testing.assert_close(method.class_vectors(), method.student_vectors())
    assert method.module.label_head.weight.shape == (3, 40)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_both_heads_fold_into_one_layer_that_mixes_their_logits(
    student: Student, tiny_backbone: Backbone, learn: Any, fold_and_unfolded: Any, share: float
) -> None:
    method = student(n_trained=3, labeled_weight=7.0, label_head_share=share)
    learn(method, batch(), n_steps=3, lr=0.05)
    method.module.eval()
    folded, pixels, _ = fold_and_unfolded(method, tiny_backbone.preprocess)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (tiny_backbone.preprocess.mean, tiny_backbone.preprocess.std)
    )
    features = method.forward_features((pixels - mean) / std)
    with torch.no_grad():
        of_teacher = method.scale * features @ method.student_vectors().T
        of_labels = method.label_logits(features, method.student_vectors())
    mixed = of_teacher.clone()
    mixed[:, :3] = (1 - share) * of_teacher[:, :3] + share * of_labels
    assert float((of_teacher[:, :3] - of_labels).abs().max()) > 1e-3
    torch.testing.assert_close(folded(pixels), mixed, atol=1e-3, rtol=1e-4)
    assert folded.fused_head.weight.shape == (5, 40)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"label_head_share": 0.5}, "have label_head_share without labeled_weight"),
        ({"labeled_weight": -1.0}, "greater than or equal to 0"),
        ({"labeled_weight": 1.0, "label_head_share": 0.0}, "greater than 0"),
        ({"labeled_weight": 1.0, "label_head_share": 1.5}, "less than or equal to 1"),
        (
            {"labeled_weight": 1.0, "label_head_share": 0.5, "class_vectors": "student"},
            "have label_head_share with class_vectors: student",
        ),
    ],
)
def test_wrong_settings_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        promptkd.Settings(**chosen)
