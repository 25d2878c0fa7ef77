"""PromptKD: a prompted student learns a frozen teacher's answers on unlabeled images.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, section 3.2 and equation 5; the settings
`tune`, `class_vectors` and `projector_depth` are its ablations (tables 5 and 12), `loss` replaces
equation 5 by another way to distill.
Differs from the authors' code: class vectors are computed once, after the teacher's weights are
loaded, and not in every step; the student's text tower is never run where the class vectors are the
teacher's; weights stay in float32 under autocast. That code has no ablations; what the paper does
not say of them is in the settings' descriptions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.prompts import prompted_text_features, prompted_texts
from kdedge.clip.text import TokenizedTexts
from kdedge.clip.vision import encode_image
from kdedge.data.batch import Batch
from kdedge.errors import DataError, RecipeError, ShapeError
from kdedge.methods._encode import encode_images, is_splittable
from kdedge.methods._projector import Projector
from kdedge.methods._student import Student, make_student
from kdedge.methods.losses import Answers, LossName, load_loss
from kdedge.methods.losses.kl import WEIGHT as DEFAULT_KD_WEIGHT
from kdedge.methods.losses.kl import distillation_loss
from kdedge.methods.protocol import ImagePath, MethodSettings, StepOutput, Teacher
from kdedge.methods.sees import Sees

__all__ = ["ImagePath", "Method", "Projector", "Settings", "Student", "distillation_loss"]

SEES = Sees(labels=False, unlabeled_images=True, novel_class_names=True)
"""Labels reach it through its teacher alone."""


class Settings(MethodSettings):
    """Settings of PromptKD; defaults from the authors' base-to-novel configuration."""

    tune: Literal["prompts", "projector", "full"] = Field(
        "prompts",
        description="What of the image side is trained (arXiv:2403.02781, table 5). prompts: visual"
        " prompts and projector. projector: the projector alone. full: the whole image tower and"
        " the projector, without prompts; the paper gives no learning rate for it, and optim.lr has"
        " to be far below the 0.005 that prompts take. Image towers other than CLIP's ViT take no"
        " prompts: projector, full, or n_ctx_vision: 0.",
    )
    n_ctx_vision: int = Field(
        4,
        ge=0,
        le=1000,
        description="Visual prompts in each prompted image layer; 0 trains the projector alone. Of"
        " tune: prompts only, as prompt_depth.",
    )
    prompt_depth: int = Field(
        9, ge=0, description="Image layers that get prompts of their own, from the first."
    )
    projector_depth: int = Field(
        2,
        ge=1,
        le=3,
        description="Linear layers of the projector, with batch norm and ReLU between them"
        " (arXiv:2403.02781, table 12). 3: one more hidden layer of the same width, which is ours"
        " to say. Without effect under class_vectors: student, which has no projector.",
    )
    class_vectors: Literal["teacher", "student"] = Field(
        "teacher",
        description="Whose text features the student answers with. teacher: the stored ones."
        ' student: "w/o shared text feature" of arXiv:2403.02781, table 5: its own text tower with'
        " learned context makes them, and there is no projector.",
    )
    n_ctx_text: int = Field(
        4, ge=1, description="Context tokens of class_vectors: student; the teacher's default."
    )
    prompt_depth_text: int = Field(
        9,
        ge=1,
        description="Text layers that get context of their own, of class_vectors: student; the"
        " teacher's default.",
    )
    context_init: str = Field(
        "a photo of a",
        description="Words whose embeddings that context starts from; from N(0, 0.02²) where they"
        " are fewer than n_ctx_text tokens.",
    )
    loss: LossName = Field(
        "kl",
        description="What the student learns by. kl: PromptKD's divergence of class probabilities."
        " feature, feature_l1: squared or absolute difference of image features. relational,"
        " interactive: CLIP-KD's CRD and ICL (arXiv:2307.12732), the latter with the class that the"
        " teacher names. affinity: TinyCLIP's (arXiv:2309.12314). relational, interactive and"
        " affinity compare the images of a batch too: give them a large one.",
    )
    loss_weight: float | None = Field(
        None,
        gt=0,
        description="Multiplies a loss other than kl; its authors' where left out: 2000 of feature,"
        " 1 of relational, interactive and affinity; 100 of feature_l1 is ours.",
    )
    more_losses: dict[LossName, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Losses that are added, with their weights: {feature: 2000, interactive: 1}."
        " That of kl is a kd_weight.",
    )
    temperature: float = Field(
        1.0, gt=0, le=1000, description="Divides both logits before the divergence of kl."
    )
    kd_weight: float | None = Field(
        None,
        gt=0,
        description="Multiplies the divergence of loss: kl averaged over images and classes: one"
        " image weighs kd_weight / C."
        f" {DEFAULT_KD_WEIGHT:g} where neither this nor kd_weight_per_image is given.",
    )
    kd_weight_per_image: float | None = Field(
        None,
        gt=0,
        description="Multiplies the divergence of loss: kl averaged over images only, so that it"
        " does not depend on how many classes there are: kd_weight / C.",
    )
    max_kd_weight_per_image: float | None = Field(
        None,
        gt=0,
        description="The most that one image weighs, which is ours: where classes are few,"
        " kd_weight / C is large, and results differ more between seeds.",
    )
    float32_losses: bool = Field(
        True,
        description="Projector, logits and losses in float32 also where the forward pass is in half"
        " precision, which is ours. false: in its format, as the authors' code has them.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.kd_weight is not None and self.kd_weight_per_image is not None:
            raise ValueError("give kd_weight or kd_weight_per_image, not both")
        if self.tune == "projector" and self.class_vectors == "student":
            raise ValueError(
                "have tune: projector with class_vectors: student, which has no projector; use"
                " tune: prompts or full, or class_vectors: teacher"
            )
        if self.loss_weight is not None and self.loss == "kl":
            raise ValueError("have loss_weight with loss: kl, whose weight is kd_weight")
        if self.loss in self.more_losses:
            raise ValueError(f"have {self.loss} as loss and among more_losses; name it once")
        return self

    @property
    def has_own_class_vectors(self) -> bool:
        """See `MethodSettings.has_own_class_vectors`."""
        return self.class_vectors == "student"

    @property
    def needs_texts(self) -> bool:
        """See `MethodSettings.needs_texts`."""
        return self.has_own_class_vectors

    def weight(self, n_classes: int) -> float:
        """`kd_weight`, whichever way it was given; 1 / n_classes of it is one image's weight."""
        if self.kd_weight_per_image is not None:
            weight = self.kd_weight_per_image * n_classes
        else:
            weight = DEFAULT_KD_WEIGHT if self.kd_weight is None else self.kd_weight
        most = self.max_kd_weight_per_image
        return weight if most is None else min(weight, most * n_classes)

    def loss_weights(self, n_classes: int) -> dict[LossName, float]:
        """Each loss that is used and its weight, the first is `loss`."""
        if self.loss == "kl":
            own = self.weight(n_classes)
        else:
            own = load_loss(self.loss).WEIGHT if self.loss_weight is None else self.loss_weight
        return {self.loss: own, **self.more_losses}


class Method:
    """PromptKD's student on a frozen backbone, which may be an image tower alone."""

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        backbone: AnyBackbone,
        module: Student,
        settings: Settings,
        *,
        teacher: Teacher | None,
        class_vectors: Tensor,
        texts: TokenizedTexts | None = None,
    ) -> None:
        self.module = module
        self._own_scale = backbone.scale if isinstance(backbone, Backbone) else None
        self._backbone = backbone
        self._settings = settings
        self._teacher = teacher
        self._class_vectors = class_vectors
        self._texts = texts

    @classmethod
    def build(
        cls,
        backbone: AnyBackbone,
        class_names: Sequence[str],
        settings: Settings,
        *,
        template: str,
        train_classes: Sequence[int],
        teacher: Teacher | None,
        generator: torch.Generator,
        class_vectors: Tensor | None = None,
    ) -> Method:
        """See `methods.protocol.Method.build`; learns over all classes.

        Texts are encoded under `class_vectors: student` alone: "<context> NAME.". A student that is
        not trained needs no teacher but its class vectors, [C, D_teacher].
        """
        if class_vectors is None:
            if teacher is None:
                raise RecipeError("promptkd learns from a teacher, and the recipe names none.")
            class_vectors = teacher.class_vectors()
        if len(class_vectors) != len(class_names):
            raise ShapeError(
                f"The teacher has {len(class_vectors)} class vectors, the class list"
                f" {len(class_names)} names."
            )
        module = make_student(
            backbone,
            settings,
            teacher_dim=class_vectors.shape[1],
            scale=1.0 if teacher is None else teacher.scale,  # of a run: loaded over it
            generator=generator,
        )
        module.to(backbone.device)
        texts = None
        if settings.has_own_class_vectors:
            assert isinstance(backbone, Backbone)  # make_student has seen to it
            texts = prompted_texts(
                backbone,
                class_names,
                n_ctx=settings.n_ctx_text,
                context_init=settings.context_init,
            )
        return cls(
            backbone, module, settings, teacher=teacher, class_vectors=class_vectors, texts=texts
        )

    @property
    def scale(self) -> float:
        """The backbone's, or the teacher's where the backbone has none: kept with the module."""
        if self._own_scale is not None:
            return self._own_scale
        assert self.module.scale is not None
        return float(self.module.scale)

    @property
    def visual(self) -> nn.Module:
        """The image tower: the student's own where it is trained, else the frozen backbone's."""
        own = self.module.visual
        return self._backbone.visual if own is None else own

    @property
    def can_split_batches(self) -> bool:
        """Not where a tower with batch norm or dropout is trained itself."""
        own = self.module.visual
        return own is None or is_splittable(own)

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], unit length, with gradients; batch norm by mode.

        D_student where there is no projector.
        """
        return self._project(self._tower_features(images))

    def _tower_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_student], not normalized."""
        return encode_image(self.visual, images, self.module.visual_prompts)

    def _project(self, raw: Tensor) -> Tensor:
        """The tower's features to those that the class vectors are compared with."""
        projector = self.module.projector
        # Batch norm over a few images and the last features before unit length: in float32 (a
        # projector costs nothing).
        with self._loss_precision(raw.device):
            return unit_length(raw if projector is None else projector(raw.float()))

    def _loss_precision(self, device: torch.device) -> AbstractContextManager[None]:
        """Context of what `float32_losses` is about."""
        if self._settings.float32_losses:
            return torch.autocast(device.type, enabled=False)
        return contextlib.nullcontext()

    def student_vectors(self) -> Tensor:
        """[C, D], unit length: the teacher's class vectors, or the student's own with gradients."""
        if self._texts is None or self.module.text_prompts is None:
            return self._class_vectors
        assert isinstance(self._backbone, Backbone)
        return prompted_text_features(self._backbone, self._texts, self.module.text_prompts)

    def answers(self, batch: Batch) -> Answers:
        """What teacher and student say about a batch's images, the student with gradients.

        A teacher whose features came with the batch is not run.
        """
        teacher_features = batch.teacher_features
        teacher = self._teacher
        assert teacher is not None  # or it is not trained
        if teacher_features is None:
            with torch.no_grad():
                teacher_features = encode_images(batch, teacher.forward_features)
        return Answers(
            student_features=self._project(encode_images(batch, self._tower_features)),
            teacher_features=teacher_features,
            student_vectors=self.student_vectors(),
            teacher_vectors=self._class_vectors,
            student_scale=self.scale,
            teacher_scale=teacher.scale,
            temperature=self._settings.temperature,
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """The weighted losses, `kd_weight` times equation 5 by default; no label is read."""
        projector = self.module.projector
        if batch.n_images < 2 and projector is not None and projector.batch_norms:
            raise DataError(
                "promptkd needs at least 2 unlabeled images in a batch (batch norm has no variance"
                " over one).\n"
                "  Add images, or raise batch_size."
            )
        answers = self.answers(batch)
        n_classes = len(self._class_vectors)
        scalars: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        with self._loss_precision(batch.images.device):
            for name, weight in self._settings.loss_weights(n_classes).items():
                term = self.module.losses[name](answers)
                terms.append(weight * term)
                if name == "kl":
                    scalars["divergence_per_image"] = term.detach() * n_classes
                else:
                    scalars[f"{name}_loss"] = term.detach()
            named = answers.student_logits.argmax(-1) == answers.teacher_logits.argmax(-1)
        scalars["teacher_agreement_percent"] = 100 * named.float().mean()
        return StepOutput(torch.stack(terms).sum(), scalars)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The module's; batch norm's statistics are buffers of it."""
        return dict(self.module.named_parameters())

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """Nothing is averaged."""
        return None

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """[C, D], the teacher's, or the student's own under the context as it is now."""
        return self.student_vectors()

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D] with the running statistics of batch norm."""
        was_training = self.module.training
        self.module.eval()
        try:
            return self.image_features(images)
        finally:
            self.module.train(was_training)

    def image_path(self) -> ImagePath:
        """The image tower with its prompts, and the projector, as far as the student has them."""
        return ImagePath(self.visual, self.module.visual_prompts, self.module.projector)
