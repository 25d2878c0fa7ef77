"""Micro-batches: the whole batch's loss, gradients and statistics, in a part of its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kdedge.clip.backbone import make_backbone
from kdedge.loading.batch import Batch
from kdedge.runtime.preprocess import Preprocess

N_IMAGES = 6

VARIANTS: dict[str, dict[str, Any]] = {
    "feature": {"losses": {"kl": {}, "feature": {}}},
    "own vectors": {"class_vectors": "student", "prompt_depth_text": 2},
    "full": {"tune": "full"},
    "lora": {"tune": "prompts+lora"},
}
"""Of PromptKD."""
METHODS = ("promptkd", *VARIANTS, "coop", "cocoop", "vpt", "ivlp", "maple", "promptsrc", "atprompt")


@pytest.fixture
def make(build: Callable[..., Any]) -> Callable[[str], Any]:
    """Builds a method by its name above, to be trained."""

    def build_method(name: str) -> Any:
        given = ("promptkd", VARIANTS[name]) if name in VARIANTS else (name, {})
        method = build(given[0], **given[1])
        method.module.train()
        return method

    return build_method


def batch() -> Batch:
    images = torch.randn(N_IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(N_IMAGES) % 2)


def learned(method: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The loss, its gradients and the buffers after a step's passes."""
    loss = method.training_step(batch).loss
    loss.backward()
    gradients = {name: p.grad for name, p in method.trainable_parameters().items()}
    return loss.detach(), gradients, dict(method.module.named_buffers())


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_change_no_loss_gradient_or_statistic(
    make: Callable[[str], Any], name: str, micro_batch: int
) -> None:
    expected = learned(make(name), batch())
    actual = learned(make(name), replace(batch(), micro_batch=micro_batch))
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    assert largest > 0
    # Gradients that are zero but for rounding, as of a bias before batch norm, round at the others'
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-4, atol=1e-5 * largest)
    torch.testing.assert_close(actual[::2], expected[::2], rtol=1e-5, atol=1e-5)


def saved_bytes(method: Any, n_images: int, micro_batch: int | None) -> int:
    """What a step's forward pass keeps for the backward pass."""
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    images = torch.zeros(n_images, 3, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        method.training_step(Batch(images, None, micro_batch=micro_batch))
    return saved


def test_memory_grows_with_the_micro_batch_and_not_with_the_batch(
    make: Callable[[str], Any],
) -> None:
    method = make("promptkd")
    whole, parts = (
        saved_bytes(method, 16, size) - saved_bytes(method, 8, size) for size in (None, 4)
    )
    assert parts < 0.02 * whole


def test_a_step_keeps_no_more_for_more_classes_but_its_logits(build: Callable[..., Any]) -> None:
    def kept(n_classes: int) -> int:
        class Teacher:
            scale = 20.0

            def class_vectors(self) -> Tensor:
                return nn.functional.normalize(torch.ones(n_classes, 40), dim=-1)

        names = [f"class {i}" for i in range(n_classes)]
        method = build("promptkd", teacher=Teacher(), names=names)
        features = nn.functional.normalize(torch.ones(N_IMAGES, 40), dim=-1)
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            method.training_step(replace(batch(), teacher_features=features))
        return sum(saved.values())

    few, many = kept(10), kept(1010)
    vectors, logits = 1000 * 40 * 4, N_IMAGES * 1000 * 4
    assert many - few < vectors + 8 * logits


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("test_resnet", {}, False),
        ("test_vit", {"img_size": 32, "drop_path_rate": 0.1}, False),
        ("test_vit", {"img_size": 32, "proj_drop_rate": 0.1}, False),
        ("test_vit", {"img_size": 32, "proj_drop_rate": 0.0}, True),
        ("test_efficientnet", {}, False),
    ],
)
def test_tuned_encoders_whose_images_see_each_other_or_that_drop_at_random_are_not_split(
    build: Callable[..., Any], name: str, options: dict[str, Any], expected: bool
) -> None:
    backbone = make_backbone(
        timm.create_model(name, num_classes=0, **options),
        name="own",
        preprocess=Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3),
        is_trained_with_texts=False,
    )
    assert build("promptkd", backbone, tune="full").can_split_batches is expected
    frozen = replace(backbone, is_trained_with_texts=True)
    assert build("promptkd", frozen, tune="projector").can_split_batches
