"""A teacher that is a model of kdedge: a run, trained for this student or before.

Its method has class vectors, or a classifier on its image features (`methods.protocol
.HasClassifier`), such as a linear probe. Under base-to-novel the latter knows the base classes
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from kdedge.files import sha256_json
from kdedge.methods.protocol import HasClassifier
from kdedge.runs.measure import compute_logits
from kdedge.runs.model import MethodModel, RunModel
from kdedge.setup.images import Images
from kdedge.setup.method import check_can_be_listed
from kdedge.training.teachers.known import KnownTeacher


class ModelTeacher:
    """A run, or a method that is not trained yet, as one of several teachers.

    Raises:
        RecipeError: its method has neither class vectors nor a classifier.
    """

    def __init__(self, known: KnownTeacher) -> None:
        check_can_be_listed(known.model.setup.choice)
        self._known = known
        self.model: MethodModel | RunModel = known.model
        self.run = known.run
        self.provenance = sha256_json([known.features_provenance, known.vectors_provenance])

    @property
    def name(self) -> str:
        """See `ListedTeacher`."""
        return f"{self.model.setup.choice.name} on {self.model.setup.backbone.name}"

    @property
    def classes(self) -> Sequence[int]:
        """See `ListedTeacher`."""
        return [position for position, _ in self._columns]

    @cached_property
    def _columns(self) -> list[tuple[int, int]]:
        """Each class that it knows, and the column of its logits; its own list may be another."""
        method, names = self.model.method, self.model.class_names
        if not isinstance(method, HasClassifier):
            return [(position, position) for position in range(len(names))]
        trained = self.model.setup.classes.names
        position = {name: number for number, name in enumerate(names)}
        known = [trained[label] for label in method.known_classes()]
        return sorted((position[n], column) for column, n in enumerate(known) if n in position)

    @property
    def dim(self) -> int:
        """D, the size of its image features."""
        return self._known.dim

    def can_answer(self, images: Images) -> bool:
        """See `ListedTeacher`."""
        return True

    def logits_of(self, images: Images, *, what: str) -> Tensor:
        """See `ListedTeacher`."""
        return compute_logits(self.model, images, what=what)[:, list(self.classes)]

    @torch.no_grad()
    def logits_of_features(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, n], scaled; features as `forward_features` gives them, or stored ones."""
        method = self.model.method
        if isinstance(method, HasClassifier):
            return method.classify(features)[:, [column for _, column in self._columns]]
        return self.model.scale * features @ self.model.class_vectors().T
