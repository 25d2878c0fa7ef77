"""The probabilities of several teachers, combined per image.

p_t = softmax(z_t / T_t) are teacher t's probabilities over the classes that it knows. The
temperature T_t gives it the first teacher's mean confidence on images that both are asked about;
the first teacher has T = 1. The answer of all is sum_t w_t p_t with weights that sum to 1: equal,
proportional to exp(-H(p_t) / tau), or proportional to max(p_t). Confidence weighting follows
TheProfessor, arXiv:2606.23897.

A teacher that knows a part S of the classes, such as a linear probe under base-to-novel, abstains
on the others. Let q be the answer of the teachers that know every class. The partial teacher
divides q's mass of S among S, and leaves the other classes as q has them:

    p'_t(k) = q(S) p_t(k) for k in S,    p'_t(k) = q(k) for other k

So it changes nothing about how probable S is. It matters where q's mass of S is large, and says
nothing where that is 0. Its weight comes from p'_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdedge.config.recipe import EnsembleSpec

_COLDEST, _HOTTEST = 1e-3, 1e3
"""Bounds of a temperature. A teacher that says the same of all images reaches one of them."""


@dataclass(frozen=True)
class Combined:
    """What several teachers say of B images.

    Attributes:
        log_probabilities: [B, C] float32, of all together; a class that no teacher deems possible
            has the smallest positive number's.
        probabilities: [T, B, C] float32, of each teacher, completed by the others where it knows a
            part of the classes alone.
        weights: [T, B] float32, columns sum to 1.
    """

    log_probabilities: Tensor
    probabilities: Tensor
    weights: Tensor


def combine(
    logits: Sequence[Tensor],
    classes: Sequence[Sequence[int]],
    settings: EnsembleSpec,
    *,
    temperatures: Sequence[float],
    n_classes: int,
) -> Combined:
    """Combines the answers of several teachers for B images, in float32.

    Args:
        logits: of each teacher [B, n_t], scaled, or log-probabilities.
        classes: the n_t classes that each knows, ascending positions; the first knows all C.
        settings: how teachers are weighed.
        temperatures: divide each teacher's logits.
        n_classes: C.
    """
    own = [
        (one.float() / temperature).softmax(dim=-1)
        for one, temperature in zip(logits, temperatures, strict=True)
    ]
    knows_all = [len(known) == n_classes for known in classes]
    whole = torch.stack([one for one, is_whole in zip(own, knows_all, strict=True) if is_whole])
    together = _mix(whole, _weights(whole, settings))  # [B, C]
    probabilities = torch.stack(
        [
            one if is_whole else _completed(one, known, together)
            for one, known, is_whole in zip(own, classes, knows_all, strict=True)
        ]
    )
    weights = _weights(probabilities, settings)
    mixed = _mix(probabilities, weights)
    return Combined(mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log(), probabilities, weights)


def _mix(probabilities: Tensor, weights: Tensor) -> Tensor:
    """[T, B, C] and [T, B] -> [B, C]."""
    return (weights.unsqueeze(-1) * probabilities).sum(dim=0)


def _weights(probabilities: Tensor, settings: EnsembleSpec) -> Tensor:
    """[T, B, C] -> [T, B]."""
    if settings.weights == "entropy":
        return (-entropy(probabilities) / settings.tau).softmax(dim=0)
    if settings.weights == "confidence":
        highest = probabilities.amax(dim=-1)
        return highest / highest.sum(dim=0)
    return probabilities.new_full(probabilities.shape[:2], 1 / len(probabilities))


def entropy(probabilities: Tensor) -> Tensor:
    """[..., C] -> [...], in nats."""
    per_class: Tensor = torch.special.entr(probabilities)
    return per_class.sum(dim=-1)


def _completed(own: Tensor, known: Sequence[int], together: Tensor) -> Tensor:
    """[B, n_t] and [B, C] -> [B, C]: divides the mass of the known classes as the teacher does."""
    columns = torch.tensor(known, device=own.device)
    mass = together[:, columns].sum(dim=-1, keepdim=True)
    return together.index_copy(1, columns, mass * own)


def matching_temperature(logits: Tensor, reference: Tensor) -> float:
    """The temperature that gives logits the mean confidence of a reference on the same images.

    Mean confidence is the mean of the highest probability. It falls as the temperature grows, so
    that halving an interval finds it.

    Args:
        logits: [N, n], of the teacher.
        reference: [N, n], the first teacher's of the same classes.
    """
    logits = logits.double()
    wanted = _mean_confidence(reference.double())
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    if _mean_confidence(logits) == wanted:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _mean_confidence(logits / math.exp(middle)) > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _mean_confidence(logits: Tensor) -> float:
    return float(logits.softmax(dim=-1).amax(dim=-1).mean())
