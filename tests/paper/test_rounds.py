"""Probabilities that pseudo-labels are chosen by."""

from __future__ import annotations

import fill_run as filling
import numpy as np
import pytest
import torch
from torch import Tensor

from kdedge.data.images import Images
from kdedge.errors import DivergedError
from kdedge.paper.rounds import pool_probabilities
from kdedge.runs.model import MethodModel


def scores(logits: Tensor) -> np.ndarray:
    """Probabilities of drawn images where a model answers with these logits."""
    n_images = len(logits)
    rows = iter(logits)

    class Model(MethodModel):
        preprocess, device = filling.PREPROCESS, torch.device("cpu")

        def __init__(self) -> None:
            """Without a setup, which the logits here do not need."""

        def logits(self, images: Tensor) -> Tensor:
            return torch.stack([next(rows) for _ in images])

    pool = Images(filling.Drawn(n_images), tuple(range(n_images)), (), {})
    return pool_probabilities(Model(), pool)


def test_probabilities_are_the_softmax_over_an_images_classes() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    found = scores(logits)
    expected = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scores_that_are_not_finite_label_nothing() -> None:
    with pytest.raises(DivergedError, match="NaN or infinity for"):
        scores(torch.tensor([[0.0, float("nan")]]))
