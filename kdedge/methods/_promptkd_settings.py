"""Settings of PromptKD: the paper's, its ablations, and what goes past it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdedge.methods._lora import LoraSettings
from kdedge.methods.losses import DEFAULT, ChosenLosses, chosen_losses_model
from kdedge.methods.protocol import Encoder, MethodSettings, SettingsNotes

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
        " projector; prompts+lora: prompts, too. A deployed student is as fast with lora and full"
        " as without. The paper gives no learning rate for full; optim.lr has to be far below the"
        " 0.005 of prompts. Image encoders other than CLIP's ViT take neither prompts nor lora: use"
        " projector, full, or n_ctx_vision: 0.",
    )
    lora: LoraSettings = Field(
        LoraSettings(), description="Which layers are changed, and how, under tune: lora."
    )
    n_ctx_vision: int = Field(
        4,
        ge=0,
        le=1000,
        description="Visual prompts in each prompted image layer, under tune: prompts; 0 for none."
        " 4: the PromptKD repository.",
    )
    prompt_depth: int = Field(
        9,
        ge=0,
        description="Image layers with visual prompts of their own, from the first, under tune:"
        " prompts. 9: arXiv:2403.02781, section 4.1.",
    )
    projector_depth: int = Field(
        2,
        ge=1,
        le=3,
        description="Linear layers of the projector, with batch norm and ReLU between them"
        " (arXiv:2403.02781, table 12). 3: one more hidden layer of the same width; the paper does"
        " not specify the width. No effect under class_vectors: student, which has no projector.",
    )
    class_vectors: Literal["teacher", "student"] = Field(
        "teacher",
        description="Whose text features the student compares images with. teacher: the stored"
        ' ones. student: "w/o shared text feature" of arXiv:2403.02781, table 5: its own text'
        " encoder computes them with learned context, and there is no projector.",
    )
    n_ctx_text: int = Field(
        4, ge=1, description="Context tokens under class_vectors: student. 4: the teacher's."
    )
    prompt_depth_text: int = Field(
        9,
        ge=1,
        description="Text layers with context of their own, from the first, under class_vectors:"
        " student. 9: the teacher's.",
    )
    context_init: str = Field(
        "a photo of a",
        description="Words whose embeddings initialize that context; N(0, 0.02²) if they have fewer"
        " than n_ctx_text tokens.",
    )
    labeled_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the cross-entropy on the images of data.labeled, which then are in"
        " each step beside the unlabeled ones (optim.labeled_batch_size). It is averaged over"
        " images, as kl's weight_per_image is. Classes without labels stay out of it. 0: no label"
        " is read.",
    )
    label_head_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share in the logits of a second linear head, which learns the labels while the"
        " first one learns from the teacher (arXiv:2505.07675). Both become one layer at the"
        " export. Default: one head for both, the class vectors.",
    )
    losses: Losses = Field(
        Losses.model_validate({DEFAULT: {}}),
        description="Distillation losses by name, each with its settings; their weighted values are"
        " added. {kl: {weight: 200}, feature: {}} adds feature to kl. Default: kl, PromptKD's"
        " divergence of class probabilities.",
    )
    float32_losses: bool = Field(
        True,
        description="Compute projector, logits and losses in float32 even if the forward pass is in"
        " half precision; this default is ours. false: in its format, as in the authors' code.",
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
                f"have lora with tune: {self.tune}, which does not read it; use tune: lora or"
                " prompts+lora"
            )
        if self.label_head_share is not None and not self.labeled_weight:
            raise ValueError(
                "have label_head_share without labeled_weight; a head for labels learns from"
                " labeled images: set labeled_weight"
            )
        if self.label_head_share is not None and self.class_vectors == "student":
            raise ValueError(
                "have label_head_share with class_vectors: student; a second head stands beside"
                " the teacher's class vectors"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what does nothing here: keys of runs that do not use it stay as they were."""
        values: dict[str, Any] = serialize(self)
        if not self.has_lora:
            values.pop("lora", None)
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
    def has_own_class_vectors(self) -> bool:
        """See `MethodSettings.has_own_class_vectors`."""
        return self.class_vectors == "student" or self.label_head_share is not None

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
        return {
            **(image if self.has_prompts else {}),
            **(text if self.class_vectors == "student" else {}),
        }

    def notes(self, n_classes: int) -> SettingsNotes:
        """See `MethodSettings.notes`; the losses' notes together."""
        notes = [loss.notes(n_classes) for _, loss in self.losses.items()]
        return SettingsNotes(
            {key: value for one in notes for key, value in one.record.items()},
            tuple(message for one in notes for message in one.messages),
        )
