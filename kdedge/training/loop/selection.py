"""Which weights a training ends with: keeping the best ones by validation score."""

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
    """How a training ended.

    Attributes:
        epochs: trained in all.
        steps: taken in all, those before an interruption included.
        seconds: spent in training, those before an interruption included.
        final_loss: mean over the last epoch's steps.
        kept: which weights the module holds now.
        best_epoch: the epoch they are of where `kept` is `epoch`.
        validation_percent: their validation score; None under selection `last`.
    """

    epochs: int
    steps: int
    seconds: float
    final_loss: float
    kept: Kept
    best_epoch: int | None
    validation_percent: float | None

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values."""
        return dataclasses.asdict(self)


class BestWeights:
    """The weights with the highest validation score so far.

    Attributes:
        score: in percent; None before the first.
        epoch: the epoch they are of, from 1; None stands for the average over the epochs.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.epoch: int | None = None
        self._module: dict[str, Tensor] = {}

    def consider(self, module: nn.Module, *, score: float, epoch: int | None) -> None:
        """Copies the module's state where its score is strictly higher than all before."""
        if self.score is None or score > self.score:
            self.score, self.epoch = score, epoch
            state = module.state_dict()
            self._module = {name: x.detach().cpu().clone() for name, x in state.items()}

    def copy_to(self, module: nn.Module) -> None:
        """Gives the module the best state."""
        module.load_state_dict(self._module)

    def state_dict(self) -> dict[str, Any]:
        """Score, epoch and weights."""
        return {"score": self.score, "epoch": self.epoch, "module": self._module}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.score, self.epoch, self._module = state["score"], state["epoch"], state["module"]
