"""PromptKD: a prompted student learns a frozen teacher's outputs on unlabeled images.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, section 3.2 and equation 5. The settings
`tune`, `class_vectors` and `projector_depth` are its ablations (tables 5 and 12); `losses` replaces
equation 5 by other distillation losses, or adds them. Not from the paper are `tune: lora`, low-rank
changes of the image encoder (arXiv:2405.18541), `labeled_weight`, a loss on labeled images
(arXiv:2505.07675), and smaller image encoders: `depth` drops the last blocks, `merge_tokens` merges
tokens (ToMe, arXiv:2210.09461).
The settings' descriptions say what the paper leaves open.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.prompts import prompted_text_features, prompted_texts
from kdedge.clip.reduction import first_blocks
from kdedge.clip.text import TokenizedTexts
from kdedge.clip.vision import encode_image
from kdedge.data.batch import Batch
from kdedge.errors import DataError, RecipeError, ShapeError
from kdedge.methods._promptkd_settings import Settings
from kdedge.methods._student import Student
from kdedge.methods.losses import DistillationLoss, Outputs
from kdedge.methods.protocol import BaseMethod, ImagePath, MethodInputs, Projector, StepOutput
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import encode_images, is_splittable, labels_of

__all__ = ["METHOD", "ImagePath", "Method", "Projector", "Settings", "Student"]

METHOD = Declaration(
    label="PromptKD",
    paper="arXiv:2403.02781",
    # No labels: its teacher sees them. With labeled_weight it also sees them itself
    data_needs=DataNeeds(unlabeled_images=True, novel_class_names=True),
    needs_teacher=True,
)


class Method(BaseMethod):
    """PromptKD's student on a frozen backbone, which may have no text encoder.

    It learns from the teacher over all classes. Texts, "<context> NAME.", are only encoded under
    `class_vectors: student`. A student that is not trained needs no teacher but its class vectors.
    """

    module: Student

    def __init__(self, backbone: AnyBackbone, settings: Settings, inputs: MethodInputs) -> None:
        if not inputs.is_student:
            raise RecipeError(
                "promptkd learns from a teacher, but the recipe has none.\n  Add a teacher section."
            )
        super().__init__(backbone, settings, inputs)
        self._teacher, self._class_vectors = inputs.teacher, inputs.vectors()
        if len(self._class_vectors) != len(inputs.class_names):
            raise ShapeError(
                f"The teacher has {len(self._class_vectors)} class vectors, but the class list has"
                f" {len(inputs.class_names)} names.\n"
                "  Use the class list that the teacher was trained with."
            )
        self.module = Student(
            backbone,
            settings,
            class_vectors=self._class_vectors,
            # A finished run's file has it
            scale=1.0 if self._teacher is None else self._teacher.scale,
            generator=inputs.generator,
        ).to(backbone.device)
        if self._teacher is not None:  # read once, not in each step: a GPU is waited for
            self._teacher_scale, self._student_scale = self._teacher.scale, self.scale
        self._texts: TokenizedTexts | None = None
        if settings.needs_texts:
            assert isinstance(backbone, Backbone)  # the student has checked it
            n_ctx, init = settings.n_ctx_text, settings.context_init
            names = inputs.class_names
            self._texts = prompted_texts(backbone, names, n_ctx=n_ctx, context_init=init)
        self._train_classes = torch.tensor(inputs.train_classes, device=backbone.device)
        self._frozen = first_blocks(backbone.visual, settings.depth)
        self.visual = self.module.encoder(self._frozen)
        self._merge_tokens = settings.merge_tokens

    @property
    def scale(self) -> float:
        """The backbone's; the teacher's, kept with the module, if the backbone has none."""
        if isinstance(self._backbone, Backbone):
            return self._backbone.scale
        assert self.module.scale is not None
        return float(self.module.scale)

    @property
    def can_split_batches(self) -> bool:
        """False if an image encoder with batch norm or dropout is trained itself."""
        visual = self.module.visual
        return visual is None or is_splittable(visual)

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], unit length, with gradients; batch norm by mode.

        D_student if there is no projector.
        """
        return self._project(self.image_features_raw(images))

    def image_features_raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_student], not normalized."""
        return encode_image(
            self.visual,
            images,
            self.module.visual_prompts,
            merge_tokens=self._merge_tokens,
        )

    def _project(self, raw: Tensor) -> Tensor:
        """[B, D_student] -> [B, D_teacher], unit length, comparable with class vectors."""
        projector = self.module.projector
        # Batch norm over a few images, and the last features before unit length: in float32 (a
        # projector costs nothing).
        with self._loss_precision(raw.device):
            return unit_length(raw if projector is None else projector(raw.float()))

    def _loss_precision(self, device: torch.device) -> AbstractContextManager[None]:
        """Context manager: precision of projector and logits, by `float32_losses`."""
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
        """What student and teacher compute for a batch's images, the student with gradients."""
        return self._outputs(batch, self._features(batch)[0])

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The student's features of a batch's unlabeled images, and of its labeled images if any.

        Both are one batch for the projector's batch norm.
        """
        raw = encode_images(batch, self.image_features_raw)
        if batch.labeled is None:
            return self._project(raw), None
        labeled = encode_images(batch.labeled, self.image_features_raw)
        features = self._project(torch.cat([raw, labeled]))
        return features[: len(raw)], features[len(raw) :]

    def _outputs(self, batch: Batch, student_features: Tensor) -> Outputs:
        """The teacher does not run if its features came with the batch."""
        teacher_features = batch.teacher_features
        teacher = self._teacher
        assert teacher is not None  # or it is not trained
        if teacher_features is None:
            with torch.no_grad():
                teacher_features = encode_images(batch, teacher.forward_features)
        given = None
        if self._class_vectors.shape[1] == 0:  # the teacher has none
            given = teacher.teacher_logits(teacher_features, batch.keys)
        return Outputs(
            student_features=student_features,
            teacher_features=teacher_features,
            student_vectors=self.student_vectors(),
            teacher_vectors=self._class_vectors,
            student_scale=self._student_scale,
            teacher_scale=self._teacher_scale,
            given_logits=given,
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """The sum of the weighted losses, with the loss on labeled images if there are any."""
        projector = self.module.projector
        if batch.n_images < 2 and projector is not None and projector.batch_norms:
            raise DataError(
                "promptkd needs at least 2 unlabeled images in a batch (batch norm has no"
                " variance over one).\n"
                "  Add images, or raise optim.batch_size."
            )
        features, labeled_features = self._features(batch)
        outputs = self._outputs(batch, features)
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
            if batch.labeled is not None and labeled_features is not None:
                vectors = outputs.student_vectors[self._train_classes]
                logits = self._student_scale * labeled_features @ vectors.T
                labels = labels_of(batch.labeled)
                value = F.cross_entropy(logits, labels)
                terms.append(self._settings.labeled_weight * value)
                accuracy = 100 * (logits.detach().argmax(dim=-1) == labels).float().mean()
                scalars |= {"label_loss": value.detach(), "labeled_accuracy_percent": accuracy}
            agrees = outputs.student_logits.detach().argmax(-1) == outputs.teacher_logits.argmax(-1)
        scalars["teacher_agreement_percent"] = 100 * agrees.float().mean()
        return StepOutput(torch.stack(terms).sum(), scalars)

    def layers_above(self) -> dict[str, int]:
        """See `BaseMethod.layers_above`."""
        return self.module.layers_above(self._frozen)

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """[C, D]: the teacher's, or the student's own."""
        return self.student_vectors()

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D] with the running statistics of batch norm."""
        if not self.module.training:
            return self.image_features(images)
        self.module.eval()
        try:
            return self.image_features(images)
        finally:
            self.module.train()

    def image_path(self) -> ImagePath:
        """The image encoder, low-rank changes merged; prompts and projector if there are any."""
        return ImagePath(
            self.module.deployed_encoder(self._frozen),
            self.module.visual_prompts,
            self.module.projector,
            merge_tokens=self._merge_tokens,
        )
