"""What the training loop asks of a method.

A method file holds `Settings`, `SEES`, which says what it learns from, its loss functions and a
class `Method` that satisfies the protocol below; also `OPTIM`, an `OptimSpec`, where its authors
published how it is optimized as a baseline. The loop knows no method by name.

A method gets batches of `data.labeled` with labels where `SEES.labels`, else batches of
`data.unlabeled` without labels where `SEES.unlabeled_images`. The classes of its softmax,
`train_classes`, are all where `SEES.novel_class_names`, else those whose labels may be read.
A method whose settings have rounds gets pseudo-labels of `data.unlabeled` too: see `LabelsItsPool`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.data.batch import Batch
from kdedge.data.pseudo_labels import Probabilities, PseudoLabel


class MethodSettings(BaseModel):
    """Base of every method's `Settings`: strict types, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @property
    def is_class_specific(self) -> bool:
        """Whether trained tensors belong to single classes, so that other names have none."""
        return False

    @property
    def has_own_class_vectors(self) -> bool:
        """Whether a student makes its class vectors itself, in place of its teacher's."""
        return False

    @property
    def needs_texts(self) -> bool:
        """Whether the backbone's text tower is run; else an `ImageBackbone` will do."""
        return True

    @property
    def n_rounds(self) -> int:
        """Rounds of a method that `LabelsItsPool`; 0 of any other."""
        return 0


@dataclass(frozen=True)
class StepOutput:
    """What a training step gives back.

    Attributes:
        loss: scalar with a graph, float32.
        scalars: the loss's terms and other figures worth a line in the log, detached.
    """

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Projector(Protocol):
    """Hidden layers, then a linear: [B, D_student] -> [B, D_teacher]."""

    @property
    def linears(self) -> Sequence[nn.Linear]:
        """All linear layers, in order."""
        ...

    @property
    def batch_norms(self) -> Sequence[nn.BatchNorm1d]:
        """Of all linear layers but the last; a ReLU follows each."""
        ...


@dataclass(frozen=True)
class ImagePath:
    """What the deployed image path of a method is made of.

    Attributes:
        visual: the image tower, frozen or trained, CLIP's ViT or another.
        visual_prompts: [depth, n_ctx_vision, D_vision], as `clip.vision.encode_image` takes them;
            None for plain CLIP.
        projector: what comes after the tower; None where its output is the features.
    """

    visual: nn.Module
    visual_prompts: Tensor | None = None
    projector: Projector | None = None


class Teacher(Protocol):
    """A frozen model that a student learns from."""

    @property
    def scale(self) -> float:
        """`logit_scale.exp()`."""
        ...

    def class_vectors(self) -> Tensor:
        """[C, D_teacher], unit length, float32, in class-list order, no graph."""
        ...

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], unit length, float32, no graph."""
        ...


class Method(Protocol):
    """A prompt method: built once, trained by the loop, then asked for features and class vectors.

    Attributes:
        needs_teacher: `build` wants a teacher.
        can_split_batches: its image tower encodes each image of a training step by itself, so that
            a batch may be encoded in parts (`methods/_encode.py`).
        scale: `logit_scale.exp()`, a float; multiplies cosine similarities.
        module: holds every tensor that training changes, and only those: parameters and buffers
            (batch-norm statistics). Its state dict is what checkpoints and run folders keep.
            `module.train()` / `.eval()` are the loop's to call.
    """

    needs_teacher: ClassVar[bool]
    scale: float
    module: nn.Module

    @property
    def can_split_batches(self) -> bool:
        """See above."""
        ...

    @classmethod
    def build(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        settings: Any,
        *,
        template: str,
        train_classes: Sequence[int],
        teacher: Teacher | None,
        generator: torch.Generator,
    ) -> Method:
        """Makes the method on a frozen backbone.

        Args:
            backbone: frozen, on its device.
            class_names: all C classes, in class-list order.
            settings: an instance of the method file's `Settings`.
            template: text pattern with `{}` for frozen texts.
            train_classes: which of `class_names` labels in a batch refer to, in label order.
            teacher: for methods that need one. Their `build` takes `class_vectors` [C, D_teacher]
                too, which are enough where the method is not trained.
            generator: where initial values are drawn from (on the CPU).
        """
        ...

    def training_step(self, batch: Batch) -> StepOutput:
        """One batch's loss; the loop does backward, clipping and the step."""
        ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, the ones the optimizer gets; in a fixed order."""
        ...

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """One weight an epoch for averaging the trained parameters (they sum to 1), or None."""
        ...

    def class_vectors(self) -> Tensor:
        """[C, D], float32, for all classes, no graph; the current parameters'.

        Unit length, or shorter where they are averages of such; [C, 0] of a method that is
        `WithoutClassVectors`.
        """
        ...

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, float32, no graph; the deployed path."""
        ...

    def image_path(self) -> ImagePath:
        """The parts that `forward_features` runs, with their current values."""
        ...


@runtime_checkable
class WithoutClassVectors(Protocol):
    """What a method has besides whose logits are not cosines with one vector a class.

    It is trained and measured like any other. It has no class vectors to store, so it can neither
    teach a student nor be exported; `why_no_class_vectors`, an attribute of its class, says what it
    does instead, as in "makes texts for every image".
    """

    def own_logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], scaled, float32, for all classes, no graph."""
        ...


@runtime_checkable
class LabelsItsViews(Protocol):
    """What a method has besides that labels the images of a batch before it learns from them.

    Its batches hold, beside each view, the image as evaluation sees it (`Batch.clean_images`).
    """

    def pseudo_labels(self, clean_images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B] int64, positions among the training classes, no graph."""
        ...


@runtime_checkable
class LearnsFromTexts(Protocol):
    """What a method has besides that learns from sentences about the classes, if there are any."""

    def use_texts(self, sentences: Sequence[Sequence[str]]) -> None:
        """Takes each class's sentences, in class-list order, before training.

        Raises:
            DataError: one is longer than the text tower's positions.
        """
        ...


@runtime_checkable
class LabelsItsPool(Protocol):
    """What a method has besides where it learns from pseudo-labels that it chooses itself.

    It is trained in the `n_rounds` of its settings, each from the method's first values: on the
    images of `data.labeled` where `SEES.labels`, and on those of `data.unlabeled` that it has
    chosen. The first round's probabilities are zero-shot CLIP's, those of a later round the
    method's own as the round before has trained it.
    """

    @staticmethod
    def choose_labels(
        probabilities: Probabilities,
        settings: Any,
        *,
        round_number: int,
        classes: Sequence[int],
    ) -> list[PseudoLabel]:
        """Chooses a round's images and their classes, each image once.

        Args:
            probabilities: [N, C], of the pool's images over all classes; softmax of the logits.
            settings: an instance of the method file's `Settings`.
            round_number: from 1.
            classes: those without labels; all where every class has some, or where none are seen.

        Returns:
            With rows of the probabilities as images.

        Raises:
            DataError: there are too few images.
        """
        ...

    @staticmethod
    def weigh(is_pseudo: Tensor, *, n_labeled: int, n_pseudo: int) -> Tensor:
        """[B] float32, what a batch's images weigh in the cross-entropy.

        Args:
            is_pseudo: [B] bool, which labels are pseudo-labels.
            n_labeled: labeled images that an epoch goes through.
            n_pseudo: pseudo-labeled ones.
        """
        ...
