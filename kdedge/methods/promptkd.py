"""PromptKD: a prompted student learns a frozen teacher's answers on unlabeled images.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, section 3.2 and equation 5.
Differs from the authors' code: class vectors are computed once, after the teacher's weights are
loaded, and not in every step; the student's text tower is never run; weights stay in float32 under
autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.prompts import make_visual_prompts
from kdedge.clip.vision import encode_image
from kdedge.data.batch import Batch
from kdedge.errors import DataError, RecipeError, ShapeError
from kdedge.methods._protocol import ImagePath, MethodSettings, StepOutput, Teacher

DEFAULT_KD_WEIGHT = 1000.0
"""The authors' launch script; 200 for Flowers102, FGVCAircraft and DTD."""


class Settings(MethodSettings):
    """Settings of PromptKD; defaults from the authors' base-to-novel configuration."""

    n_ctx_vision: int = Field(
        4,
        ge=0,
        description="Visual prompts in each prompted image layer; 0 trains the projector alone.",
    )
    prompt_depth: int = Field(
        9, ge=1, description="Image layers that get prompts of their own, from the first."
    )
    temperature: float = Field(1.0, gt=0, description="Divides both logits before the divergence.")
    kd_weight: float | None = Field(
        None,
        gt=0,
        description="Multiplies the divergence averaged over images and classes: one image weighs"
        " kd_weight / C."
        f" {DEFAULT_KD_WEIGHT:g} where neither this nor kd_weight_per_image is given.",
    )
    kd_weight_per_image: float | None = Field(
        None,
        gt=0,
        description="Multiplies the divergence averaged over images only, so that it does not"
        " depend on how many"
        " classes there are: kd_weight / C.",
    )

    @model_validator(mode="after")
    def _one_weight(self) -> Settings:
        if self.kd_weight is not None and self.kd_weight_per_image is not None:
            raise ValueError("give kd_weight or kd_weight_per_image, not both")
        return self

    def weight(self, n_classes: int) -> float:
        """`kd_weight` for C classes, however it was given."""
        if self.kd_weight_per_image is not None:
            return self.kd_weight_per_image * n_classes
        return DEFAULT_KD_WEIGHT if self.kd_weight is None else self.kd_weight


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """Kullback-Leibler divergence of student from teacher, averaged over images and classes.

    Args:
        student_logits: [B, C], scaled. Computed in float32 whatever the model's precision.
        teacher_logits: [B, C], same class order. Treated as constant.
        temperature: softens both; the result grows by its square so that gradient size does not
            depend on it (Hinton et al. 2015, arXiv:1503.02531).

    Returns:
        A scalar, at least 0. The mean also runs over classes, so one image weighs 1 / C: with 12
        classes the same `kd_weight` acts 33 times stronger than with 397.

    Raises:
        ShapeError: the two class counts differ, which means two class lists are in use.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"Student logits {list(student_logits.shape)} and teacher logits"
            f" {list(teacher_logits.shape)} differ: two class lists are in use."
        )
    divergence = F.kl_div(
        (student_logits.float() / temperature).log_softmax(dim=-1),
        (teacher_logits.detach().float() / temperature).log_softmax(dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / student_logits.numel()


class Projector(nn.Module):
    """Student features to the teacher's dimension: linear, batch norm, ReLU, linear (section 3.2).

    Args:
        student_dim: D_student.
        teacher_dim: D_teacher, also the hidden width.
        generator: on the CPU; draws U(-1/√fan_in, 1/√fan_in), PyTorch's default for the authors'
            1x1 convolutions.
    """

    def __init__(self, student_dim: int, teacher_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear1 = nn.Linear(student_dim, teacher_dim)
        self.batch_norm = nn.BatchNorm1d(teacher_dim)
        self.linear2 = nn.Linear(teacher_dim, teacher_dim)
        for linear in (self.linear1, self.linear2):
            bound = linear.in_features**-0.5
            for parameter in (linear.weight, linear.bias):
                with torch.no_grad():
                    drawn = torch.rand(parameter.shape, generator=generator)
                    parameter.copy_((2 * drawn - 1) * bound)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D_student] -> [B, D_teacher]."""
        hidden = F.relu(self.batch_norm(self.linear1(features)))
        projected: Tensor = self.linear2(hidden)
        return projected


class Student(nn.Module):
    """The parameters of PromptKD: visual prompts and the projector."""

    def __init__(self, visual_prompts: nn.Parameter, projector: Projector) -> None:
        super().__init__()
        self.visual_prompts = visual_prompts
        self.projector = projector


class Method:
    """PromptKD's student on a frozen backbone."""

    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        module: Student,
        settings: Settings,
        *,
        teacher: Teacher,
        class_vectors: Tensor,
    ) -> None:
        self.scale = backbone.scale
        self.module = module
        self._backbone = backbone
        self._settings = settings
        self._teacher = teacher
        self._class_vectors = class_vectors

    @classmethod
    def build(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        settings: Settings,
        *,
        template: str,
        train_classes: Sequence[int],
        teacher: Teacher | None,
        generator: torch.Generator,
    ) -> Method:
        """See `methods._protocol.Method.build`; learns over all classes, encodes no text."""
        if teacher is None:
            raise RecipeError("promptkd learns from a teacher, and the recipe names none.")
        class_vectors = teacher.class_vectors()
        if len(class_vectors) != len(class_names):
            raise ShapeError(
                f"The teacher has {len(class_vectors)} class vectors, the class list"
                f" {len(class_names)} names."
            )
        visual_prompts = make_visual_prompts(
            backbone,
            n_ctx=settings.n_ctx_vision,
            prompt_depth=settings.prompt_depth,
            generator=generator,
        )
        projector = Projector(backbone.embed_dim, class_vectors.shape[1], generator)
        student = Student(visual_prompts, projector).to(backbone.device)
        return cls(backbone, student, settings, teacher=teacher, class_vectors=class_vectors)

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], unit length, with gradients; batch norm by mode."""
        raw = encode_image(self._backbone.model.visual, images, self.module.visual_prompts)
        # Batch norm over a few images and the last features before unit length: in float32 (a
        # projector costs nothing).
        with torch.autocast(images.device.type, enabled=False):
            return unit_length(self.module.projector(raw.float()))

    def training_step(self, batch: Batch) -> StepOutput:
        """`kd_weight` times the divergence from the teacher; no label is read (equation 5)."""
        if len(batch.images) < 2:
            raise DataError(
                "promptkd needs at least 2 unlabeled images in a batch (batch norm has no variance"
                " over one).\n"
                "  Add images, or raise batch_size."
            )
        with torch.no_grad():
            teacher_features = self._teacher.forward_features(batch.images)
        student_features = self.image_features(batch.images)
        with torch.autocast(batch.images.device.type, enabled=False):
            teacher_logits = self._teacher.scale * teacher_features @ self._class_vectors.T
            student_logits = self.scale * student_features @ self._class_vectors.T
            divergence = distillation_loss(
                student_logits, teacher_logits, temperature=self._settings.temperature
            )
        n_classes = len(self._class_vectors)
        agreement = (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float().mean()
        scalars = {
            "divergence_per_image": divergence.detach() * n_classes,
            "teacher_agreement_percent": 100 * agreement,
        }
        return StepOutput(self._settings.weight(n_classes) * divergence, scalars)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Visual prompts and projector; batch norm's statistics are buffers of the module."""
        return dict(self.module.named_parameters())

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """Nothing is averaged."""
        return None

    def class_vectors(self) -> Tensor:
        """[C, D_teacher], the teacher's."""
        return self._class_vectors

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher] with the running statistics of batch norm."""
        was_training = self.module.training
        self.module.eval()
        try:
            return self.image_features(images)
        finally:
            self.module.train(was_training)

    def image_path(self) -> ImagePath:
        """The prompted image tower and the projector."""
        return ImagePath(
            self._backbone.model.visual, self.module.visual_prompts, self.module.projector
        )
