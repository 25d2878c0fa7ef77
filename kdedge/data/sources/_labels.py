"""Finds the position in the class list of a source's label (a folder's name, a CSV field)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from kdedge.errors import DataError

_MAX_NAMED = 8


class LabelIndex:
    """Finds class names; an underscore counts as a space unless the exact name is known.

    Args:
        class_names: in class-list order.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._exact = {name: i for i, name in enumerate(self.class_names)}
        self._spaced = {name.replace("_", " "): i for i, name in enumerate(self.class_names)}

    def find(self, text: str) -> int | None:
        """Returns the position of a class name; None if unknown."""
        position = self._exact.get(text)
        return self._spaced.get(text.replace("_", " ")) if position is None else position

    def read(self, text: str, where: str, *, numbers: bool = True) -> int | None:
        """Returns the position of a class name, or of a number that is a position in the list.

        Args:
            text: the source's label; "" for none, which gives None.
            where: the file and the row, for the message.
            numbers: also accept positions.

        Raises:
            DataError: it is neither.
        """
        if not text:
            return None
        position = self.find(text)
        n_classes = len(self.class_names)
        if position is None and numbers and text.isascii() and text.isdecimal() and len(text) < 10:
            position = int(text) if int(text) < n_classes else None
        if position is None:
            choice = f", or a position from 0 to {n_classes - 1}" if numbers else ""
            raise DataError(
                f'{where}: "{text}" is not a class name{self.nearest(text)}.\n'
                f"  Expected one of the {n_classes} class names{choice}."
            )
        return position

    def nearest(self, text: str) -> str:
        """Returns ` (nearest: "x")`; an empty text if no class name is similar."""
        known = {name.replace("_", " ").casefold(): name for name in self.class_names}
        near = difflib.get_close_matches(text.replace("_", " ").casefold(), list(known), n=1)
        return f' (nearest: "{known[near[0]]}")' if near else ""


def name_some(names: Iterable[str]) -> str:
    """Returns the first names in quotes, and the number of others."""
    names = list(names)
    more = len(names) - _MAX_NAMED
    text = ", ".join(f'"{name}"' for name in names[:_MAX_NAMED])
    return text + (f" and {more} more" if more > 0 else "")


def describe_mismatch(found: Sequence[str], index: LabelIndex) -> str | None:
    """Returns the line about folder names that are not class names; None if all are.

    It also lists the classes without a folder: one of them may be meant.
    """
    positions = {name: index.find(name) for name in found}
    present = set(positions.values())
    missing = [name for i, name in enumerate(index.class_names) if i not in present]
    unknown = [name for name, position in positions.items() if position is None]
    if not unknown:
        return None
    parts = []
    if missing:
        parts.append(f"Missing: {name_some(missing)}.")
    named = ", ".join(f'"{name}"{index.nearest(name)}' for name in unknown[:_MAX_NAMED])
    more = len(unknown) - _MAX_NAMED
    parts.append(f"Unknown: {named}" + (f" and {more} more." if more > 0 else "."))
    return "  " + " ".join(parts)
