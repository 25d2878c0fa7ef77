"""CoCoOp: texts of each image's own, chunks that change nothing, what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.text import encode_text
from kdedge.methods import cocoop

FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
Build = Callable[..., Any]


def test_every_image_is_compared_with_texts_of_its_own(
    build: Build, labeled_batch: Any, tiny_backbone: Backbone
) -> None:
    method, images = build("cocoop"), labeled_batch().images
    learner = method.module
    expected = []
    for image in images:
        (feature,) = method.forward_features(image[None])
        hidden = torch.relu(learner.meta_net.linear1(feature))
        context = learner.context + learner.meta_net.linear2(hidden)
        texts = unit_length(encode_text(tiny_backbone.model, method.texts, context=context))
        expected.append(method.scale * texts @ feature)
    logits = method.own_logits(images)
    torch.testing.assert_close(logits, torch.stack(expected).detach(), **FLOAT32)
    # Training sees the texts of trained classes
    torch.testing.assert_close(
        method.class_logits(method.training_features(images)), logits[:, :2], **FLOAT32
    )


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 5])
def test_the_chunk_size_changes_no_logit_and_no_gradient(
    build: Build, labeled_batch: Any, tiny_backbone: Backbone, chunk_size: int
) -> None:
    def run(**chosen: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        method, batch = build("cocoop"), labeled_batch()
        features = method.forward_features(batch.images)
        contexts = method.module.contexts(features)
        logits = cocoop.pair_logits(tiny_backbone, features, contexts, method.texts, **chosen)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        return logits, torch.autograd.grad(loss, list(method.trainable_parameters().values()))

    logits, gradients = run()
    chunked_logits, chunked = run(chunk_size=chunk_size)
    torch.testing.assert_close(chunked_logits, logits, **FLOAT32)
    for ours, whole in zip(chunked, gradients, strict=True):
        torch.testing.assert_close(ours, whole, **FLOAT32)


def test_what_a_step_keeps_does_not_grow_with_images_times_classes(
    build: Build, labeled_batch: Any, tiny_backbone: Backbone
) -> None:
    method = build("cocoop", n_trained=4)

    def saved_bytes(n_images: int) -> int:
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        features = method.forward_features(labeled_batch(n_images).images)
        contexts = method.module.contexts(features)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            cocoop.pair_logits(tiny_backbone, features, contexts, method.texts, chunk_size=8)
        return saved

    one_pair_activations = 10 * 64 * 4
    assert saved_bytes(40) - saved_bytes(4) < 36 * 4 * one_pair_activations
