"""PromptKD: a prompted student learns a frozen teacher's outputs on unlabeled images.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, section 3.2 and equation 5. The settings
`tune`, `class_vectors` and `projector_depth` are its ablations (tables 5 and 12); `losses` replaces
equation 5 by other distillation losses, or adds them. Not from the paper are `tune: lora`, low-rank
changes of the image encoder (arXiv:2405.18541), `labeled_weight`, a loss on labeled images
(arXiv:2505.07675), and smaller image encoders: `depth` drops the last blocks, `merge_tokens` merges
tokens (ToMe, arXiv:2210.09461). The descriptions of the settings name the choices that the paper
leaves open.
"""

from __future__ import annotations

import contextlib
import copy
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import (
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.architecture import EncoderSizes, why_no_prompts
from kdedge.clip.backbone import Backbone, ImageBackbone, unit_length
from kdedge.clip.layers import BLOCKS, first_blocks, layers_above, with_layers
from kdedge.clip.low_rank import LowRankChanges, Projection, make_low_rank_changes
from kdedge.clip.prompts import (
    TextPrompts,
    make_text_prompts,
    make_visual_prompts,
    prompted_text_features,
    prompted_texts,
)
from kdedge.clip.text import TokenizedTexts
from kdedge.clip.token_merging import max_merge_tokens
from kdedge.clip.vision import encode_image
from kdedge.errors import DataError, RecipeError
from kdedge.loading.batch import Batch
from kdedge.methods.base import (
    BaseMethod,
    Classifier,
    EncoderName,
    ImageModules,
    MethodInputs,
    MethodSettings,
    Projector,
    StepOutput,
)
from kdedge.methods.losses import (
    DistillationLoss,
    LossSettings,
    Outputs,
    choose_losses,
    kl,
    load_loss,
    losses_model,
)
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import encode_images, is_splittable, labels_of

METHOD = Declaration(
    label="PromptKD",
    paper="arXiv:2403.02781",
    # No labels: only the teacher sees them, unless labeled_weight is set
    student_data_needs=DataNeeds(unlabeled_images=True, novel_class_names=True),
)


if TYPE_CHECKING:
    Losses = dict[str, LossSettings]
else:
    Losses = Annotated[losses_model(), WrapValidator(choose_losses), PlainSerializer(dict)]


class LoraSettings(MethodSettings):
    """W + (alpha / r) B A on chosen layers; defaults from CLIP-LoRA (arXiv:2405.18541)."""

    rank: int = Field(2, ge=1, le=4096, description="Rank r of each layer's change.")
    alpha: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="The change is multiplied by alpha / rank (arXiv:2106.09685); CLIP-LoRA's code"
        " divides by the root of the rank.",
    )
    projections: list[Projection] = Field(
        ["q", "k", "v"],
        min_length=1,
        description="Layers of a block that are changed: q, k, v and out of the attention; mlp for"
        " both layers of the MLP.",
    )
    blocks: list[Annotated[int, Field(ge=0, le=1000)]] | None = Field(
        None,
        min_length=1,
        description="Blocks of the image encoder that are changed, counted from 0; default: all.",
    )


Tune = Literal["prompts", "projector", "full", "lora", "prompts+lora"]


class Settings(MethodSettings):
    """Settings of PromptKD; defaults from the authors' base-to-novel configuration."""

    tune: Tune = Field(
        "prompts",
        description="What is trained on the image side, besides the projector (arXiv:2403.02781,"
        " table 5): prompts, the projector alone, full for the whole encoder (with an optim.lr far"
        " below the 0.005 of prompts), lora for low-rank changes, or prompts+lora. Image encoders"
        " other than CLIP's ViT take projector or full.",
    )
    lora: LoraSettings = Field(
        LoraSettings(), description="Low-rank changes, for tune: lora and prompts+lora."
    )
    n_ctx_vision: int = Field(
        4,
        ge=0,
        le=1000,
        description="Visual prompts in each prompted image layer, as in the PromptKD repository; 0"
        " for none.",
    )
    prompt_depth: int = Field(
        9,
        ge=0,
        le=1000,
        description="Image layers with visual prompts of their own, from the first"
        " (arXiv:2403.02781, section 4.1).",
    )
    merge_tokens: int = Field(
        0,
        ge=0,
        le=1000,
        description="Patch tokens that each block of CLIP's ViT but the last merges into similar"
        " ones, in training and on the device (ToMe, arXiv:2210.09461): up to 16 for ViT-B/16.",
    )
    depth: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Blocks of CLIP's ViT that are kept, from the first; default: all. The encoder"
        " then has to learn: use tune: full or lora.",
    )
    projector_depth: int = Field(
        2,
        ge=1,
        le=3,
        description="Linear layers of the projector, with batch norm and ReLU between them"
        " (arXiv:2403.02781, table 12).",
    )
    class_vectors: Literal["teacher", "student"] = Field(
        "teacher",
        description="Whose text features images are compared with: the teacher's stored ones, or"
        " those of the student's own text encoder with learned context and without a projector"
        " (arXiv:2403.02781, table 5, w/o shared text feature).",
    )
    n_ctx_text: int = Field(
        4,
        ge=1,
        le=1000,
        description="Context tokens of the text encoder, for class_vectors: student.",
    )
    prompt_depth_text: int = Field(
        9,
        ge=1,
        le=1000,
        description="Text layers with context of their own, from the first, for class_vectors:"
        " student.",
    )
    context_init: str = Field(
        "a photo of a",
        description="Words whose embeddings initialize the context, for class_vectors: student;"
        " N(0, 0.02²) if they have fewer than n_ctx_text tokens.",
    )
    labeled_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the cross-entropy of labeled images, of which each step then has"
        " optim.labeled_batch_size; 0: no labels are used.",
    )
    losses: Losses = Field(
        {"kl": kl.Settings()},
        description="Distillation losses by name, each with its settings, whose weighted values are"
        " added: {kl: {weight: 200}, feature: {}}; default: kl, PromptKD's.",
    )
    float32_losses: bool = Field(
        True,
        description="Compute projector and logits in float32, our choice; false: in the precision"
        " of the forward pass, as the authors' code does.",
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Settings:
        if self.tune == "projector" and self.class_vectors == "student":
            raise ValueError(
                "have tune: projector with class_vectors: student, which has no projector; use"
                " tune: prompts or full, or class_vectors: teacher"
            )
        if "lora" in self.model_fields_set and not self.has_lora:
            raise ValueError(
                f"have lora with tune: {self.tune}, which does not use it; use tune: lora or"
                " prompts+lora"
            )
        if self.depth is not None and self.has_prompts and self.prompt_depth > self.depth:
            raise ValueError(
                f"have depth: {self.depth} with prompt_depth: {self.prompt_depth}; set prompt_depth"
                f" to {self.depth} or less"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused_lora(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out `lora` if `tune` does not use it, since validation refuses it then."""
        values: dict[str, Any] = serialize(self)
        if not self.has_lora:
            values.pop("lora", None)
        return values

    @property
    def has_prompts(self) -> bool:
        """Whether visual prompts are trained."""
        return self.tune in ("prompts", "prompts+lora")

    @property
    def has_lora(self) -> bool:
        """Whether low-rank changes are trained."""
        return self.tune in ("lora", "prompts+lora")

    @property
    def classifier(self) -> Classifier:
        """Class vectors of the teacher, or of the student's own text encoder."""
        return "own_vectors" if self.class_vectors == "student" else "teacher_vectors"

    @property
    def needs_text_encoder(self) -> bool:
        """True if the student makes its class vectors; the teacher's are stored."""
        return self.class_vectors == "student"

    @property
    def learns_from_labels(self) -> bool:
        """True if labeled images have a weight in the loss."""
        return self.labeled_weight > 0

    @property
    def layer_counts(self) -> dict[str, tuple[EncoderName, ...]]:
        """Which encoder's layers each setting counts: prompts, and a shortened encoder."""
        used: dict[str, tuple[EncoderName, ...]] = {}
        if self.has_prompts:
            used["prompt_depth"] = ("image",)
        if self.class_vectors == "student":
            used["prompt_depth_text"] = ("text",)
        if self.depth is not None:
            used["depth"] = ("image",)
        return used

    def misfits(self, sizes: EncoderSizes) -> dict[str, str]:
        """Settings that need more blocks or tokens than the image encoder has, with a remedy."""
        n_blocks = self.depth or sizes.n_layers.get("image")
        if sizes.n_patches is None or n_blocks is None:
            return {}
        misfits = {}
        blocks = "1 block" if n_blocks == 1 else f"{n_blocks} blocks"
        if self.has_lora and max(self.lora.blocks or [0]) >= n_blocks:
            last = n_blocks - 1
            misfits["lora.blocks"] = f"the image encoder has the blocks 0 to {last}.\n  Remove it."
        most = max_merge_tokens(sizes.n_patches, n_blocks)
        if self.merge_tokens > most:
            misfits["merge_tokens"] = (
                f"the image encoder has {sizes.n_patches} patch tokens and {blocks}: a block merges"
                " at most half of its patch tokens, and the last block merges none.\n"
                f"  Set merge_tokens to {most} or less."
            )
        return misfits


class Student(nn.Module):
    """The parts of a student; a part that the settings leave out is None.

    Args:
        backbone: the frozen CLIP, or an image encoder alone.
        settings: decide which parts there are.
        inputs: the teacher, whose scale is used if the backbone has none, and the generator.
        teacher_dim: D_teacher.

    Attributes:
        visual_prompts: [depth, n_ctx_vision, D_vision], if `settings.has_prompts`.
        lora: low-rank changes of the frozen image encoder, if `settings.has_lora`.
        projector: to the teacher's dimension, under `class_vectors: teacher`.
        visual: the student's own copy of the image encoder, under `tune: full`.
        text_prompts: context of the text encoder, under `class_vectors: student`.
        losses: the losses by name; most have no parameters.
        scale: the teacher's `logit_scale.exp()`; None if the backbone has a scale.

    Raises:
        RecipeError: the settings need CLIP's ViT, or freeze an image encoder that was never trained
            with texts; or a loss compares features of different dimensions.
    """

    visual_prompts: nn.Parameter | None
    projector: Projector | None
    visual: nn.Module | None
    lora: LowRankChanges | None
    text_prompts: TextPrompts | None
    scale: Tensor | None

    def __init__(
        self, backbone: ImageBackbone, settings: Settings, inputs: MethodInputs, teacher_dim: int
    ) -> None:
        super().__init__()
        _check_encoder(backbone, settings)
        frozen = first_blocks(backbone.visual, settings.depth)
        # Drawn in this order: prompts, low-rank changes, projector, context
        generator = inputs.generator
        self.visual_prompts = self.lora = self.projector = self.text_prompts = self.visual = None
        if settings.has_prompts:
            self.visual_prompts = make_visual_prompts(
                backbone,
                n_ctx=settings.n_ctx_vision,
                prompt_depth=settings.prompt_depth,
                generator=generator,
            )
        if settings.has_lora:
            self.lora = make_low_rank_changes(
                frozen,
                rank=settings.lora.rank,
                alpha=settings.lora.alpha,
                projections=settings.lora.projections,
                blocks=settings.lora.blocks,
                generator=generator,
            )
        if settings.class_vectors == "teacher":
            self.projector = Projector(
                backbone.embed_dim, teacher_dim, generator, depth=settings.projector_depth
            )
        else:
            assert isinstance(backbone, Backbone)
            self.text_prompts = make_text_prompts(
                backbone,
                n_ctx=settings.n_ctx_text,
                prompt_depth=settings.prompt_depth_text,
                context_init=settings.context_init,
                generator=generator,
            )
        if settings.tune == "full":
            self.visual = copy.deepcopy(frozen).requires_grad_(True)
        self.losses = nn.ModuleDict(
            {name: load_loss(name).Loss(spec) for name, spec in settings.losses.items()}
        )
        # Without a teacher the student is loaded from a file, which overwrites the 1
        scale = 1.0 if inputs.teacher is None else inputs.teacher.scale
        has_scale = isinstance(backbone, Backbone)
        self.register_buffer("scale", None if has_scale else torch.tensor(scale))
        on_features = [name for name, loss in self.losses.items() if loss.needs_equal_dims]
        if on_features and self.projector is None and backbone.embed_dim != teacher_dim:
            raise RecipeError(
                f"loss {on_features[0]} compares the student's features ({backbone.embed_dim}"
                f" dimensions) with the teacher's ({teacher_dim}), but class_vectors: student has"
                " no projector.\n"
                "  Use a loss on logits, such as the default, or class_vectors: teacher."
            )


def _check_encoder(backbone: ImageBackbone, settings: Settings) -> None:
    if not backbone.is_trained_with_texts and settings.tune != "full":
        raise RecipeError(
            f"{backbone.name} was not trained with texts: with tune: {settings.tune} its features"
            " cannot be compared with class vectors.\n"
            "  Use tune: full, with an optim.lr far below 0.005, which is for prompts."
        )
    why = why_no_prompts(backbone.visual)
    needs_vit = settings.has_lora or settings.depth is not None or settings.merge_tokens > 0
    if why is not None and needs_vit:
        raise RecipeError(
            f"{backbone.name} takes neither low-rank changes nor depth nor merge_tokens: its image"
            f" encoder {why}.\n"
            "  Use tune: full without them, or CLIP's ViT, such as ViT-B-16."
        )


class _Features(NamedTuple):
    """The student's features of a batch, unit length.

    Attributes:
        unlabeled: [B, D], of the unlabeled images.
        labeled: [B_labeled, D]; None if the batch has no labeled images.
    """

    unlabeled: Tensor
    labeled: Tensor | None


class Method(BaseMethod):
    """PromptKD's student on a frozen backbone, which may have no text encoder.

    It learns from the teacher over all classes. Texts, "<context> NAME.", are only encoded under
    `class_vectors: student`. A student that is only loaded needs class vectors, not a teacher.
    """

    module: Student
    half_precision = r"\.context$|^projector\.linear"

    def __init__(self, backbone: ImageBackbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        self._teacher = inputs.teacher
        self._class_vectors = inputs.vectors()
        student = Student(backbone, settings, inputs, self._class_vectors.shape[1])
        self.module = student.to(backbone.device)
        if self._teacher is not None:  # read once, since each read waits for the GPU
            self._teacher_scale = self._teacher.scale
            self._student_scale = self.scale
        self._texts: TokenizedTexts | None = None
        if settings.needs_text_encoder:
            assert isinstance(backbone, Backbone)  # `find_backbone` has checked it
            n_ctx = settings.n_ctx_text
            init = settings.context_init
            names = inputs.class_names
            self._texts = prompted_texts(backbone, names, n_ctx=n_ctx, context_init=init)
        self._train_classes = torch.tensor(inputs.train_classes, device=backbone.device)
        self._frozen = first_blocks(backbone.visual, settings.depth)
        self.visual = self._encoder()
        self._merge_tokens = settings.merge_tokens

    def _encoder(self, *, merges_lora: bool = False) -> nn.Module:
        """The image encoder: the backbone's, the student's copy, or one with low-rank changes.

        With `merges_lora`, the changes are merged into layers of the backbone's types.
        """
        module = self.module
        if module.lora is None:
            return self._frozen if module.visual is None else module.visual
        layers: dict[str, nn.Module] = {
            name: layer.as_linear() if merges_lora else layer
            for name, layer in module.lora.layers().items()
        }
        return with_layers(self._frozen, layers)

    @property
    def scale(self) -> float:
        """The backbone's scale; if it has none, the teacher's, which the module keeps."""
        if isinstance(self._backbone, Backbone):
            return self._backbone.scale
        assert self.module.scale is not None
        return float(self.module.scale)

    @property
    def can_split_batches(self) -> bool:
        """False if the trained tensors include an image encoder with batch norm or dropout."""
        visual = self.module.visual
        return visual is None or is_splittable(visual)

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], unit length, with gradients; batch norm by mode.

        The result is [B, D_student] if there is no projector.
        """
        return self._project(self.image_features_raw(images))

    def image_features_raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_student], not normalized."""
        return encode_image(
            self.visual, images, self.module.visual_prompts, merge_tokens=self._merge_tokens
        )

    def _project(self, raw: Tensor) -> Tensor:
        """[B, D_student] -> [B, D_teacher], unit length, comparable with class vectors."""
        projector = self.module.projector
        # Batch norm over few images and L2 normalization need float32; a projector costs little
        with self._loss_precision(raw.device):
            return unit_length(raw if projector is None else projector(raw.float()))

    def _loss_precision(self, device: torch.device) -> AbstractContextManager[None]:
        """Context that sets the precision of projector and logits, by `float32_losses`."""
        if self._settings.float32_losses:
            return torch.autocast(device.type, enabled=False)
        return contextlib.nullcontext()

    def student_vectors(self) -> Tensor:
        """[C, D], unit length: the teacher's class vectors, or the student's with gradients."""
        prompts = self.module.text_prompts
        if self._texts is None or prompts is None:
            return self._class_vectors
        assert isinstance(self._backbone, Backbone)
        return prompted_text_features(
            self._backbone, self._texts, prompts.context, prompts.deep_context
        )

    def _features(self, batch: Batch) -> _Features:
        """The student's features of a batch.

        The projector's batch norm treats both as one batch.
        """
        raw = encode_images(batch, self.image_features_raw)
        if batch.labeled is None:
            return _Features(self._project(raw), None)
        labeled = encode_images(batch.labeled, self.image_features_raw)
        features = self._project(torch.cat([raw, labeled]))
        return _Features(features[: len(raw)], features[len(raw) :])

    def outputs(self, batch: Batch, student_features: Tensor) -> Outputs:
        """The outputs of student and teacher for a batch's unlabeled images.

        The teacher does not run if the batch has its features.
        """
        teacher_features = batch.teacher_features
        teacher = self._teacher
        assert teacher is not None  # a student that is trained has a teacher
        if teacher_features is None:
            with torch.no_grad():
                prepared = self._backbone.preprocess
                teacher_features = encode_images(
                    batch, lambda images: teacher.teacher_features(images, prepared)
                )
        given_logits = None
        if self._class_vectors.shape[1] == 0:  # the teacher has no class vectors
            given_logits = teacher.teacher_logits(teacher_features, batch.keys)
        return Outputs(
            student_features=student_features,
            teacher_features=teacher_features,
            student_vectors=self.student_vectors(),
            teacher_vectors=self._class_vectors,
            student_scale=self._student_scale,
            teacher_scale=self._teacher_scale,
            given_logits=given_logits,
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """The weighted sum of the losses, and of the loss on labeled images if there are any."""
        projector = self.module.projector
        if batch.n_images < 2 and projector is not None and projector.batch_norms:
            raise DataError(
                "promptkd needs at least 2 unlabeled images in a batch (batch norm has no"
                " variance over one).\n"
                "  Add images, or raise optim.batch_size."
            )
        features = self._features(batch)
        outputs = self.outputs(batch, features.unlabeled)
        n_classes = len(self._class_vectors)
        scalars: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        with self._loss_precision(batch.images.device):
            for name, settings in self._settings.losses.items():
                loss = cast(DistillationLoss, self.module.losses[name])
                value = loss(outputs)
                terms.append(settings.weight_for(n_classes) * value)
                logged = value.detach()
                scalars |= loss.scalars(logged, n_classes) or {f"{name}_loss": logged}
            if batch.labeled is not None and features.labeled is not None:
                vectors = outputs.student_vectors[self._train_classes]
                logits = self._student_scale * features.labeled @ vectors.T
                labels = labels_of(batch.labeled)
                value = F.cross_entropy(logits, labels)
                terms.append(self._settings.labeled_weight * value)
                accuracy = 100 * (logits.detach().argmax(dim=-1) == labels).float().mean()
                scalars |= {"label_loss": value.detach(), "labeled_accuracy_percent": accuracy}
            agrees = outputs.student_logits.detach().argmax(-1) == outputs.teacher_logits.argmax(-1)
        scalars["teacher_agreement_percent"] = 100 * agrees.float().mean()
        return StepOutput(torch.stack(terms).sum(), scalars)

    def layers_above(self) -> dict[str, int]:
        """Trained parameter -> layers after it; empty if no layer of the encoder is trained."""
        above = layers_above(self._frozen)
        if self.module.visual is not None:
            return {f"visual.{name}": n_layers for name, n_layers in above.items()}
        if self.module.lora is None:
            return {}
        of_lora = {}
        for name in self.module.lora.layers():
            n_layers = above[f"{name}.weight"]
            in_lora = f"lora{name.removeprefix(BLOCKS)}"
            of_lora[f"{in_lora}.a"] = n_layers
            of_lora[f"{in_lora}.b"] = n_layers
        return of_lora

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """[C, D]: the teacher's class vectors, or the student's own."""
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

    def image_modules(self) -> ImageModules:
        """The image encoder, low-rank changes merged; prompts and projector if there are any."""
        return ImageModules(
            self._encoder(merges_lora=True),
            self.module.visual_prompts,
            self.module.projector,
            merge_tokens=self._merge_tokens,
        )
