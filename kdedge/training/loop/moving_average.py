"""Exponential moving average of what is trained, which is validated and kept in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn


class MovingAverage:
    """average <- d average + (1 - d) values after each step, of all parameters and buffers.

    In step t, d is `decay` or (1 + t) / (10 + t), whichever is smaller (TensorFlow's
    ExponentialMovingAverage with num_updates): initial values, a random projector among them, are
    forgotten within a few steps. Batch norm's statistics are averaged like the parameters. Integers
    have no average and are copied.

    Args:
        module: what is trained; its tensors as they are now begin the average.
        decay: d's limit, between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._average = {name: x.detach().clone() for name, x in _tensors(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        """Takes in the module's values after a step, which counts from 1 over the whole run."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in _tensors(module).items():
            average = self._average[name]
            if value.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrites the module's values with the average."""
        for name, value in _tensors(module).items():
            value.copy_(self._average[name])

    @contextlib.contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Context in which the module has the average; it has its own values again after it."""
        own = {name: value.detach().clone() for name, value in _tensors(module).items()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in _tensors(module).items():
                    value.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> average."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            ValueError: it is of another module.
        """
        if state.keys() != self._average.keys():
            raise ValueError("its moving average has other tensors")
        for name, average in self._average.items():
            average.copy_(state[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as they are and not as copies."""
    return dict(chain(module.named_parameters(), module.named_buffers()))
