"""Settings of PromptKD: the paper's, its ablations, and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdedge.clip.architecture import EncoderSizes
from kdedge.clip.reduction import why_not_merged
from kdedge.methods._lora import LoraSettings
from kdedge.methods.losses import DEFAULT, ChosenLosses, chosen_losses_model
from kdedge.methods.protocol import Encoder, MethodSettings

if TYPE_CHECKING:
    Losses = ChosenLosses
else:
    Losses = chosen_losses_model()

Tune = Literal["prompts", "projector", "full", "lora", "prompts+lora"]


class Settings(MethodSettings):
    """Settings of PromptKD; defaults from the authors' base-to-novel configuration."""

    tune: Tune = Field(
        "prompts",
        description="What is trained on the image side (arXiv:2403.02781, table 5). prompts: visual"
        " prompts and projector. projector: the projector only. full: the whole image encoder and"
        " the projector, without prompts. lora: low-rank changes of the image encoder and the"
        " projector. prompts+lora: visual prompts as well. Once exported, lora and full cost"
        " nothing on the device. The paper gives no learning rate for full; optim.lr has to be far"
        " below the 0.005 of prompts. Image encoders other than CLIP's ViT take neither prompts nor"
        " lora: use projector, full, or n_ctx_vision: 0.",
    )
    lora: LoraSettings = Field(
        LoraSettings(),
        description="Low-rank changes of the image encoder, for tune: lora and prompts+lora.",
    )
    n_ctx_vision: int = Field(
        4,
        ge=0,
        le=1000,
        description="Number of visual prompts in each prompted image layer, for tune: prompts and"
        " prompts+lora; 0 for none. The default 4 is the PromptKD repository's.",
    )
    prompt_depth: int = Field(
        9,
        ge=0,
        description="Number of image layers with visual prompts of their own, from the first, for"
        " tune: prompts and prompts+lora. The default 9 is that of arXiv:2403.02781, section 4.1.",
    )
    merge_tokens: int = Field(
        0,
        ge=0,
        description="Number of patch tokens that each block of the image encoder, but the last,"
        " merges into similar ones (ToMe, arXiv:2210.09461): in training, in evaluation and on the"
        " device. At most the patch tokens divided by the blocks, 16 for ViT-B/16; 0: none. Only"
        " for CLIP's ViT.",
    )
    depth: int | None = Field(
        None,
        ge=1,
        description="Number of blocks of the image encoder that are kept, from the first; the"
        " others are dropped. The layers after them were trained on the last block's output, so"
        " the encoder has to learn: use tune: full or lora. Default: all blocks. Only for CLIP's"
        " ViT.",
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
    labeled_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the cross-entropy of labeled images, over the classes that have"
        " labels. Each step then has images of data.labeled besides the unlabeled ones"
        " (optim.labeled_batch_size). The loss is averaged over images, as with weight_per_image"
        " of kl. 0: no labels are used.",
    )
    label_head_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of a second linear head in the logits. It learns from the labels, and"
        " the first head learns from the teacher (arXiv:2505.07675). An export folds both into one"
        " layer. Default: no second head; the class vectors are used for both.",
    )
    losses: Losses = Field(
        Losses.model_validate({DEFAULT: {}}),
        description="Distillation losses by name, each with its settings; their weighted values are"
        " added. {kl: {weight: 200}, feature: {}} adds feature to kl. Default: kl, PromptKD's"
        " divergence of class probabilities.",
    )
    float32_losses: bool = Field(
        True,
        description="Compute projector and logits in float32 even if the forward pass is in half"
        " precision; this default is ours. false: use the precision of the forward pass, as in the"
        " authors' code. Losses are always computed in float32.",
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
        if self.label_head_share is not None and not self.labeled_weight:
            raise ValueError(
                "have label_head_share without labeled_weight; its head learns from labeled"
                " images: set labeled_weight"
            )
        if self.label_head_share is not None and self.class_vectors == "student":
            raise ValueError(
                "have label_head_share with class_vectors: student, but a second head is mixed"
                " with the teacher's class vectors; use class_vectors: teacher"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out settings without effect: keys of runs that do not use them stay the same."""
        values: dict[str, Any] = serialize(self)
        if not self.has_lora:
            values.pop("lora", None)
        if not self.merge_tokens:
            values.pop("merge_tokens", None)
        if self.depth is None:
            values.pop("depth", None)
        if not self.labeled_weight:
            values.pop("labeled_weight", None)
            values.pop("label_head_share", None)
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
        return self.class_vectors == "student" or self.label_head_share is not None

    @property
    def needs_teacher_vectors(self) -> bool:
        """See `MethodSettings.needs_teacher_vectors`."""
        return self.class_vectors == "teacher"

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
        image: dict[str, tuple[Encoder, ...]] = {"prompt_depth": ("image",)}
        text: dict[str, tuple[Encoder, ...]] = {"prompt_depth_text": ("text",)}
        kept: dict[str, tuple[Encoder, ...]] = {"depth": ("image",)}
        return {
            **(image if self.has_prompts else {}),
            **(text if self.class_vectors == "student" else {}),
            **({} if self.depth is None else kept),
        }

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
        return {key: value for own in entries for key, value in own.items()}
