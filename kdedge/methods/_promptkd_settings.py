"""Settings of PromptKD: the paper's, its ablations, and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from kdedge.clip.architecture import EncoderSizes
from kdedge.clip.low_rank import Projection
from kdedge.clip.reduction import why_not_merged
from kdedge.methods.losses import DEFAULT, ChosenLosses, chosen_losses_model
from kdedge.methods.protocol import Encoder, MethodSettings

if TYPE_CHECKING:
    Losses = ChosenLosses
else:
    Losses = chosen_losses_model()


class LoraSettings(MethodSettings):
    """W + (alpha / r) B A on chosen layers; defaults from CLIP-LoRA (arXiv:2405.18541)."""

    rank: int = Field(
        2,
        ge=1,
        description="Rank r of each layer's change.",
    )
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
    blocks: list[int] | None = Field(
        None,
        min_length=1,
        description="Blocks of the image encoder that are changed, counted from 0; default: all.",
    )

    @field_validator("projections", "blocks")
    @classmethod
    def _named_once(cls, value: list[object] | None) -> list[object] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("has one of them twice")
        return value

    @field_validator("blocks")
    @classmethod
    def _from_0(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and min(value) < 0:
            raise ValueError("has a negative number; blocks are counted from 0")
        return value


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
        description="Image layers with visual prompts of their own, from the first"
        " (arXiv:2403.02781, section 4.1).",
    )
    merge_tokens: int = Field(
        0,
        ge=0,
        description="Patch tokens that each block of CLIP's ViT but the last merges into similar"
        " ones, in training and on the device (ToMe, arXiv:2210.09461): up to 16 for ViT-B/16.",
    )
    depth: int | None = Field(
        None,
        ge=1,
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
        4, ge=1, description="Context tokens of the text encoder, for class_vectors: student."
    )
    prompt_depth_text: int = Field(
        9,
        ge=1,
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
        Losses.model_validate({DEFAULT: {}}),
        description="Distillation losses by name, each with its settings, whose weighted values are"
        " added: {kl: {weight: 200}, feature: {}}; default: kl, PromptKD's.",
    )
    float32_losses: bool = Field(
        True,
        description="Compute projector and logits in float32, our choice; false: in the precision"
        " of the forward pass, as the authors' code does.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
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
        if self.depth is not None and max(self.lora.blocks or [0]) >= self.depth:
            raise ValueError(
                f"have lora.blocks with block {max(self.lora.blocks or [0])}, but depth:"
                f" {self.depth} keeps the blocks 0 to {self.depth - 1}; remove it"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused_lora(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out `lora` where it has no effect, since it is refused there."""
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
    def lora_blocks(self) -> list[int] | None:
        """The blocks with low-rank changes; None for all."""
        if self.lora.blocks is None and self.depth is not None:
            return list(range(self.depth))
        return self.lora.blocks

    @property
    def has_own_class_vectors(self) -> bool:
        """See `MethodSettings.has_own_class_vectors`."""
        return self.class_vectors == "student"

    @property
    def needs_texts(self) -> bool:
        """See `MethodSettings.needs_texts`."""
        return self.class_vectors == "student"

    @property
    def learns_from_labels(self) -> bool:
        """See `MethodSettings.learns_from_labels`."""
        return self.labeled_weight > 0

    @property
    def prompt_depths(self) -> dict[str, tuple[Encoder, ...]]:
        """See `MethodSettings.prompt_depths`."""
        used: dict[str, tuple[Encoder, ...]] = {}
        if self.has_prompts:
            used["prompt_depth"] = ("image",)
        if self.class_vectors == "student":
            used["prompt_depth_text"] = ("text",)
        if self.depth is not None:
            used["depth"] = ("image",)
        return used

    def misfits(self, sizes: EncoderSizes) -> dict[str, str]:
        """See `MethodSettings.misfits`."""
        n_blocks = self.depth or sizes.n_layers.get("image")
        if sizes.n_patches is None or n_blocks is None:
            return {}
        why = why_not_merged(self.merge_tokens, n_patches=sizes.n_patches, n_blocks=n_blocks)
        return {} if why is None else {"merge_tokens": why}

    def recorded(self, n_classes: int) -> dict[str, float]:
        """See `MethodSettings.recorded`; the entries of all losses."""
        entries = [loss.recorded(n_classes) for _, loss in self.losses.items()]
        return {key: value for entry in entries for key, value in entry.items()}
