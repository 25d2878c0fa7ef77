"""PromptKD on students that are no CLIP with a ViT: ResNets, and image encoders alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from open_clip import CLIP
from torch import Tensor

from kdedge.clip.backbone import Backbone, ImageBackbone, make_backbone
from kdedge.errors import RecipeError
from kdedge.loading.batch import Batch
from kdedge.methods import promptkd
from kdedge.runtime.preprocess import Preprocess

PREPROCESS = Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
FULL: dict[str, Any] = {"tune": "full"}
OWN_TEXT = {**FULL, "class_vectors": "student", "prompt_depth_text": 1}
Student = Callable[..., promptkd.Method]


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    """A small ResNet of open_clip's, with batch norm that has seen images."""
    torch.manual_seed(0)
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    with torch.no_grad():
        model.train().visual(images(32))
    return make_backbone(model.eval().requires_grad_(False), name="small", preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def timms() -> ImageBackbone:
    """A model that no text has trained."""
    torch.manual_seed(0)
    visual = timm.create_model("test_resnet", num_classes=0)
    return make_backbone(
        visual, name="timm/test_resnet", preprocess=PREPROCESS, is_trained_with_texts=False
    )


@pytest.fixture(scope="module")
def clips() -> ImageBackbone:
    """The image encoder of a CLIP whose texts are not run."""
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg={"width": 8, "heads": 1, "layers": 1})
    return make_backbone(
        model.visual, name="clips", preprocess=PREPROCESS, is_trained_with_texts=True
    )


@pytest.mark.parametrize(
    ("encoder", "settings", "parts"),
    [
        ("resnet", {"tune": "projector"}, {"projector"}),
        ("resnet", {"n_ctx_vision": 0}, {"projector"}),
        ("resnet", FULL, {"visual", "projector"}),
        ("resnet", OWN_TEXT, {"visual", "text_prompts"}),
        ("timms", FULL, {"visual", "projector"}),
        ("clips", FULL, {"visual", "projector"}),
        ("clips", {"tune": "projector"}, {"projector"}),
        ("clips", {"prompt_depth": 2}, {"visual_prompts", "projector"}),
    ],
)
def test_it_learns_from_its_teacher(
    encoder: str,
    settings: dict[str, Any],
    parts: set[str],
    student: Student,
    learn: Any,
    request: pytest.FixtureRequest,
) -> None:
    backbone = request.getfixturevalue(encoder)
    method = student(backbone, **settings)
    frozen = {key: value.clone() for key, value in backbone.visual.state_dict().items()}
    method.module.train()
    losses = learn(method, Batch(images(), None), kind=torch.optim.Adam, lr=1e-3)
    assert losses[-1] < losses[0]
    moved = {name for name, p in method.trainable_parameters().items() if p.grad is not None}
    assert {name.split(".")[0] for name in moved} == parts
    # Batch norm of the frozen encoder is as in evaluation and learns nothing, statistics included
    assert all(torch.equal(v, frozen[key]) for key, v in backbone.visual.state_dict().items())
    together = method.forward_features(images())
    assert together.shape == (6, 24 if settings is OWN_TEXT else 40)
    alone = torch.cat([method.forward_features(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_tuned_resnet_keeps_its_own_batch_norm_statistics(
    resnet: Backbone, student: Student
) -> None:
    method = student(resnet, tune="full")
    state = method.module.state_dict()
    assert torch.equal(state["visual.bn1.running_mean"], resnet.model.visual.bn1.running_mean)
    method.module.train()
    method.training_step(Batch(images(), None))
    mean = method.module.state_dict()["visual.bn1.running_mean"]
    assert not torch.equal(mean, resnet.model.visual.bn1.running_mean)


@pytest.mark.parametrize("method", ["promptkd", "promptsrc", "vpt", "maple"])
def test_visual_prompts_on_a_resnet_are_a_mistake_in_the_recipe(
    resnet: Backbone, build: Callable[..., Any], method: str
) -> None:
    depth = {"prompt_depth": 2} if method == "maple" else {}
    with pytest.raises(RecipeError, match=r"small takes no visual prompts: .* is a ModifiedResNet"):
        build(method, resnet, **depth)


@pytest.mark.parametrize("name", ["zeroshot", "coop"])
def test_methods_that_leave_the_image_encoder_alone_take_a_resnet(
    resnet: Backbone, build: Callable[..., Any], name: str
) -> None:
    expected = torch.nn.functional.normalize(resnet.model.visual(images()), dim=-1)
    method = build(name, resnet)
    torch.testing.assert_close(method.forward_features(images()), expected.detach())
    path = method.image_modules()
    assert (path.visual, path.visual_prompts) == (resnet.model.visual, None)


def test_the_scale_of_an_image_encoder_is_the_teachers_and_is_kept_with_what_was_trained(
    timms: ImageBackbone, student: Student, tiny_teacher_backbone: Backbone
) -> None:
    method = student(timms, tune="full")
    assert method.scale == pytest.approx(tiny_teacher_backbone.scale)

    class WithoutScale:
        scale = float("nan")
        class_vectors = method.class_vectors

    again = student(timms, WithoutScale(), tune="full")
    again.module.load_state_dict(method.module.state_dict())
    assert again.scale == method.scale
    assert "scale" not in student().module.state_dict()  # a CLIP's own is in its weights


@pytest.mark.parametrize("settings", [{}, {"tune": "projector"}, {"n_ctx_vision": 0}])
def test_features_that_no_text_has_trained_are_tuned_and_not_projected_as_they_are(
    timms: ImageBackbone, student: Student, settings: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="test_resnet was not trained with texts: with tune:"):
        student(timms, **settings)
