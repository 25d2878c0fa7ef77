"""PromptKD: a prompted student learns a frozen teacher's outputs on unlabeled images.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, section 3.2 and equation 5. The settings
`tune`, `class_vectors` and `projector_depth` are its ablations (tables 5 and 12); `losses` replaces
equation 5 by other distillation losses, or adds them.
Differs from the authors' code: class vectors are computed once, after the teacher's weights are
loaded, and not in every step; the student's text encoder does not run if the class vectors are the
teacher's; weights stay in float32 under autocast. That code has no ablations; the settings'
descriptions say what the paper leaves open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, cast

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
from kdedge.methods.losses import (
    DEFAULT,
    ChosenLosses,
    DistillationLoss,
    Outputs,
    chosen_losses_model,
    load_loss,
)
from kdedge.methods.protocol import (
    CombinesTeachers,
    Encoder,
    ImagePath,
    MethodSettings,
    SettingsNotes,
    StepOutput,
    Teacher,
)
from kdedge.methods.registry import Declaration, Sees

__all__ = ["METHOD", "ImagePath", "Method", "Projector", "Settings", "Student"]

if TYPE_CHECKING:
    Losses = ChosenLosses
else:
    Losses = chosen_losses_model()

METHOD = Declaration(
    label="PromptKD",
    paper="arXiv:2403.02781",
    sees=Sees(unlabeled_images=True, novel_class_names=True),  # its teacher sees labels
    needs_teacher=True,
)


class Settings(MethodSettings):
    """Settings of PromptKD; defaults from the authors' base-to-novel configuration."""

    tune: Literal["prompts", "projector", "full"] = Field(
        "prompts",
        description="What is trained on the image side (arXiv:2403.02781, table 5). prompts: visual"
        " prompts and projector. projector: the projector only. full: the whole image encoder and"
        " the projector, without prompts. The paper gives no learning rate for full; optim.lr has"
        " to be far below the 0.005 of prompts. Image encoders other than CLIP's ViT take no"
        " prompts: use projector, full, or n_ctx_vision: 0.",
    )
    n_ctx_vision: int = Field(
        4,
        ge=0,
        le=1000,
        description="Number of visual prompts in each prompted image layer, for tune: prompts; 0"
        " trains the projector only. The default 4 is the PromptKD repository's.",
    )
    prompt_depth: int = Field(
        9,
        ge=0,
        description="Number of image layers with visual prompts of their own, from the first, for"
        " tune: prompts. The default 9 is that of arXiv:2403.02781, section 4.1.",
    )
    projector_depth: int = Field(
        2,
        ge=1,
        le=3,
        description="Number of linear layers of the projector, with batch norm and ReLU between"
        " them (arXiv:2403.02781, table 12). 3: one more hidden layer of the same"
        " width; the paper does not specify the width. No effect with class_vectors:"
        " student, which has no projector.",
    )
    class_vectors: Literal["teacher", "student"] = Field(
        "teacher",
        description="Whose text features the student compares images with. teacher: the stored"
        ' ones. student: "w/o shared text feature" of arXiv:2403.02781, table 5: its own text'
        " encoder computes them with learned context, and there is no projector.",
    )
    n_ctx_text: int = Field(
        4,
        ge=1,
        description="Number of context tokens of the student's text encoder, for class_vectors:"
        " student. The default 4 is the teacher's.",
    )
    prompt_depth_text: int = Field(
        9,
        ge=1,
        description="Number of text layers with context of their own, from the first, for"
        " class_vectors: student. The default 9 is the teacher's.",
    )
    context_init: str = Field(
        "a photo of a",
        description="Words whose embeddings initialize the context, for class_vectors: student;"
        " N(0, 0.02²) if they have fewer than n_ctx_text tokens.",
    )
    losses: Losses = Field(
        Losses.model_validate({DEFAULT: {}}),
        description="Distillation losses by name, each with its settings; their weighted values are"
        " added. {kl: {weight: 200}, feature: {}} adds feature to kl. Default: kl, PromptKD's"
        " divergence of class probabilities.",
    )
    float32_losses: bool = Field(
        True,
        description="Compute projector, logits and losses in float32 even if the forward pass is"
        " in half precision; this default is ours. false: use the precision of the"
        " forward pass, as in the authors' code.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.tune == "projector" and self.class_vectors == "student":
            raise ValueError(
                "have tune: projector with class_vectors: student, which has no projector; use"
                " tune: prompts or full, or class_vectors: teacher"
            )
        return self

    @property
    def has_own_class_vectors(self) -> bool:
        """See `MethodSettings.has_own_class_vectors`."""
        return self.class_vectors == "student"

    @property
    def needs_texts(self) -> bool:
        """See `MethodSettings.needs_texts`."""
        return self.has_own_class_vectors

    @property
    def reads_targets(self) -> bool:
        """See `MethodSettings.reads_targets`."""
        return any(load_loss(name).Loss.reads_targets for name, _ in self.losses.items())

    @property
    def prompt_depths(self) -> dict[str, tuple[Encoder, ...]]:
        """See `MethodSettings.prompt_depths`."""
        image: dict[str, tuple[Encoder, ...]] = {"prompt_depth": ("image",)}
        text: dict[str, tuple[Encoder, ...]] = {"prompt_depth_text": ("text",)}
        return {
            **(image if self.tune == "prompts" else {}),
            **(text if self.class_vectors == "student" else {}),
        }

    def notes(self, n_classes: int) -> SettingsNotes:
        """See `MethodSettings.notes`; the losses' notes together."""
        notes = [loss.notes(n_classes) for _, loss in self.losses.items()]
        return SettingsNotes(
            {key: value for one in notes for key, value in one.record.items()},
            tuple(message for one in notes for message in one.messages),
        )


class Method:
    """PromptKD's student on a frozen backbone, which may have no text encoder."""

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

        Texts, "<context> NAME.", are only encoded under `class_vectors: student`. A student that is
        not trained needs no teacher but its class vectors, [C, D_teacher].
        """
        if class_vectors is None:
            if teacher is None:
                raise RecipeError(
                    "promptkd learns from a teacher, but the recipe has none.\n"
                    "  Add a teacher section."
                )
            class_vectors = teacher.class_vectors()
        if len(class_vectors) != len(class_names):
            raise ShapeError(
                f"The teacher has {len(class_vectors)} class vectors, but the class list has"
                f" {len(class_names)} names.\n"
                "  Use the class list that the teacher was trained with."
            )
        module = make_student(
            backbone,
            settings,
            teacher_dim=class_vectors.shape[1],
            scale=1.0
            if teacher is None
            else teacher.scale,  # without a teacher, the run's file has it
            generator=generator,
        )
        module.to(backbone.device)
        texts = None
        if settings.has_own_class_vectors:
            assert isinstance(backbone, Backbone)  # make_student has checked it
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
        """The backbone's; the teacher's, kept with the module, if the backbone has none."""
        if self._own_scale is not None:
            return self._own_scale
        assert self.module.scale is not None
        return float(self.module.scale)

    @property
    def visual(self) -> nn.Module:
        """The image encoder: the student's own if it is trained, else the frozen backbone's."""
        own = self.module.visual
        return self._backbone.visual if own is None else own

    @property
    def can_split_batches(self) -> bool:
        """False if an image encoder with batch norm or dropout is trained itself."""
        own = self.module.visual
        return own is None or is_splittable(own)

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], unit length, with gradients; batch norm by mode.

        D_student if there is no projector.
        """
        return self._project(self.image_features_raw(images))

    def image_features_raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_student], not normalized."""
        return encode_image(self.visual, images, self.module.visual_prompts)

    def _project(self, raw: Tensor) -> Tensor:
        """[B, D_student] -> [B, D_teacher], unit length, comparable with class vectors."""
        projector = self.module.projector
        # Batch norm over a few images, and the last features before unit length: in float32 (a
        # projector costs nothing).
        with self._loss_precision(raw.device):
            return unit_length(raw if projector is None else projector(raw.float()))

    def _loss_precision(self, device: torch.device) -> AbstractContextManager[None]:
        """Context manager: precision of projector, logits and losses, by `float32_losses`."""
        if self._settings.float32_losses:
            return torch.autocast(device.type, enabled=False)
        return contextlib.nullcontext()

    def student_vectors(self) -> Tensor:
        """[C, D], unit length: the teacher's class vectors, or the student's own with gradients."""
        if self._texts is None or self.module.text_prompts is None:
            return self._class_vectors
        assert isinstance(self._backbone, Backbone)
        return prompted_text_features(self._backbone, self._texts, self.module.text_prompts)

    def outputs(self, batch: Batch) -> Outputs:
        """What student and teacher compute for a batch's images, the student with gradients.

        The teacher does not run if its features came with the batch.
        """
        teacher_features = batch.teacher_features
        teacher = self._teacher
        assert teacher is not None  # or it is not trained
        if teacher_features is None:
            with torch.no_grad():
                teacher_features = encode_images(batch, teacher.forward_features)
        combined = None
        if isinstance(teacher, CombinesTeachers):
            teacher_features, combined = teacher.combine(teacher_features, batch.keys)
        return Outputs(
            student_features=self._project(encode_images(batch, self.image_features_raw)),
            teacher_features=teacher_features,
            student_vectors=self.student_vectors(),
            teacher_vectors=self._class_vectors,
            student_scale=self.scale,
            teacher_scale=teacher.scale,
            combined_logits=combined,
            targets=batch.targets,
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """The sum of the weighted losses; no label is read."""
        projector = self.module.projector
        if batch.n_images < 2 and projector is not None and projector.batch_norms:
            raise DataError(
                "promptkd needs at least 2 unlabeled images in a batch (batch norm has no"
                " variance over one).\n"
                "  Add images, or raise optim.batch_size."
            )
        outputs = self.outputs(batch)
        n_classes = len(self._class_vectors)
        scalars: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        with self._loss_precision(batch.images.device):
            for name, weight in self._settings.losses.weights(n_classes).items():
                loss = cast(DistillationLoss, self.module.losses[name])
                value = loss(outputs)
                terms.append(weight * value)
                logged = value.detach()
                scalars |= loss.scalars(logged, n_classes) or {f"{name}_loss": logged}
            agrees = outputs.student_logits.argmax(-1) == outputs.teacher_logits.argmax(-1)
        scalars["teacher_agreement_percent"] = 100 * agrees.float().mean()
        return StepOutput(torch.stack(terms).sum(), scalars)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The module's; batch norm's statistics are buffers of it."""
        return dict(self.module.named_parameters())

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """None: nothing is averaged."""
        return None

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """[C, D], the teacher's, or the student's own under the current context."""
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
        """The image encoder, and prompts and projector if the student has them."""
        return ImagePath(self.visual, self.module.visual_prompts, self.module.projector)
