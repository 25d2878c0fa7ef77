"""PromptKD on an image encoder alone: its class vectors and its scale are its teacher's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from open_clip import CLIP
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.image_backbone import ImageBackbone, make_image_backbone
from kdedge.data.batch import Batch
from kdedge.errors import RecipeError
from kdedge.methods import promptkd, zeroshot
from kdedge.methods.protocol import MethodInputs
from kdedge.runtime.preprocess import Preprocess

NAMES = ["cat", "dog", "school bus"]
PREPROCESS = Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def timms() -> ImageBackbone:
    """A model that no text has trained."""
    torch.manual_seed(0)
    visual = timm.create_model("test_resnet", num_classes=0)
    return make_image_backbone(
        visual, name="timm/test_resnet", preprocess=PREPROCESS, is_trained_with_texts=False
    )


@pytest.fixture(scope="module")
def clips() -> ImageBackbone:
    """The image encoder of a CLIP whose texts are not run."""
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg={"width": 8, "heads": 1, "layers": 1})
    return make_image_backbone(
        model.visual, name="clips", preprocess=PREPROCESS, is_trained_with_texts=True
    )


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(method: Any, backbone: Any, teacher: Any = None, **settings: Any) -> Any:
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
    ("tower", "settings", "parts"),
    [
        ("timms", {"tune": "full"}, {"visual", "projector"}),
        ("clips", {"tune": "full"}, {"visual", "projector"}),
        ("clips", {"tune": "projector"}, {"projector"}),
        ("clips", {"prompt_depth": 2}, {"visual_prompts", "projector"}),
    ],
)
def test_it_learns_from_its_teacher(
    tower: str,
    settings: dict[str, Any],
    parts: set[str],
    teacher: zeroshot.Method,
    request: pytest.FixtureRequest,
) -> None:
    backbone = request.getfixturevalue(tower)
    method = build(promptkd, backbone, teacher, **settings)
    frozen = {key: value.clone() for key, value in backbone.visual.state_dict().items()}
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
    assert {name.split(".")[0] for name in method.trainable_parameters()} == parts
    assert all(torch.equal(v, frozen[key]) for key, v in backbone.visual.state_dict().items())
    assert method.forward_features(images()).shape == (6, 40)
    torch.testing.assert_close(method.class_vectors(), teacher.class_vectors())


def test_its_scale_is_the_teachers_and_is_kept_with_what_was_trained(
    timms: ImageBackbone, teacher: zeroshot.Method, tiny_backbone: Backbone
) -> None:
    method = build(promptkd, timms, teacher, tune="full")
    assert method.scale == pytest.approx(teacher.scale)
    state = method.module.state_dict()

    class WithoutScale:
        scale = float("nan")
        class_vectors = staticmethod(teacher.class_vectors)

    again = build(promptkd, timms, WithoutScale(), tune="full")
    again.module.load_state_dict(state)
    assert again.scale == method.scale
    # A CLIP's own is in its weights
    own = build(promptkd, tiny_backbone, teacher, prompt_depth=2)
    assert own.scale == tiny_backbone.scale
    assert "scale" not in own.module.state_dict()


@pytest.mark.parametrize("settings", [{}, {"tune": "projector"}, {"n_ctx_vision": 0}])
def test_features_that_no_text_has_trained_are_tuned_and_not_projected_as_they_are(
    timms: ImageBackbone, teacher: zeroshot.Method, settings: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="test_resnet was not trained with texts: with tune:"):
        build(promptkd, timms, teacher, **settings)


def test_class_vectors_of_its_own_want_a_text_tower(
    timms: ImageBackbone, clips: ImageBackbone, teacher: zeroshot.Method
) -> None:
    for backbone in (timms, clips):
        with pytest.raises(RecipeError, match=r"cannot run the text encoder of \S+, which"):
            build(promptkd, backbone, teacher, tune="full", class_vectors="student")
