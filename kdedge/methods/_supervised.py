"""What the methods share that learn from labeled images by cross-entropy alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdedge.data.batch import Batch
from kdedge.errors import DataError
from kdedge.methods._protocol import StepOutput


def labels_of(batch: Batch, method: str) -> Tensor:
    """[B], positions among the training classes.

    Raises:
        DataError: the batch has no labels.
    """
    if batch.labels is None:
        raise DataError(f"{method} learns from labeled images, and these have no labels.")
    return batch.labels


def cross_entropy_step(logits: Tensor, labels: Tensor) -> StepOutput:
    """Cross-entropy of scaled logits [B, C] with labels [B], averaged over images."""
    accuracy = 100 * (logits.detach().argmax(dim=-1) == labels).float().mean()
    return StepOutput(F.cross_entropy(logits, labels), {"batch_accuracy_percent": accuracy})
