"""What holds for every trained method: pinned losses, what learns, which classes are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.data.batch import Batch
from kdedge.errors import DataError, RecipeError
from kdedge.methods import zeroshot
from kdedge.methods.protocol import Inputs
from kdedge.methods.registry import list_methods, load_method

FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
DEPTHS = {"prompt_depth_text": 2, "prompt_depth_vision": 2}
"""The tiny CLIP has three layers."""
FOUR = ("cat", "school_bus", "fox", "golden retriever")
OTHER_FOUR = ("cat", "dog", "school_bus", "fox")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labeled() -> Batch:
    return Batch(drawn(4, 3, 32, 32), torch.arange(4) % 2)


def pseudo_labeled() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return Batch(images, torch.randint(4, (4,), generator=generator))


def with_clean() -> Batch:
    views, clean = drawn(2, 4, 3, 32, 32)
    return Batch(views, None, clean_images=clean)


@dataclass(frozen=True)
class Case:
    """A method on the tiny CLIP, the losses of its first steps, and what it trains."""

    lr: float
    losses: Sequence[float]
    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] = FOUR
    template: str = "unused {}"
    n_trained: int = 2
    batch: Callable[[], Batch] = labeled


PROMPTS = {
    "visual_prompts": (2, 4, 64),
    "text_prompts.context": (4, 64),
    "text_prompts.deep_context": (1, 4, 64),
}
NORMS = [f"norms.{number}.{kind}" for number in range(8) for kind in ("weight", "bias")]
CASES = {
    "coop": Case(0.01, [1.06631, 1.05934, 1.04607, 1.02709, 1.00302], {"context": (4, 64)}),
    "cocoop": Case(
        0.01,
        [1.32006, 1.31403, 1.30271, 1.28686, 1.26729],
        {
            "context": (4, 64),
            "meta_net.linear1.weight": (1, 24),
            "meta_net.linear1.bias": (1,),
            "meta_net.linear2.weight": (64, 1),
            "meta_net.linear2.bias": (64,),
        },
    ),
    "vpt": Case(
        0.01,
        [0.944626, 0.812018, 0.56216, 0.444326, 0.381218],
        {"visual_prompts": (3, 8, 64)},
        {"prompt_depth": 3},
    ),
    "ivlp": Case(0.01, [0.895665, 2.46053, 0.834929, 0.806826, 0.782582], PROMPTS, DEPTHS),
    "maple": Case(
        0.01,
        [1.0301, 0.783827, 0.639924, 0.623137, 0.585312],
        {
            "text_prompts.context": (2, 64),
            "text_prompts.deep_context": (2, 2, 64),
            **{f"couplings.{layer}.weight": (64, 64) for layer in range(3)},
            **{f"couplings.{layer}.bias": (64,) for layer in range(3)},
        },
        {"prompt_depth": 3},
    ),
    "promptsrc": Case(
        0.005,
        [3.859, 3.30366, 2.72708, 2.32395, 2.3006],
        PROMPTS,
        {**DEPTHS, "n_anchor_templates": 3},
        OTHER_FOUR,
    ),
    "atprompt": Case(
        0.005,
        [3.43669, 3.2019, 3.02927, 2.93255, 2.73595],
        {
            **PROMPTS,
            "attribute_context": (4, 64),
            "text_prompts.context": (3, 64),
            "text_prompts.deep_context": (1, 3, 64),
        },
        {**DEPTHS, "n_anchor_templates": 3, "n_ctx_attribute": 2, "n_ctx_text": 3},
        OTHER_FOUR,
    ),
    "upl": Case(
        0.01,
        [7.34955, 6.80272, 5.8523, 4.77108, 3.92351],
        {"contexts": (3, 5, 64)},
        {"n_runs": 3, "n_ctx": 5},
        n_trained=4,
        batch=pseudo_labeled,
    ),
    "clip_pr": Case(
        0.01,
        [1.387496, 1.378163, 1.371714, 1.374487, 1.380439],
        {
            "linear1.weight": (128, 24),
            "linear1.bias": (128,),
            "linear2.weight": (128, 128),
            "linear2.bias": (128,),
            "linear3.weight": (4, 128),
        },
        template="a blurred photo of a {}.",
        n_trained=4,
        batch=lambda: Batch(drawn(6, 3, 32, 32), None),
    ),
    "lafter": Case(
        0.1,
        [0.753719, 0.422380, 0.498011, 0.466518, 0.409114],
        {"visual_prompts": (1, 3, 64), "classifier": (4, 24), **dict.fromkeys(NORMS, (64,))},
        {"n_ctx_vision": 3, "n_text_steps": 20},
        template="a blurred photo of a {}.",
        n_trained=4,
        batch=with_clean,
    ),
    "promptkd": Case(
        0.001,
        [301.943, 267.67, 228.584, 194.625, 173.95],
        {
            "visual_prompts": (2, 4, 64),
            "projector.linear1.weight": (40, 24),
            "projector.linear1.bias": (40,),
            "projector.batch_norm.weight": (40,),
            "projector.batch_norm.bias": (40,),
            "projector.linear2.weight": (40, 40),
            "projector.linear2.bias": (40,),
        },
        {"prompt_depth": 2},
        ("cat", "dog", "school bus", "fox", "pizza"),
        "a photo of a {}.",
        5,
        lambda: Batch(drawn(4, 3, 32, 32), None),
    ),
}
WITH_VECTORS = ("coop", "vpt", "ivlp", "maple", "promptsrc", "atprompt")
"""Learn from labels, with one vector per class."""


@pytest.fixture
def build(tiny_backbone: Backbone, tiny_teacher_backbone: Backbone) -> Callable[..., Any]:
    def make(name: str, backbone: Backbone = tiny_backbone, **chosen: Any) -> Any:
        case, module = CASES[name], load_method(name)
        teacher = None
        if module.METHOD.needs_teacher:
            inputs = Inputs(case.names, case.template, range(5), torch.Generator())
            teacher = zeroshot.Method.build(tiny_teacher_backbone, zeroshot.Settings(), inputs)
        return module.Method.build(
            backbone,
            module.Settings(**{**case.settings, **chosen}),
            Inputs(
                case.names,
                case.template,
                range(case.n_trained),
                torch.Generator().manual_seed(1),
                teacher=teacher,
            ),
        )

    return make


def test_every_method_with_steps_is_here() -> None:
    assert {*CASES, "zeroshot", "ridge", "pseudo_label"} == set(list_methods())


@pytest.mark.parametrize("name", CASES)
def test_five_steps_give_the_pinned_losses(name: str, build: Callable[..., Any]) -> None:
    method, case = build(name), CASES[name]
    optimizer = torch.optim.SGD(method.trainable_parameters().values(), lr=case.lr, momentum=0.9)
    losses = []
    for _ in range(5):
        loss = method.training_step(case.batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == pytest.approx(case.losses, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_these_parameters_learn_and_the_backbones_stay_frozen(
    name: str,
    build: Callable[..., Any],
    tiny_backbone: Backbone,
    tiny_teacher_backbone: Backbone,
) -> None:
    method, case = build(name), CASES[name]
    parameters = method.trainable_parameters()
    assert {key: tuple(p.shape) for key, p in parameters.items()} == case.shapes
    assert {id(p) for p in method.module.parameters()} == {id(p) for p in parameters.values()}
    method.training_step(case.batch()).loss.backward()
    assert all(p.grad is not None for p in parameters.values())
    if name != "cocoop":  # the one hidden unit of its meta-net is off
        assert all(bool(p.grad.any()) for p in parameters.values())
    for backbone in (tiny_backbone, tiny_teacher_backbone):
        assert all(p.grad is None for p in backbone.model.parameters())


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_training_sees_the_texts_of_trained_classes_and_evaluation_all(
    name: str, build: Callable[..., Any], tiny_backbone: Backbone
) -> None:
    method, images = build(name), labeled().images
    features, vectors = method.forward_features(images), method.class_vectors()
    assert vectors.shape == (4, 24)
    expected = (method.scale * features @ vectors.T)[:, :2]
    torch.testing.assert_close(method.logits(images), expected, **FLOAT32)
    prompts = method.image_path().visual_prompts
    assert torch.equal(features, tiny_backbone.image_features(images, prompts))


@pytest.mark.parametrize("name", [*WITH_VECTORS, "cocoop", "upl"])
def test_images_without_labels_are_an_error(name: str, build: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="learns from labeled images, but the batch has no labels"):
        build(name).training_step(Batch(labeled().images, None))


@pytest.mark.parametrize(
    ("name", "setting", "encoder"),
    [
        ("vpt", "prompt_depth", "image"),
        ("maple", "prompt_depth", "image"),
        ("promptkd", "prompt_depth", "image"),
        *((name, "prompt_depth_text", "text") for name in ("ivlp", "promptsrc")),
        *((name, "prompt_depth_vision", "image") for name in ("ivlp", "promptsrc")),
    ],
)
def test_more_prompted_layers_than_there_are_is_an_error(
    name: str, setting: str, encoder: str, build: Callable[..., Any]
) -> None:
    with pytest.raises(RecipeError, match=rf"{setting} is 9, but the {encoder} encoder .* 3"):
        build(name, **{setting: 9})


@pytest.mark.parametrize(
    ("name", "setting"),
    [("coop", "n_ctx"), ("cocoop", "n_ctx"), ("upl", "n_ctx"), ("ivlp", "n_ctx_text")],
)
def test_a_context_that_leaves_no_room_for_the_longest_name_is_an_error(
    name: str, setting: str, build: Callable[..., Any]
) -> None:
    # 77 positions less start, end, full stop and two words
    message = f'{setting} is 73, but with the class name "school_bus" .* only 72 context tokens'
    with pytest.raises(RecipeError, match=message):
        build(name, **{setting: 73})
