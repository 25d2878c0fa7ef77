"""PromptKD on a student that is no ViT: the projector or everything, and no prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip import CLIP
from torch import Tensor

from kdedge.clip.backbone import Backbone, make_backbone
from kdedge.data.batch import Batch
from kdedge.errors import RecipeError
from kdedge.fold import fold
from kdedge.methods import coop, maple, promptkd, promptsrc, vpt, zeroshot
from kdedge.methods.protocol import MethodInputs
from kdedge.runtime.preprocess import Preprocess

NAMES = ["cat", "dog", "school bus"]


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    """A small ResNet of open_clip's, with batch norm that has seen images."""
    torch.manual_seed(0)
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    with torch.no_grad():
        model.train().visual(images(32))
    preprocess = Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    return make_backbone(model.eval().requires_grad_(False), name="small", preprocess=preprocess)


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(method: Any, backbone: Backbone, teacher: Any = None, **settings: Any) -> Any:
    return method.Method.build(
        backbone,
        method.Settings(**settings),
        MethodInputs(
            NAMES,
            "a photo of a {}.",
            range(len(NAMES)),
            torch.Generator().manual_seed(1),
            teacher=teacher,
        ),
    )


@pytest.fixture
def teacher(tiny_teacher_backbone: Backbone) -> zeroshot.Method:
    return build(zeroshot, tiny_teacher_backbone)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"tune": "projector"}, {"projector"}),
        ({"n_ctx_vision": 0}, {"projector"}),
        ({"tune": "full"}, {"visual", "projector"}),
        (
            {"tune": "full", "class_vectors": "student", "prompt_depth_text": 1},
            {"visual", "text_prompts"},
        ),
    ],
)
def test_a_resnet_learns_without_prompts(
    resnet: Backbone, teacher: zeroshot.Method, settings: dict[str, Any], parts: set[str]
) -> None:
    method = build(promptkd, resnet, teacher, **settings)
    frozen = {key: value.clone() for key, value in resnet.model.state_dict().items()}
    optimizer = torch.optim.Adam(method.trainable_parameters().values(), lr=1e-3)
    method.module.train()
    losses = []
    for _ in range(4):
        loss = method.training_step(Batch(images(), None)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    moved = [name for name, p in method.trainable_parameters().items() if p.grad is not None]
    assert {name.split(".")[0] for name in moved} == parts
    # The frozen tower's batch norm answers as in evaluation and learns nothing, statistics included
    assert all(torch.equal(value, frozen[key]) for key, value in resnet.model.state_dict().items())
    together = method.forward_features(images())
    alone = torch.cat([method.forward_features(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_tuned_resnet_keeps_its_own_batch_norm_statistics(
    resnet: Backbone, teacher: zeroshot.Method
) -> None:
    method = build(promptkd, resnet, teacher, tune="full")
    state = method.module.state_dict()
    assert torch.equal(state["visual.bn1.running_mean"], resnet.model.visual.bn1.running_mean)
    method.module.train()
    method.training_step(Batch(images(), None))
    mean = method.module.state_dict()["visual.bn1.running_mean"]
    assert not torch.equal(mean, resnet.model.visual.bn1.running_mean)


def test_a_resnet_can_be_split_where_it_is_frozen_and_not_where_it_is_tuned(
    resnet: Backbone, teacher: zeroshot.Method, tiny_backbone: Backbone
) -> None:
    assert build(promptkd, resnet, teacher, tune="projector").can_split_batches
    assert not build(promptkd, resnet, teacher, tune="full").can_split_batches
    assert build(promptkd, tiny_backbone, teacher, tune="full").can_split_batches


@pytest.mark.parametrize("method", [promptkd, promptsrc, vpt, maple])
def test_visual_prompts_on_a_resnet_are_a_mistake_in_the_recipe(
    resnet: Backbone, teacher: zeroshot.Method, method: Any
) -> None:
    settings = {
        promptsrc: {"prompt_depth_text": 1, "n_anchor_templates": 1},
        maple: {"prompt_depth": 2},
    }
    with pytest.raises(RecipeError, match=r"small takes no visual prompts: .* is a ModifiedResNet"):
        build(method, resnet, teacher, **settings.get(method, {}))


def test_methods_that_leave_the_image_tower_alone_take_a_resnet(resnet: Backbone) -> None:
    expected = torch.nn.functional.normalize(resnet.model.visual(images()), dim=-1)
    for module in (zeroshot, coop):
        method = build(module, resnet)
        torch.testing.assert_close(method.forward_features(images()), expected.detach())
        path = method.image_path()
        assert (path.visual, path.visual_prompts) == (resnet.model.visual, None)


def test_a_folded_resnet_gives_the_students_logits(
    resnet: Backbone, teacher: zeroshot.Method
) -> None:
    method = build(promptkd, resnet, teacher, tune="projector")
    preprocess = resnet.preprocess
    model = fold(
        method.image_path(), method.class_vectors(), scale=method.scale, preprocess=preprocess
    )
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    features = method.forward_features((pixels - mean) / std)
    expected = method.scale * features @ method.class_vectors().T
    torch.testing.assert_close(model(pixels), expected.detach(), atol=1e-3, rtol=1e-4)
