"""LaFTer: both stages against slow versions, what is trained, and logits as class vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.config.optim_spec import OptimSettings
from kdedge.distributed import SINGLE_PROCESS
from kdedge.errors import DataError
from kdedge.loading.batch import Batch
from kdedge.paper.methods import lafter
from kdedge.training.loop.step import Stepper

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
Build = Callable[..., Any]


def batch(n: int = 4) -> Batch:
    views, clean = torch.randn(2, n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(views, None, clean_images=clean)


# The classifier on texts


def plain_text_classifier(
    weight: Tensor, features: Tensor, labels: list[int], noises: list[Tensor], lr: float
) -> Tensor:
    """AdamW (arXiv:1711.05101) on smoothed cross-entropy, gradients by hand, in float64."""
    weight = weight.detach().double().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    n_texts, n_classes = len(features), len(weight)
    for step, noise in enumerate(noises, 1):
        gradient = torch.zeros_like(weight)
        for i in range(n_texts):
            noisy = features[i].double() + 0.1 * noise[i].double()
            probabilities = (weight @ noisy).softmax(dim=0)
            target = torch.full((n_classes,), 0.1 / n_classes, dtype=torch.float64)
            target[labels[i]] += 0.9
            gradient += torch.outer(probabilities - target, noisy) / n_texts
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
        weight = weight * (1 - lr * 0.01) - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return weight


def test_the_text_classifier_is_the_one_of_steps_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    features = unit_length(torch.randn(7, 5, generator=generator))
    labels = [0, 1, 2, 0, 1, 2, 2]
    weight = 0.3 * torch.randn(3, 5, generator=generator)
    settings = lafter.Settings(n_text_steps=12, text_lr=0.02)
    noise_of = torch.Generator().manual_seed(4)
    noises = [torch.randn(7, 5, generator=noise_of) for _ in range(12)]
    expected = plain_text_classifier(weight, features, labels, noises, 0.02)
    actual = lafter.train_text_classifier(
        weight, features, torch.tensor(labels), settings, torch.Generator().manual_seed(4)
    )
    torch.testing.assert_close(actual.double(), expected, **FLOAT32)
    assert not actual.requires_grad


def test_without_sentences_the_texts_are_the_templates() -> None:
    texts = lafter.template_texts(NAMES, "a blurred photo of a {}.")
    assert [len(own) for own in texts] == [81] * 4
    assert "a bad photo of a school bus." in texts[1]
    assert texts[1][-1] == "a blurred photo of a school bus."
    assert [len(own) for own in lafter.template_texts(NAMES, "a photo of a {}.")] == [80] * 4


def test_sentences_are_learned_with_the_template_of_their_class(
    build: Build, tiny_backbone: Backbone
) -> None:
    sentences = [["it purrs.", "whiskers."], ["yellow, with wheels."], ["red fur."], ["it barks."]]
    method = build("lafter", sentences=sentences, n_text_steps=200, text_lr=0.02)
    method.learn_texts()
    classifier = method.module.labeler
    for label, own in enumerate(sentences):
        texts = [*own, f"a blurred photo of a {NAMES[label].replace('_', ' ')}."]
        features = unit_length(tiny_backbone.text_features_raw(texts))
        assert (features @ classifier.T).argmax(dim=1).tolist() == [label] * len(texts)
    templates = build("lafter", n_text_steps=200, text_lr=0.02)
    templates.learn_texts()
    assert not torch.equal(classifier, templates.module.labeler)


def test_a_sentence_too_long_for_the_text_encoder_is_refused_before_training(
    build: Build,
) -> None:
    sentences = [["it purrs."], ["wheel " * 80], ["fur."], ["barks."]]
    with pytest.raises(DataError, match=r"A text needs 82 tokens, but this CLIP has only 77"):
        build("lafter", sentences=sentences)


def test_texts_are_learned_in_float32_whatever_a_step_runs_in(
    build: Build, tiny_backbone: Backbone
) -> None:
    method = build("lafter", text_noise_std=0.0)
    texts = lafter.template_texts(NAMES, "a blurred photo of a {}.")
    expected = lafter.train_text_classifier(
        method.module.classifier,
        unit_length(tiny_backbone.text_features_raw([text for own in texts for text in own])),
        torch.arange(4).repeat_interleave(81),
        lafter.Settings(n_text_steps=20, text_noise_std=0.0),
        torch.Generator(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        method.learn_texts()
    torch.testing.assert_close(method.module.labeler, expected, atol=0, rtol=0)


def test_texts_are_learned_once_and_not_again_after_a_checkpoint(build: Build) -> None:
    method = build("lafter")
    assert not bool(method.module.labeler.any())
    method.training_step(batch())
    labeler = method.module.labeler.clone()
    torch.testing.assert_close(method.module.classifier.detach(), labeler)
    with torch.no_grad():
        method.module.classifier.add_(1.0)
    method.training_step(batch())
    torch.testing.assert_close(method.module.labeler, labeler, atol=0, rtol=0)

    again = build("lafter", n_text_steps=1)
    again.module.load_state_dict(method.module.state_dict())
    again.training_step(batch())
    torch.testing.assert_close(again.module.labeler, labeler, atol=0, rtol=0)
    torch.testing.assert_close(again.module.classifier.detach(), labeler + 1)


def test_a_first_step_without_room_learns_texts_once(build: Build) -> None:
    settings = OptimSettings()  # SGD: AdamW would make whole steps of rounding

    def step(method: lafter.Method) -> lafter.TunedEncoder:
        stepper = Stepper(method, settings, torch.device("cpu"), SINGLE_PROCESS)
        stepper.take(batch(), lr=0.005, place="a step")
        return method.module

    def refuse_more_than_two(_: nn.Module, tokens: tuple[Tensor]) -> None:
        if len(tokens[0]) > 2:
            raise MemoryError

    narrow = build("lafter")
    narrow.image_modules().visual.ln_post.register_forward_pre_hook(refuse_more_than_two)
    expected, found = step(build("lafter")), step(narrow)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, **FLOAT32)


def test_the_classifier_on_texts_depends_on_the_seed_alone(build: Build) -> None:
    first, second = build("lafter"), build("lafter")
    first.learn_texts()
    torch.manual_seed(5)
    second.learn_texts()
    assert torch.equal(first.module.labeler, second.module.labeler)


# Images


def test_loss_and_every_gradient_are_those_of_the_equation(
    build: Build, tiny_backbone: Backbone, plain_features: Any
) -> None:
    method = build("lafter")
    method.learn_texts()
    with torch.no_grad():
        for parameter in method.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator()))
    clean = unit_length(tiny_backbone.model.visual(batch().clean_images))
    labels = (clean @ method.module.labeler.T).argmax(dim=1)
    parameters = method.trainable_parameters()
    visual, prompts = method.image_modules().visual, parameters["visual_prompts"]
    raw = plain_features(visual, batch().images, prompts)  # tokens up to the last block
    logits = raw @ parameters["classifier"].T
    rows = []
    for i in range(4):
        target = torch.full((4,), 0.1 / 4)
        target[labels[i]] += 0.9
        rows.append(-(target * logits[i].log_softmax(dim=0)).sum())
    expected = torch.stack(rows).mean()
    gradients = torch.autograd.grad(expected, list(parameters.values()))

    step = method.training_step(batch())
    torch.testing.assert_close(step.loss, expected, **FLOAT32)
    for actual, gradient in zip(
        torch.autograd.grad(step.loss, list(parameters.values())), gradients, strict=True
    ):
        torch.testing.assert_close(actual, gradient, **FLOAT32)


def test_pseudo_labels_come_from_the_frozen_tower_and_do_not_drift(
    build: Build, tiny_backbone: Backbone
) -> None:
    method = build("lafter")
    method.learn_texts()
    images = batch(32).images
    before = method.pseudo_labels(tiny_backbone.image_features(images))
    expected = tiny_backbone.image_features(images) @ method.module.labeler.T
    assert torch.equal(before, expected.argmax(dim=1))
    with torch.no_grad():
        for parameter in method.module.parameters():
            parameter.add_(torch.randn(parameter.shape))
    assert torch.equal(method.pseudo_labels(tiny_backbone.image_features(images)), before)


def test_norms_are_its_own_and_learn_and_all_else_of_the_encoder_is_shared(
    build: Build, tiny_backbone: Backbone, learn: Any
) -> None:
    method = build("lafter")
    own = dict(method.image_modules().visual.named_parameters())
    frozen = dict(tiny_backbone.visual.named_parameters())
    norms = {name for name in own if ".ln_" in f".{name}"}
    assert {name for name in own if own[name] is not frozen[name]} == norms
    assert all(torch.equal(own[name], frozen[name]) for name in own)
    learn(method, batch(), n_steps=1, lr=0.1)
    assert {name for name in own if not torch.equal(own[name], frozen[name])} == norms


def test_a_stored_module_brings_its_norms_into_another_tower(build: Build) -> None:
    method, other = build("lafter"), build("lafter")
    with torch.no_grad():
        for parameter in method.module.parameters():
            parameter.add_(0.1)
    other.module.load_state_dict(method.module.state_dict())
    images = batch().images
    assert torch.equal(method.forward_features(images), other.forward_features(images))


def test_class_vectors_and_scale_give_the_classifiers_logits(
    build: Build, tiny_backbone: Backbone
) -> None:
    method = build("lafter")
    method.learn_texts()
    features = method.forward_features(batch().images)
    vectors = method.class_vectors()
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
    assert float(vectors.norm(dim=-1).max()) == pytest.approx(1)
    expected = features @ method.module.classifier.detach().T
    torch.testing.assert_close(method.scale * features @ vectors.T, expected, **FLOAT32)

    method.training_step(batch())
    length = tiny_backbone.model.visual(batch().clean_images).norm(dim=-1).mean().detach()
    assert not torch.isclose(length, torch.ones(()), rtol=0.1)
    torch.testing.assert_close(method.scale * features @ vectors.T, length * expected, **FLOAT32)
    method.training_step(batch(8))  # another batch has another length
    torch.testing.assert_close(method.module.feature_length, length, **FLOAT32)
