"""PromptKD: the loss against its definition, the weights, what is trained and what is not."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.loading.batch import Batch
from kdedge.methods import promptkd
from kdedge.methods.base import Projector
from kdedge.methods.losses.kl import distillation_loss

Student = Callable[..., promptkd.Method]
NAMES = ["cat", "dog", "school bus", "fox", "pizza"]


def logits(seed: int, n_images: int = 4, n_classes: int = 5) -> Tensor:
    return 3 * torch.randn(n_images, n_classes, generator=torch.Generator().manual_seed(seed))


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@given(seed=st.integers(0, 99), temperature=st.floats(0.1, 8))
@settings(deadline=None, max_examples=25)
def test_the_loss_is_the_divergence_averaged_over_images_and_classes(
    seed: int, temperature: float
) -> None:
    student, teacher = logits(seed), logits(seed + 1000)
    total = 0.0
    for row_s, row_t in zip(student.double(), teacher.double(), strict=True):
        p_s = [math.exp(v / temperature) for v in row_s.tolist()]
        p_t = [math.exp(v / temperature) for v in row_t.tolist()]
        for s, t in zip(p_s, p_t, strict=True):
            s, t = s / sum(p_s), t / sum(p_t)
            total += t * (math.log(t) - math.log(s))
    expected = temperature**2 * total / student.numel()
    actual = distillation_loss(student, teacher, temperature=temperature)
    assert float(actual) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    expected = distillation_loss(student.float(), teacher.float(), temperature=3.0)
    assert torch.equal(distillation_loss(student, teacher, temperature=3.0), expected)


def test_a_student_of_published_size_trains_the_published_number_of_parameters() -> None:
    """9 x 4 x 768 prompts and a 512 -> 768 -> 768 projector (PromptKD, ViT-L/14 to B/16)."""
    projector = Projector(512, 768, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in projector.parameters()) + 9 * 4 * 768 == 1_013_760


def test_deployed_features_do_not_depend_on_the_batch_and_leave_the_mode_alone(
    student: Student,
) -> None:
    method = student()
    method.module.train()
    together = method.forward_features(images())
    alone = torch.cat([method.forward_features(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert method.module.training
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    method.module.eval()
    method.forward_features(images())
    assert not method.module.training


def test_each_answers_with_its_own_scale_and_the_log_has_one_images_divergence(
    student: Student, tiny_teacher_backbone: Backbone
) -> None:
    model = copy.deepcopy(tiny_teacher_backbone.model)
    model.logit_scale.data.fill_(math.log(3.0))
    backbone = dataclasses.replace(tiny_teacher_backbone, model=model)
    method = student(teacher=backbone)
    method.module.eval()
    step = method.training_step(Batch(images(), None))
    vectors = method.class_vectors()
    student = method.scale * method.forward_features(images()) @ vectors.T
    teacher = 3.0 * backbone.image_features(images()) @ vectors.T
    divergence = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(step.scalars["divergence_per_image"], divergence)
    torch.testing.assert_close(step.loss.detach(), 1000 * divergence / len(NAMES))


def test_no_step_encodes_the_teachers_texts(
    student: Student, tiny_teacher_backbone: Backbone
) -> None:
    method, calls = student(), []
    block = tiny_teacher_backbone.model.transformer.resblocks[0]
    hook = block.ln_1.register_forward_hook(lambda *_: calls.append(1))
    method.training_step(Batch(images(), None))
    method.forward_features(images())
    assert calls == []
    tiny_teacher_backbone.text_features_raw(["a text that no cache has"])
    hook.remove()
    assert calls == [1]


def test_a_teacher_is_run_without_a_graph(student: Student) -> None:
    weight = torch.ones(3 * 32 * 32, 8, requires_grad=True)
    vectors = torch.nn.functional.normalize(logits(0, len(NAMES), 8), dim=-1)
    teacher = SimpleNamespace(
        scale=20.0,
        class_vectors=lambda: vectors,
        forward_features=lambda images: images.flatten(1) @ weight,
    )
    method = student(teacher=teacher)
    assert not method.outputs(Batch(images(), None), torch.zeros(0)).teacher_features.requires_grad


def half(x: Tensor) -> Tensor:
    return x.half().float()


@pytest.mark.parametrize("float32_losses", [True, False])
def test_projector_and_logits_are_in_half_precision_only_where_that_is_asked_for(
    student: Student, float32_losses: bool
) -> None:
    method = student(float32_losses=float32_losses)
    seen: list[torch.dtype] = []
    for layer in method.module.projector.linears:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    teacher_features = torch.nn.functional.normalize(torch.randn(4, 40), dim=-1)
    batch = Batch(images=images(), labels=None, teacher_features=teacher_features)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = method.training_step(batch).loss
        student_features = method.image_features(images()).detach()
    assert loss.dtype == torch.float32
    assert set(seen) == {torch.float32 if float32_losses else torch.float16}
    vectors, scale = method.class_vectors(), method.scale
    student, teacher = (
        scale * features @ vectors.T
        if float32_losses
        else half(half(scale * features) @ half(vectors).T)
        for features in (student_features, teacher_features)
    )
    divergence = distillation_loss(student, teacher, temperature=1.0)
    # Sums of half-precision products may be rounded once more or less
    torch.testing.assert_close(loss.detach(), 1000 * divergence, rtol=2e-2, atol=1e-4)
