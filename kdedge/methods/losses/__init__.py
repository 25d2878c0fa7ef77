"""Distillation losses by name, and what a student's settings choose among them.

Each file here is a loss; names with a leading underscore hold shared code. Installed packages join
through the entry-point group `kdedge.losses`. A loss's module holds a docstring with its paper,
`Settings`, and `Loss`.

In the class-prompt setting the texts are the C classes, not a batch's captions: the image side has
B rows and the text side C.
"""

from kdedge.methods.losses._chosen import (
    DEFAULT,
    ChosenLosses,
    chosen_losses_model,
    list_losses,
    load_loss,
)
from kdedge.methods.losses._protocol import DistillationLoss, LossSettings, Outputs

__all__ = [
    "DEFAULT",
    "ChosenLosses",
    "DistillationLoss",
    "LossSettings",
    "Outputs",
    "chosen_losses_model",
    "list_losses",
    "load_loss",
]
