"""The losses by name."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from kdedge.methods.registry import ModuleRegistry

GROUP = "kdedge.losses"

DEFAULT = "kl"
"""The loss of settings that name none: PromptKD's own."""

_REGISTRY = ModuleRegistry(
    noun="loss",
    package="kdedge.methods.losses",
    folder=Path(__file__).parent,
    group=GROUP,
    parts={
        "Settings": "a subclass of kdedge.methods.losses.LossSettings.",
        "Loss": "a subclass of kdedge.methods.losses.DistillationLoss.",
    },
)


def list_losses() -> tuple[str, ...]:
    """Names of all losses, sorted: kdedge's own and those of installed packages."""
    return _REGISTRY.names()


def load_loss(name: str) -> ModuleType:
    """Imports a loss's module, which holds `Settings` and `Loss`.

    A package's loss cannot take the name of one of kdedge's own.

    Raises:
        RecipeError: there is no such loss.
        SetupError: an installed package's loss cannot be imported or lacks a part.
    """
    return _REGISTRY.load(name)
