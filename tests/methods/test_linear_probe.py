"""The linear probe: its equation, the classes that it does not know, and encoders without texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.image_backbone import make_image_backbone
from kdedge.data.batch import Batch
from kdedge.errors import DataError
from kdedge.methods import linear_probe
from kdedge.methods.protocol import HasClassifier, WithoutClassVectors
from kdedge.runtime.preprocess import Preprocess

NAMES = ["cat", "dog", "pizza", "school bus"]
BASE = range(2)


def build(backbone: Any) -> linear_probe.Method:
    return linear_probe.Method.build(
        backbone,
        NAMES,
        linear_probe.Settings(),
        template="a photo of a {}.",
        train_classes=BASE,
        teacher=None,
        generator=torch.Generator().manual_seed(1),
    )


def batch(n: int = 8) -> Batch:
    images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(n) % len(BASE))


def slow(method: linear_probe.Method, features: Tensor) -> Tensor:
    """Each class by itself, from the definition of batch norm in evaluation mode."""
    norm, linear = method.module.norm, method.module.linear
    normed = (features - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    rows = zip(linear.weight, linear.bias, strict=True)
    return torch.stack([(normed * row).sum(dim=1) + bias for row, bias in rows], dim=1)


def test_it_learns_and_its_logits_are_those_of_the_equation(
    tiny_backbone: Backbone, five_steps: Callable[..., list[float]]
) -> None:
    method = build(tiny_backbone)
    losses = five_steps(method, batch(), lr=0.5)
    assert losses[0] == pytest.approx(torch.tensor(2.0).log())  # it starts at 0
    assert losses[-1] < losses[0] / 2
    features = method.forward_features(batch().images)
    assert torch.equal(features, tiny_backbone.image_features(batch().images))
    expected = slow(method, features)
    torch.testing.assert_close(method.classify(features)[:, list(BASE)], expected)
    assert method.module.training, "the mode is its owner's"


def test_classes_that_it_was_not_trained_on_are_impossible(tiny_backbone: Backbone) -> None:
    method = build(tiny_backbone)
    logits = method.own_logits(batch().images)
    assert logits.softmax(dim=-1)[:, 2:].tolist() == [[0.0, 0.0]] * 8
    assert method.class_vectors().shape == (4, 0)
    assert isinstance(method, HasClassifier)
    assert isinstance(method, WithoutClassVectors)


def test_an_encoder_of_timm_can_be_probed(five_steps: Callable[..., list[float]]) -> None:
    torch.manual_seed(0)
    visual = timm.create_model("test_resnet", num_classes=0)
    preprocess = Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    backbone = make_image_backbone(
        visual, name="timm/test_resnet", preprocess=preprocess, is_trained_with_texts=False
    )
    method = build(backbone)
    before = {key: value.clone() for key, value in visual.state_dict().items()}
    losses = five_steps(method, batch(), lr=0.5)
    assert losses[-1] < losses[0]
    after = visual.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), "it is frozen"


def test_one_image_has_no_variance(tiny_backbone: Backbone) -> None:
    with pytest.raises(DataError, match="needs at least 2 labeled images in a batch"):
        build(tiny_backbone).training_step(batch(1))
