"""Choice of the final weights: the best by validation score, and averages over epochs or steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BestWeights:
    """The weights with the highest validation score so far.

    Attributes:
        score: the highest validation score, in percent; None before the first validation.
        epoch: epoch of the weights, from 1; None for the average over the epochs.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.epoch: int | None = None
        self._module: dict[str, Tensor] = {}

    def consider(self, module: nn.Module, *, score: float, epoch: int | None) -> None:
        """Copies the module's state if its score is strictly higher than all earlier scores."""
        if self.score is None or score > self.score:
            self.score = score
            self.epoch = epoch
            state = module.state_dict()
            self._module = {name: value.to("cpu", copy=True) for name, value in state.items()}

    def copy_to(self, module: nn.Module) -> None:
        """Loads the best state into the module."""
        module.load_state_dict(self._module)

    def state_dict(self) -> dict[str, Any]:
        """Score, epoch and weights."""
        return {"score": self.score, "epoch": self.epoch, "module": self._module}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state returned by `state_dict`."""
        self.score = state["score"]
        self.epoch = state["epoch"]
        self._module = state["module"]


class ParameterAverage:
    """Weighted sum of the trained parameters over the epochs.

    Source: Gaussian weighted prompt aggregation, PromptSRC (arXiv:2307.06948, 3.2). Only trained
    parameters are averaged, in float64 on the CPU, and the sum survives an interruption.

    Args:
        weights: one per epoch; they sum to 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._sum: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, parameters: Mapping[str, nn.Parameter], *, epoch: int) -> None:
        """Adds the parameters at the end of an epoch; epochs count from 1."""
        for name, parameter in parameters.items():
            term = self._weights[epoch - 1] * parameter.detach().to("cpu", torch.float64)
            self._sum[name] = self._sum[name] + term if name in self._sum else term

    @torch.no_grad()
    def copy_to(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Overwrites the parameters with the sum, rounded once to their own dtype."""
        for name, parameter in parameters.items():
            parameter.copy_(self._sum[name].to(parameter.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> partial sum, float64 on the CPU."""
        return dict(self._sum)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the sum returned by `state_dict`."""
        self._sum = dict(state)


class MovingAverage:
    """average <- d average + (1 - d) values after each step, of all parameters and buffers.

    In step t, d is `decay` or (1 + t) / (10 + t), whichever is smaller (TensorFlow's
    ExponentialMovingAverage with num_updates), so that initial values, such as of a random
    projector, are forgotten within a few steps. Batch norm's statistics are averaged like the
    parameters. Integers have no average and are copied.

    Args:
        module: the trained module; the average starts from its current values.
        decay: largest d, between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._average = copied_state(module)

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        """Adds the module's values after a step, counted from 1 over the whole run."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            average = self._average[name]
            if value.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def copy_to(self, module: nn.Module) -> None:
        """Overwrites the module's values with the average."""
        module.load_state_dict(self._average)

    @contextlib.contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Context in which the module has the averaged values; afterwards it has its own."""
        with state_kept(module):
            self.copy_to(module)
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> average."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the average returned by `state_dict`."""
        for name, average in self._average.items():
            average.copy_(state[name])


@contextlib.contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Context manager that restores the module's tensors on exit."""
    before = copied_state(module)
    try:
        yield
    finally:
        module.load_state_dict(before)


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's tensors, by name, on the same device."""
    return {name: value.clone() for name, value in module.state_dict().items()}
