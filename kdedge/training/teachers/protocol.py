"""What an ensemble asks of one of its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from kdedge.setup.images import Images


class ListedTeacher(Protocol):
    """A frozen teacher, one of several."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def run(self) -> str | None:
        """The name of its run; None where it has none."""
        ...

    @property
    def classes(self) -> Sequence[int]:
        """The n classes that it knows, positions in the class list, ascending."""
        ...

    @property
    def provenance(self) -> str:
        """Hash of what its answers depend on."""
        ...

    def can_answer(self, images: Images) -> bool:
        """Whether it has an answer for each of these images."""
        ...

    def logits_of(self, images: Images, *, what: str) -> Tensor:
        """Its logits of images as evaluation prepares them, without crops or flips.

        Args:
            images: that it can answer.
            what: is done, for progress.

        Returns:
            [N, n] float32, on the CPU, scaled; or log-probabilities.
        """
        ...
