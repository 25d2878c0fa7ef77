"""The ways to distill: each loss against its definition, spelled out, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.methods.losses import DistillationLoss, Outputs, list_losses, load_loss
from kdedge.methods.losses.kl import distillation_loss

N_IMAGES, N_CLASSES, DIM = 5, 4, 6


def unit(rows: Tensor) -> Tensor:
    return rows / rows.pow(2).sum(dim=-1, keepdim=True).sqrt()


def draw(seed: int, *shape: int) -> Tensor:
    """Unit rows in float64."""
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(*shape, generator=generator, dtype=torch.float64))


def make_outputs(student_dim: int = DIM, **changed: Any) -> Outputs:
    values = {
        "student_features": draw(1, N_IMAGES, student_dim),
        "teacher_features": draw(2, N_IMAGES, DIM),
        "student_vectors": draw(4, N_CLASSES, student_dim),
        "teacher_vectors": draw(3, N_CLASSES, DIM),
        "student_scale": 3.0,
        "teacher_scale": 5.0,
    }
    return Outputs(**{**values, **changed})


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def divergence(teacher: list[float], student: list[float]) -> float:
    """Of the softmax over some logits, in nats."""
    p, q = softmax(teacher), softmax(student)
    return sum(t * (math.log(t) - math.log(s)) for t, s in zip(p, q, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def dot(a: Tensor, b: Tensor) -> float:
    return float(sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def cosines(features: Tensor, vectors: Tensor, scale: float) -> list[list[float]]:
    return [[scale * dot(feature, vector) for vector in vectors] for feature in features]


def slow_kl(outputs: Outputs, temperature: float = 2.0) -> float:
    student = cosines(outputs.student_features, outputs.student_vectors, 3.0 / temperature)
    teacher = cosines(outputs.teacher_features, outputs.teacher_vectors, 5.0 / temperature)
    rows = [divergence(t, s) for t, s in zip(teacher, student, strict=True)]
    return temperature**2 * sum(rows) / (N_IMAGES * N_CLASSES)


def slow_feature(outputs: Outputs) -> float:
    pairs = zip(outputs.student_features, outputs.teacher_features, strict=True)
    return mean([float(x) for s, t in pairs for x in (s - t) ** 2])


def slow_feature_l1(outputs: Outputs) -> float:
    pairs = zip(outputs.student_features, outputs.teacher_features, strict=True)
    return mean([abs(float(x)) for s, t in pairs for x in s - t])


SLOW = {"kl": slow_kl, "feature": slow_feature, "feature_l1": slow_feature_l1}


def make_loss(name: str, **chosen: Any) -> DistillationLoss:
    module = load_loss(name)
    chosen = {"temperature": 2.0} if name == "kl" else chosen
    loss: DistillationLoss = module.Loss(module.Settings(**chosen)).double()
    return loss


@pytest.mark.parametrize("name", list_losses())
def test_a_loss_is_its_definition_spelled_out(name: str) -> None:
    outputs = make_outputs()
    # The divergence is computed in float32 whatever it is given
    tolerance = 1e-5 if name == "kl" else 1e-12
    assert float(make_loss(name)(outputs).detach()) == pytest.approx(
        SLOW[name](outputs), rel=tolerance
    )


@pytest.mark.parametrize("name", sorted(SLOW.keys() - {"kl"}))
def test_a_losss_gradient_is_that_of_its_values(name: str) -> None:
    loss = make_loss(name)

    def value(features: Tensor, vectors: Tensor, *_: Tensor) -> Tensor:
        changed = {"student_features": features, "student_vectors": vectors}
        return loss(make_outputs(**changed))

    inputs = [draw(1, N_IMAGES, DIM), draw(4, N_CLASSES, DIM)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(value, [*inputs, *loss.parameters()])


def test_the_divergences_gradient_is_that_of_its_values() -> None:
    """By hand: in float32, differences of values are too coarse to check a gradient with."""
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    loss = distillation_loss(student, teacher, temperature=2.0)
    (gradient,) = torch.autograd.grad(loss, [student])
    expected = 2 * ((student.double() / 2).softmax(-1) - (teacher.double() / 2).softmax(-1)) / 12
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SLOW)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    features = draw(2, N_IMAGES, DIM).requires_grad_()
    vectors = draw(3, N_CLASSES, DIM).requires_grad_()
    outputs = make_outputs(
        teacher_features=features,
        teacher_vectors=vectors,
        student_features=draw(1, N_IMAGES, DIM).requires_grad_(),
    )
    make_loss(name)(outputs).backward()
    assert features.grad is None
    assert vectors.grad is None


@pytest.mark.parametrize("name", SLOW)
def test_only_losses_of_features_and_crossed_ones_need_equal_dimensions(name: str) -> None:
    loss = make_loss(name)
    outputs = make_outputs(student_dim=3)
    if loss.needs_equal_dims:
        with pytest.raises((RuntimeError, UserWarning), match=r"shape|size"):
            loss(outputs)
    else:
        assert bool(loss(outputs).isfinite())


@pytest.mark.parametrize("name", SLOW)
def test_a_student_that_outputs_as_its_teacher_has_no_loss(name: str) -> None:
    outputs = make_outputs()
    same = make_outputs(
        student_features=outputs.teacher_features,
        student_vectors=outputs.teacher_vectors,
        student_scale=outputs.teacher_scale,
    )
    assert float(make_loss(name)(same)) == pytest.approx(0, abs=1e-7)
