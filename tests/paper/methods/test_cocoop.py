"""CoCoOp: texts of each image's own, chunks that change nothing, what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.text import CHUNK_SIZE, encode_text

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


def test_the_chunks_of_a_batch_change_no_logit_and_no_gradient(
    build: Build, labeled_batch: Any
) -> None:
    """Against the pairs of one image at a time, which fit into one chunk."""
    method, batch = build("cocoop"), labeled_batch(25)
    features = method.forward_features(batch.images)
    logits = method.class_logits(features, method.texts)
    assert logits.numel() > CHUNK_SIZE
    assert logits.numel() % CHUNK_SIZE
    alone = torch.cat([method.class_logits(one[None], method.texts) for one in features])
    torch.testing.assert_close(logits, alone, **FLOAT32)
    losses = [nn.functional.cross_entropy(each, batch.labels) for each in (logits, alone)]
    parameters = list(method.trainable_parameters().values())
    for ours, plain in zip(*(torch.autograd.grad(x, parameters) for x in losses), strict=True):
        torch.testing.assert_close(ours, plain, **FLOAT32)


def test_what_a_step_keeps_does_not_grow_with_images_times_classes(
    build: Build, labeled_batch: Any
) -> None:
    method = build("cocoop", n_trained=4)

    def saved_bytes(n_images: int) -> int:
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        features = method.forward_features(labeled_batch(n_images).images)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            method.class_logits(features)
        return saved

    one_pair_activations = 10 * 64 * 4
    assert saved_bytes(80) - saved_bytes(16) < 64 * 4 * one_pair_activations
