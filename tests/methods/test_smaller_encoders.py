"""PromptKD with `merge_tokens` and `depth`: what a smaller image encoder is, trains and refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone, make_backbone
from kdedge.clip.vision import encode_image
from kdedge.errors import RecipeError
from kdedge.loading.batch import Batch
from kdedge.methods import promptkd
from kdedge.runtime.preprocess import Preprocess

Student = Callable[..., promptkd.Method]


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tune", ["prompts", "prompts+lora", "full"])
def test_a_student_learns_with_merged_tokens(student: Student, learn: Any, tune: str) -> None:
    method = student(tune=tune, merge_tokens=3)
    batch = Batch(images(), None)
    losses, without = (learn(one, batch, lr=1e-5) for one in (method, student(tune=tune)))
    assert losses[-1] < losses[0]
    assert losses != without
    assert all(p.grad is not None for p in method.trainable_parameters().values())
    with torch.no_grad():
        features = method.forward_features(images())
        alone = torch.cat([method.forward_features(image[None]) for image in images()])
    torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-4)
    assert method.image_modules().merge_tokens == 3


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_first_blocks_are_the_backbones_own(
    student: Student, tiny_backbone: Backbone, depth: int
) -> None:
    method = student(tune="projector", depth=depth)
    expected = copy.deepcopy(tiny_backbone.model.visual)
    del expected.transformer.resblocks[depth:]
    raw = method.image_features_raw(images())
    torch.testing.assert_close(raw, encode_image(expected, images()), rtol=0, atol=0)
    blocks = method.visual.transformer.resblocks
    whole = tiny_backbone.model.visual.transformer.resblocks
    assert (len(blocks), len(whole)) == (depth, 3)
    for kept, own in zip(blocks.parameters(), whole.parameters(), strict=False):
        assert kept is own


@pytest.mark.parametrize("tune", ["full", "lora", "prompts+lora"])
def test_only_what_is_kept_is_trained(student: Student, learn: Any, tune: str) -> None:
    method = student(tune=tune, depth=2)
    losses = learn(method, Batch(images(), None), lr=1e-5)
    assert losses[-1] < losses[0]
    names = [name for name in method.trainable_parameters() if name.startswith(("visual.", "lora"))]
    assert any(".1." in name for name in names)
    assert not any(".2." in name for name in names)
    above = method.layers_above()
    assert set(above) == set(names) - {"visual_prompts"}
    assert max(above.values()) == (3 if tune == "full" else 2)
    assert len(method.image_modules().visual.transformer.resblocks) == 2


@pytest.mark.parametrize("chosen", [{"merge_tokens": 1}, {"depth": 1}])
def test_other_image_encoders_take_neither(student: Student, chosen: dict[str, int]) -> None:
    visual = timm.create_model("test_resnet", num_classes=0)
    backbone = make_backbone(
        visual,
        name="timm/test_resnet",
        preprocess=Preprocess(32, (0.5,) * 3, (0.25,) * 3),
        is_trained_with_texts=False,
    )
    message = "timm/test_resnet takes neither .* nor merge_tokens: its image encoder is a ResNet"
    with pytest.raises(RecipeError, match=message):
        student(backbone, tune="full", **chosen)
