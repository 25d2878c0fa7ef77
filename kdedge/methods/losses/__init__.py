"""Distillation losses by name, and the settings by which a student chooses among them.

Each file here is a loss, except files with a leading underscore. Installed packages join through
the entry-point group `kdedge.losses`. A loss's module holds a docstring with its paper, `Settings`,
and `Loss`.

In the class-prompt setting the texts are the C classes, not a batch's captions: the image side has
B rows and the text side C.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidatorFunctionWrapHandler, create_model
from torch import Tensor, nn

from kdedge.config.fields import Strict
from kdedge.errors import KdedgeError
from kdedge.plugins import Plugins


@dataclass(frozen=True)
class Outputs:
    """Outputs of student and teacher for a batch, all of one dtype, float32 in training.

    Attributes:
        student_features: [B, D_student], unit length, with gradients.
        teacher_features: [B, D_teacher], unit length, of the same crops; constant.
        student_vectors: [C, D_student], unit length; the teacher's class vectors, or the student's
            own with gradients.
        teacher_vectors: [C, D_teacher], unit length; constant.
        student_scale: the student's `logit_scale.exp()`.
        teacher_scale: the teacher's `logit_scale.exp()`.
        given_logits: [B, C], the teacher's logits if it has no class vectors and `teacher_vectors`
            is [C, 0]; else None.
    """

    student_features: Tensor
    teacher_features: Tensor
    student_vectors: Tensor
    teacher_vectors: Tensor
    student_scale: float
    teacher_scale: float
    given_logits: Tensor | None = None

    @cached_property
    def student_logits(self) -> Tensor:
        """[B, C], scaled."""
        return self.student_scale * self.student_features @ self.student_vectors.T

    @cached_property
    def teacher_logits(self) -> Tensor:
        """[B, C], scaled."""
        if self.given_logits is not None:
            return self.given_logits
        return self.teacher_scale * self.teacher_features @ self.teacher_vectors.T


class LossSettings(Strict):
    """Base of every loss's `Settings`: strict types, unknown keys are errors.

    A loss overrides the default and description of `weight`.
    """

    weight: float | None = Field(gt=0, description="Multiplies the loss.")

    def weight_for(self, n_classes: int) -> float:
        """The loss's factor in the sum of all losses, for C classes."""
        assert self.weight is not None  # a loss with an optional weight overrides this method
        return self.weight


class DistillationLoss(nn.Module):
    """Base of every loss's `Loss`, which overrides `forward`.

    Its parameters are trained with the student and kept in the student's file.

    Attributes:
        needs_equal_dims: whether D_student and D_teacher must be equal.
    """

    needs_equal_dims: ClassVar[bool] = False

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar with gradients, before its weight."""
        raise NotImplementedError

    def scalars(self, value: Tensor, n_classes: int) -> dict[str, Tensor]:
        """Values for the log. If empty, the log shows the loss itself as `<name>_loss`."""
        return {}


_LOSSES = Plugins(
    noun="loss",
    package="kdedge.methods.losses",
    group="kdedge.losses",
    parts={
        "": {
            "Settings": "a subclass of kdedge.methods.losses.LossSettings.",
            "Loss": "a subclass of kdedge.methods.losses.DistillationLoss.",
        }
    },
)


def list_losses() -> tuple[str, ...]:
    """Names of all losses, sorted: kdedge's own and those of installed packages."""
    return _LOSSES.names()


def load_loss(name: str) -> ModuleType:
    """Imports a loss's module, which holds `Settings` and `Loss`.

    An installed package cannot replace one of kdedge's own losses.

    Raises:
        RecipeError: there is no such loss.
        SetupError: an installed package's loss cannot be imported or lacks a part.
    """
    return _LOSSES.load(name)


class Losses(Strict):
    """Losses that are added up, by name: `{kl: {weight: 200}, feature: {}}`.

    The order is kept, since it affects the rounding of the sum. Losses that are not chosen do not
    appear in dumped values, so that a package installed later changes no record.
    """


@cache
def losses_model() -> type[Losses]:
    """The pydantic model with one field per loss, kdedge's own and those of installed packages.

    An installed package's loss that cannot be loaded is an error only if it is chosen.
    """
    fields: dict[str, Any] = {}
    for name in list_losses():
        try:
            module = load_loss(name)
        except KdedgeError as error:
            fields[name] = (_unusable(str(error)), Field(None, description=str(error)))
        else:
            about = (module.__doc__ or "").partition("\n")[0]
            fields[name] = (module.Settings, Field(None, description=about))
    return create_model("Losses", __base__=Losses, __doc__=Losses.__doc__, **fields)


def choose_losses(values: Any, validate: ValidatorFunctionWrapHandler) -> dict[str, LossSettings]:
    """Validates a recipe's losses; returns the settings of each, in the order of the recipe."""
    if values == {}:
        raise ValueError("must name at least one loss, such as kl: {}")
    losses = validate(values)
    return {name: getattr(losses, name) for name in values}


def _unusable(message: str) -> Any:
    """A field type that refuses every value with a message."""

    def refuse(value: object) -> object:
        raise ValueError(f"cannot be used. {message.rstrip('.')}")

    return Annotated[Any, BeforeValidator(refuse)]
