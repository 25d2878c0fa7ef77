"""What holds for every method: what it declares, its first losses, what learns and is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.errors import DataError, RecipeError
from kdedge.loading.batch import Batch
from kdedge.methods.registry import list_methods, load_method

FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
TRAINED = [name for name in list_methods() if name not in ("zeroshot", "ridge")]
"""Those with training steps."""
WITH_VECTORS = ("coop", "vpt", "ivlp", "maple", "promptsrc", "atprompt")
"""Learn from labels, with one vector per class."""


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TRAINED)
def test_the_names_of_classes_without_labels_matter_where_they_are_declared(
    name: str, build: Callable[..., Any]
) -> None:
    module = load_method(name)
    has_labels = module.METHOD.main_data_needs.labels or module.Settings().makes_pseudo_labels
    # So many images that some look like a class without labels
    labels = torch.arange(32) % 2 if has_labels else None
    losses = []
    for others in (("fox", "golden retriever"), ("pizza", "submarine")):
        n_trained = 4 if module.METHOD.main_data_needs.novel_class_names else 2
        method = build(name, names=("cat", "school_bus", *others), n_trained=n_trained)
        method.module.train()
        step = method.training_step(Batch(images(32), labels, clean_images=images(32)))
        losses.append(float(step.loss.detach()))
    assert (losses[0] != losses[1]) == module.METHOD.main_data_needs.novel_class_names


@pytest.mark.parametrize("name", TRAINED)
def test_five_steps_give_the_pinned_losses(
    name: str, build: Callable[..., Any], cases: Any, learn: Any
) -> None:
    case = cases[name]
    losses = learn(build(name), case.batch(), n_steps=5, lr=case.lr, momentum=0.9)
    assert losses == pytest.approx(case.losses, rel=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_these_parameters_learn_and_no_others(
    name: str, build: Callable[..., Any], cases: Any
) -> None:
    method, case = build(name), cases[name]
    parameters = method.trainable_parameters()
    assert {key: tuple(p.shape) for key, p in parameters.items()} == case.shapes
    assert {id(p) for p in method.module.parameters()} == {id(p) for p in parameters.values()}
    method.training_step(case.batch()).loss.backward()
    assert all(p.grad is not None for p in parameters.values())
    if name != "cocoop":  # the one hidden unit of its meta-net is off
        assert all(bool(p.grad.any()) for p in parameters.values())


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_training_sees_the_texts_of_trained_classes_and_evaluation_all(
    name: str, build: Callable[..., Any], tiny_backbone: Backbone
) -> None:
    method, seen = build(name), images()
    features, vectors = method.forward_features(seen), method.class_vectors()
    assert vectors.shape == (4, 24)
    expected = (method.scale * features @ vectors.T)[:, :2]
    torch.testing.assert_close(
        method.class_logits(method.training_features(seen)), expected, **FLOAT32
    )
    prompts = method.image_modules().visual_prompts
    assert torch.equal(features, tiny_backbone.image_features(seen, prompts))


@pytest.mark.parametrize("name", ["cocoop", "clip_pr"])
def test_a_method_without_class_vectors_says_so_and_has_logits_of_its_own(
    name: str, build: Callable[..., Any]
) -> None:
    method = build(name)
    assert load_method(name).Settings().classifier == "own_logits"
    assert method.class_vectors().shape == (4, 0)
    logits = method.own_logits(images())
    assert (logits.shape, logits.requires_grad) == ((4, 4), False)


@pytest.mark.parametrize("name", [*WITH_VECTORS, "cocoop", "upl"])
def test_images_without_labels_are_an_error(name: str, build: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="learns from labeled images, but the batch has no labels"):
        build(name).training_step(Batch(images(), None))


@pytest.mark.parametrize(
    ("name", "setting", "encoder"),
    [
        ("vpt", "prompt_depth", "image"),
        ("maple", "prompt_depth", "image"),
        ("promptkd", "prompt_depth", "image"),
        ("promptkd", "prompt_depth_text", "text"),
        *((name, "prompt_depth_text", "text") for name in ("ivlp", "promptsrc")),
        *((name, "prompt_depth_vision", "image") for name in ("ivlp", "promptsrc")),
    ],
)
def test_a_number_of_layers_is_compared_with_its_encoders(
    name: str, setting: str, encoder: str
) -> None:
    others = {"class_vectors": "student"} if (name, encoder) == ("promptkd", "text") else {}
    assert encoder in load_method(name).Settings(**others).layer_counts[setting]


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
    build(name, **{setting: 72})
