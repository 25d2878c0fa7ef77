"""The class list of a recipe."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from kdedge.config.recipe import (
    Recipe,
)
from kdedge.data.classes import load_class_names
from kdedge.data.split import base_novel
from kdedge.methods.registry import Sees

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """The class list of a run.

    Attributes:
        names: all C class names, in order.
        template: text pattern for frozen texts.
        split: "all" or "base-to-novel".
        has_pseudo_labels: whether the recipe has pseudo-labels, which may be of any class.
    """

    names: tuple[str, ...]
    template: str
    split: Literal["all", "base-to-novel"]
    has_pseudo_labels: bool = False

    @property
    def labeled(self) -> range:
        """Classes whose labels may be trained on: the base half, or all."""
        return (
            base_novel(len(self.names))[0]
            if self.split == "base-to-novel"
            else range(len(self.names))
        )

    @property
    def unlabeled(self) -> range:
        """Classes that a method gives pseudo-labels: the novel half; all, where all have labels."""
        return (
            base_novel(len(self.names))[1]
            if self.split == "base-to-novel"
            else range(len(self.names))
        )

    def trained_by(self, sees: Sees) -> range:
        """Classes in the softmax of a method that sees this."""
        from_pseudo_labels = sees.labels and self.has_pseudo_labels
        is_any = sees.novel_class_names or from_pseudo_labels
        return range(len(self.names)) if is_any else self.labeled


def load_classes(recipe: Recipe) -> Classes:
    """Reads the class list that the recipe names."""
    names = load_class_names(recipe.classes, data=recipe.data)
    return Classes(
        names,
        recipe.classes.template,
        recipe.data.split,
        has_pseudo_labels=recipe.data.pseudo_labels is not None,
    )
