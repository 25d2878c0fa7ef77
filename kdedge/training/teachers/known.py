"""A model that teaches, with what its answers depend on."""

from __future__ import annotations

from dataclasses import dataclass

from kdedge.runs.model import MethodModel, RunModel


@dataclass(frozen=True)
class KnownTeacher:
    """A model that teaches.

    Attributes:
        model: frozen.
        features_provenance: hash of what its image features depend on.
        vectors_provenance: hash of what its class vectors depend on.
        run: name of its run; None where it is not trained.
    """

    model: MethodModel | RunModel
    features_provenance: str
    vectors_provenance: str
    run: str | None = None

    @property
    def dim(self) -> int:
        """D, the size of its image features."""
        if self.model.setup.role == "student":  # its projector decides
            return self.model.class_vectors().shape[1]
        return self.model.setup.backbone.embed_dim
