"""Labels beside the teacher: the loss, against a slow version."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.loading.batch import Batch
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


def test_the_loss_is_the_divergence_and_the_weighted_cross_entropy(
    student: Student, tiny_teacher_backbone: Backbone
) -> None:
    model = copy.deepcopy(tiny_teacher_backbone.model)
    model.logit_scale.data.fill_(math.log(3.0))
    teacher = replace(tiny_teacher_backbone, model=model)
    method = student(teacher=teacher, n_trained=3, labeled_weight=7.0)
    assert method.scale != teacher.scale  # labels are judged at the student's own scale
    with torch.no_grad():
        features, labeled = slow_features(method)
        vectors = method.student_vectors()[:3]
        divergence = slow_divergence(method, features, teacher)
        cross_entropy = slow_cross_entropy(method, labeled, vectors)
    output = method.training_step(batch())
    torch.testing.assert_close(
        output.loss, 1000 * divergence + 7 * cross_entropy, atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(output.scalars["label_loss"], cross_entropy, atol=1e-4, rtol=1e-4)
