"""The class list of a recipe or of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.config.data_spec import ClassesSpec, DataSpec
from kdedge.config.recipe import Recipe
from kdedge.data.classes import check_class_names, load_class_names
from kdedge.data.split import base_novel
from kdedge.files import home_path
from kdedge.records.evaluation import SplitName


@dataclass(frozen=True)
class Classes:
    """A class list.

    Attributes:
        names: all C class names, in order.
        template: text pattern for frozen texts.
        split: "all" or "base-to-novel".
        has_pseudo_labels: whether the recipe has pseudo-labels, which may name any class.
    """

    names: tuple[str, ...]
    template: str
    split: SplitName
    has_pseudo_labels: bool = False

    @property
    def labeled(self) -> range:
        """Classes whose labels may be trained on: the base half, or all."""
        return base_novel(len(self.names))[0] if self._is_split else range(len(self.names))

    @property
    def pseudo_labeled(self) -> range:
        """Classes that get pseudo-labels: the novel half, or all if the list is not split."""
        return base_novel(len(self.names))[1] if self._is_split else range(len(self.names))

    @property
    def _is_split(self) -> bool:
        return self.split == "base-to-novel"


def load_classes(recipe: Recipe) -> Classes:
    """Reads the class list that the recipe names."""
    return classes_of(recipe, load_class_names(recipe.classes, data=recipe.data))


def classes_of(recipe: Recipe, names: Sequence[str]) -> Classes:
    """Combines class names with the recipe's template and split."""
    return Classes(
        tuple(names),
        recipe.classes.template,
        recipe.data.split,
        has_pseudo_labels=recipe.data.pseudo_labels is not None,
    )


def given_class_names(classes: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Returns class names from a list of names, or from a file, after a check.

    Raises:
        DataError: a name is twice in the list, or cannot be used.
    """
    if isinstance(classes, str | Path):
        return load_class_names(ClassesSpec(file=home_path(classes).absolute()), data=DataSpec())
    check_class_names(classes, "classes")
    return tuple(classes)
