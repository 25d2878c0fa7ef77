"""Exponential moving average of the trained tensors, which is validated and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn


class MovingAverage:
    """average <- d average + (1 - d) values after each step, of all parameters and buffers.

    In step t, d is `decay` or (1 + t) / (10 + t), whichever is smaller (TensorFlow's
    ExponentialMovingAverage with num_updates), so that initial values, such as those of a random
    projector, are forgotten within a few steps. Batch norm's statistics are averaged like the
    parameters. Integers have no average and are copied.

    Args:
        module: what is trained; the average starts from its current values.
        decay: largest d, between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._average = {name: x.detach().clone() for name, x in _tensors(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        """Adds the module's values after a step, counted from 1 over the whole run."""
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
        """Context manager: the module has the average inside, and its own values afterwards."""
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
        """Loads what `state_dict` returned.

        Raises:
            ValueError: the state is that of another module.
        """
        if state.keys() != self._average.keys():
            raise ValueError("its moving average is of other tensors")
        for name, average in self._average.items():
            average.copy_(state[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, not copied."""
    return dict(chain(module.named_parameters(), module.named_buffers()))
