"""The losses that a student's settings choose: a mapping from names to each loss's settings."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    create_model,
    model_serializer,
    model_validator,
)
from torch import nn

from kdedge.errors import KdedgeError, SetupError
from kdedge.methods.losses._protocol import LossSettings
from kdedge.methods.protocol import MethodSettings
from kdedge.plugins import Plugins

DEFAULT = "kl"
"""The loss of settings that name none: PromptKD's own."""

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

    A package's loss cannot take the name of one of kdedge's own.

    Raises:
        RecipeError: there is no such loss.
        SetupError: an installed package's loss cannot be imported or lacks a part.
    """
    return _LOSSES.load(name)


class ChosenLosses(BaseModel):
    """Losses that are added up, by name: `{kl: {weight: 200}, feature: {}}`.

    The order is kept: it decides how the sum is rounded. Losses that are not chosen do not appear
    in dumped values, so that a package installed later changes no record.
    """

    model_config = MethodSettings.model_config

    _names: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _in_the_given_order(
        cls, values: Any, handler: ModelWrapValidatorHandler[ChosenLosses]
    ) -> ChosenLosses:
        if isinstance(values, dict) and not values:
            raise ValueError(f"must name at least one loss, such as {DEFAULT}: {{}}")
        chosen = handler(values)
        if isinstance(values, dict):
            chosen._names = tuple(values)
        return chosen

    @model_serializer
    def _dump(self) -> dict[str, Any]:
        return {name: one.model_dump(mode="json") for name, one in self.items()}

    def items(self) -> list[tuple[str, LossSettings]]:
        """Name and settings of each loss, in the order of the recipe."""
        return [(name, getattr(self, name)) for name in self._names]

    def weights(self, n_classes: int) -> dict[str, float]:
        """The factor of each loss in the sum, for C classes."""
        return {name: one.weight_for(n_classes) for name, one in self.items()}

    def build(self) -> nn.ModuleDict:
        """The losses' modules by name."""
        return nn.ModuleDict({name: load_loss(name).Loss(one) for name, one in self.items()})


@cache
def chosen_losses_model() -> type[ChosenLosses]:
    """The model with one field per loss: kdedge's own losses and those of installed packages.

    An installed package's loss that cannot be loaded is an error only if it is chosen.
    """
    fields: dict[str, Any] = {}
    for name in list_losses():
        try:
            module = load_loss(name)
            if hasattr(ChosenLosses, name):
                raise SetupError(f'A loss cannot have the name "{name}".')
        except KdedgeError as error:
            fields[name] = (_unusable(str(error)), Field(None, description=str(error)))
        else:
            about = (module.__doc__ or "").partition("\n")[0]
            fields[name] = (module.Settings, Field(None, description=about))
    return create_model("Losses", __base__=ChosenLosses, __doc__=ChosenLosses.__doc__, **fields)


def _unusable(message: str) -> Any:
    """A field type that refuses every value with a message."""

    def refuse(value: object) -> object:
        raise ValueError(f"cannot be used. {message.rstrip('.')}")

    return Annotated[Any, BeforeValidator(refuse)]
