"""A teacher that is a model of kdedge: a run, trained for this student or before."""

from __future__ import annotations

from dataclasses import dataclass

from kdedge.clip.find import FoundBackbone
from kdedge.methods.protocol import Teacher
from kdedge.runs.model import MethodModel, RunModel
from kdedge.training.teacher_input import teacher_for


@dataclass(frozen=True)
class ModelTeacher:
    """A frozen model that teaches.

    Attributes:
        model: a run, or a method that is not trained yet.
        features_provenance: hash of what its image features depend on.
        vectors_provenance: hash of what its class vectors, or its classifier, depend on.
        run: name of its run; None where it is not trained.
    """

    model: MethodModel | RunModel
    features_provenance: str
    vectors_provenance: str
    run: str | None = None

    @property
    def provenance(self) -> str:
        """Hash of what it teaches."""
        return self.vectors_provenance

    @property
    def dim(self) -> int:
        """D, the size of its image features."""
        setup = self.model.setup
        if setup.role == "student" or setup.choice.settings.gives_logits:
            return self.model.class_vectors().shape[1]
        return setup.backbone.embed_dim

    def for_student(self, student: FoundBackbone) -> Teacher:
        """What teaches, for images that were prepared for a student.

        Raises:
            RecipeError: as of `teacher_for`.
        """
        return teacher_for(student, self.model)

    def load(self) -> None:
        """Loads its weights, so that their errors are raised."""
        _ = self.model.scale
