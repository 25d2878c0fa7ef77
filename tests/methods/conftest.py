"""What the methods' tests do alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdedge.data.batch import Batch


@pytest.fixture
def five_steps() -> Callable[..., list[float]]:
    """Trains a method on one batch by SGD with momentum, and gives the loss before each step."""

    def train(method: Any, batch: Batch, *, lr: float) -> list[float]:
        optimizer = torch.optim.SGD(method.trainable_parameters().values(), lr=lr, momentum=0.9)
        losses = []
        for _ in range(5):
            loss = method.training_step(batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    return train
