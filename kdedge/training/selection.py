"""Keeping the best weights by validation score."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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
