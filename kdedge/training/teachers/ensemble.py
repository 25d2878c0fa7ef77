"""Several frozen teachers as one: what they say together, and how often each is followed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from kdedge.clip.find import FoundBackbone
from kdedge.config.recipe import EnsembleSpec
from kdedge.files import sha256_json
from kdedge.runs.provenance import TeacherSummary
from kdedge.setup.images import Images
from kdedge.training.teacher_input import teacher_for
from kdedge.training.teachers.combine import Combined, combine, matching_temperature
from kdedge.training.teachers.file import FileTeacher
from kdedge.training.teachers.model import ModelTeacher


class Ensemble:
    """Several frozen teachers.

    Attributes:
        teachers: in the recipe's order; the first has class vectors, which the student uses.
        temperatures: of each teacher; 1 until `fit`.
    """

    def __init__(
        self,
        first: ModelTeacher,
        others: Sequence[ModelTeacher | FileTeacher],
        settings: EnsembleSpec,
        *,
        fit_on: Images,
    ) -> None:
        self.first = first
        self.teachers: list[ModelTeacher | FileTeacher] = [first, *others]
        self.temperatures = [1.0] * len(self.teachers)
        self._settings, self._fit_on = settings, fit_on
        self._is_fit = False
        self._asked: tuple[object, dict[int, Tensor]] = (None, {})

    def __str__(self) -> str:
        """Its teachers and their weights, in words."""
        names = ", ".join(teacher.name for teacher in self.teachers)
        return f"{len(self.teachers)} together, weights {self._settings.weights}: {names}"

    @property
    def models(self) -> list[ModelTeacher]:
        """The teachers that are models."""
        return [teacher for teacher in self.teachers if isinstance(teacher, ModelTeacher)]

    @property
    def provenance(self) -> str:
        """Hash of what the answers of all together depend on."""
        teachers = [teacher.provenance for teacher in self.teachers]
        settings = self._settings.model_dump()
        if settings["match_confidence"]:
            del settings["match_confidence"]  # runs without the key have this hash
        return sha256_json([teachers, settings, self._fit_on.list_hash])

    def fit(self) -> None:
        """Finds the temperatures, once: each teacher's mean confidence becomes the first's.

        With `match_confidence: false` they stay 1.
        """
        if self._is_fit or not self._settings.match_confidence:
            return
        reference = self.ask(self.first, self._fit_on)
        for number, teacher in enumerate(self.teachers[1:], start=1):
            own = self.ask(teacher, self._fit_on)
            same = reference[:, list(teacher.classes)]
            self.temperatures[number] = matching_temperature(own, same)
        self._is_fit = True

    def can_answer(self, images: Images) -> bool:
        """Whether every teacher has an answer for each of these images."""
        return all(teacher.can_answer(images) for teacher in self.teachers)

    def answers(self, images: Images) -> Combined:
        """What the teachers say of images as evaluation prepares them; N takes the place of B."""
        return self.combined([self.ask(teacher, images) for teacher in self.teachers])

    def logits_of(self, images: Images) -> Tensor:
        """[N, C] float32, log-probabilities of all together."""
        return self.answers(images).log_probabilities

    def combined(self, logits: Sequence[Tensor]) -> Combined:
        """Combines each teacher's logits [B, n]."""
        return combine(
            logits,
            [teacher.classes for teacher in self.teachers],
            self._settings,
            temperatures=self.temperatures,
            n_classes=len(self.first.model.class_names),
        )

    def ask(self, teacher: ModelTeacher | FileTeacher, images: Images) -> Tensor:
        """[N, n], a teacher's logits of images; those of the images asked about last are kept."""
        of = (images.list_hash, images.indices)
        if self._asked[0] != of:
            self._asked = (of, {})
        known, number = self._asked[1], self.teachers.index(teacher)
        if number not in known:
            known[number] = teacher.logits_of(images, what=f"asking {teacher.name}")
        return known[number]

    def summarize(self, combined: Combined) -> list[TeacherSummary]:
        """How much weight each teacher had, and how often the answer of all was its own."""
        answers = combined.log_probabilities.argmax(dim=-1)  # [B]
        own = combined.probabilities.argmax(dim=-1)  # [T, B]
        return [
            TeacherSummary(
                name=teacher.name,
                run=teacher.run,
                temperature=self.temperatures[number],
                weight_percent=100 * float(combined.weights[number].double().mean()),
                followed_percent=100 * float((own[number] == answers).double().mean()),
                n_images=len(answers),
            )
            for number, teacher in enumerate(self.teachers)
        ]

    def for_student(self, student: FoundBackbone) -> StudentsEnsemble:
        """The ensemble for images that were prepared for a student."""
        return StudentsEnsemble(self, student)


class StudentsEnsemble:
    """An ensemble as the teacher of a student, for images that were prepared for the student.

    See `methods.protocol.CombinesTeachers`.
    """

    def __init__(self, ensemble: Ensemble, student: FoundBackbone) -> None:
        self._ensemble = ensemble
        self._views = [teacher_for(student, one.model) for one in ensemble.models]

    @property
    def scale(self) -> float:
        """The first teacher's."""
        return self._ensemble.first.model.scale

    def class_vectors(self) -> Tensor:
        """[C, D], the first teacher's."""
        return self._ensemble.first.model.class_vectors()

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized for the student -> [B, sum of D], side by side."""
        return torch.cat([one.forward_features(images).float() for one in self._views], dim=1)

    @cached_property
    def _dims(self) -> list[int]:
        return [one.dim for one in self._ensemble.models]

    @torch.no_grad()
    def combine(self, features: Tensor, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `methods.protocol.CombinesTeachers`."""
        with torch.autocast(features.device.type, enabled=False):
            blocks = torch.split(features.float(), self._dims, dim=1)
            waiting = iter(blocks)
            logits = [
                one.logits_of_keys(keys, features.device)
                if isinstance(one, FileTeacher)
                else one.logits_of_features(next(waiting))
                for one in self._ensemble.teachers
            ]
            return blocks[0], self._ensemble.combined(logits).log_probabilities
