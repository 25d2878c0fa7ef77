"""Selection of the final weights: keeps the best ones by validation score."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Kept = Literal["last", "epoch", "averaged", "moving average"]
"""The last epoch's weights, those of the best epoch, the average over the epochs, or the moving
average at the last epoch's end."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        epochs: number of trained epochs.
        steps: number of steps, with those before an interruption.
        seconds: training time, with that before an interruption.
        final_loss: mean over the last epoch's steps.
        kept: which weights the module holds now.
        best_epoch: epoch of these weights if `kept` is `epoch`.
        validation_percent: validation score of these weights; None for selection `last`.
    """

    epochs: int
    steps: int
    seconds: float
    final_loss: float
    kept: Kept
    best_epoch: int | None
    validation_percent: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


class BestWeights:
    """The weights with the highest validation score so far.

    Attributes:
        score: in percent; None before the first validation.
        epoch: epoch of the weights, from 1; None for the average over the epochs.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.epoch: int | None = None
        self._module: dict[str, Tensor] = {}

    def consider(self, module: nn.Module, *, score: float, epoch: int | None) -> None:
        """Copies the module's state if its score is strictly higher than all before."""
        if self.score is None or score > self.score:
            self.score, self.epoch = score, epoch
            state = module.state_dict()
            self._module = {name: x.detach().cpu().clone() for name, x in state.items()}

    def copy_to(self, module: nn.Module) -> None:
        """Loads the best state into the module."""
        module.load_state_dict(self._module)

    def state_dict(self) -> dict[str, Any]:
        """Score, epoch and weights."""
        return {"score": self.score, "epoch": self.epoch, "module": self._module}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state returned by `state_dict`."""
        self.score, self.epoch, self._module = state["score"], state["epoch"], state["module"]
