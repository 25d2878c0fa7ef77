"""FPL, IFPL, GRIP: a learner trains on labels, and on pseudo-labels of classes without labels.

Paper: Menghini et al., Enhancing CLIP with CLIP, NeurIPS 2023, arXiv:2306.01669, sections 3 and 4;
used as in arXiv:2403.02781, table 3: labeled base classes, pseudo-labels for novel ones, PromptSRC
as the learner. The three are variants of one method:

* `fpl`: one round, `per_class` images of each novel class, labeled by zero-shot CLIP;
* `ifpl`: `rounds` rounds of as many images, labeled anew by the model of the previous round;
* `grip`: like ifpl, with more images each round, up to an even share of the pool for each class.

Each novel class gets the images with its highest probability over all classes, each image once
(`data.pseudo_labels.most_probable`). Each round trains from the initial values, with the learning
rates of a full training. The loss is CE(labeled) + (n_labeled / n_pseudo) CE(pseudo-labeled), each
the mean over its part of a batch, over all classes; the learner's other losses are unchanged. The
pool holds images of all classes except the labeled images; an even share is the pool's size over
the number of classes. Under `split: all` all classes get pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.config.fields import MAX_COUNT
from kdedge.config.optim_spec import OptimSettings
from kdedge.data.pseudo_labels import Probabilities, PseudoLabel, most_probable
from kdedge.methods.base import BaseMethod, EncoderName, MethodInputs
from kdedge.methods.promptsrc import Method as PromptSRC
from kdedge.methods.promptsrc import Settings as PromptSRCSettings
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.paper.methods.coop import Method as CoOp
from kdedge.paper.methods.coop import Settings as CoOpSettings
from kdedge.paper.rounds import RoundsSettings

METHOD = Declaration(
    label="FPL, IFPL, GRIP",
    paper="arXiv:2306.01669",
    data_needs=DataNeeds(labels=True, unlabeled_images=True, novel_class_names=True),
    # PromptSRC's values, for each round
    optim=OptimSettings(lr=0.0025, epochs=20, batch_size=4),
)


class Settings(RoundsSettings):
    """Settings of FPL, IFPL and GRIP; defaults from arXiv:2306.01669, section 4."""

    variant: Literal["fpl", "ifpl", "grip"] = Field(
        "grip",
        description="fpl: one round; ifpl: rounds of per_class images; grip: of growing numbers, up"
        " to an even share of all unlabeled images.",
    )
    per_class: int = Field(
        16, ge=1, le=MAX_COUNT, description="Pseudo-labeled images per class, for fpl and ifpl."
    )
    rounds: int = Field(
        10, ge=1, le=1000, description="Number of rounds, each a full training, for ifpl and grip."
    )
    promptsrc: PromptSRCSettings = Field(
        PromptSRCSettings(), description="Settings of PromptSRC, the learner (arXiv:2403.02781)."
    )
    coop: CoOpSettings | None = Field(
        None, description="Settings of CoOp, which is then the learner instead of PromptSRC."
    )

    @model_validator(mode="after")
    def _one_learner(self) -> Settings:
        if self.coop is not None and "promptsrc" in self.model_fields_set:
            raise ValueError(
                "have promptsrc and coop, but there is only one learner; remove one of them"
            )
        return self

    @property
    def n_rounds(self) -> int:
        """1 for FPL, which labels once; `rounds` for IFPL and GRIP."""
        return 1 if self.variant == "fpl" else self.rounds

    @property
    def is_class_specific(self) -> bool:
        """Whether the learner is class-specific; see `MethodSettings.is_class_specific`."""
        return self.coop is not None and self.coop.is_class_specific

    @property
    def layer_counts(self) -> dict[str, tuple[EncoderName, ...]]:
        """The learner's settings; see `MethodSettings.layer_counts`."""
        if self.coop is not None:
            return {}
        return {f"promptsrc.{key}": value for key, value in self.promptsrc.layer_counts.items()}

    def choose_labels(
        self, probabilities: Probabilities, *, round_number: int, classes: Sequence[int]
    ) -> list[PseudoLabel]:
        """For each class, as many most probable images as the round and the variant allow."""
        n_images, n_classes = probabilities.shape
        per_class = images_per_class(
            self, round_number=round_number, n_images=n_images, n_classes=n_classes
        )
        return most_probable(probabilities, per_class, classes=classes)

    def weigh(self, is_pseudo: Tensor, *, n_labeled: int, n_pseudo: int) -> Tensor:
        """CE(labeled) + (n_labeled / n_pseudo) CE(pseudo-labeled), as weights of the images [B]."""
        n_pseudo_in_batch = int(is_pseudo.sum())
        labeled_weight = 1 / max(1, len(is_pseudo) - n_pseudo_in_batch)
        pseudo_weight = n_labeled / n_pseudo / max(1, n_pseudo_in_batch)
        return torch.where(is_pseudo, pseudo_weight, labeled_weight)


def images_per_class(
    settings: Settings, *, round_number: int, n_images: int, n_classes: int
) -> int:
    """Images per class of a round: `per_class`; for grip ⌊t ⌊N / rounds⌋ / C⌋, at least 1.

    The number for grip grows up to the even share N / C.

    Args:
        settings: the variant, `per_class` and `rounds`.
        round_number: t, from 1.
        n_images: N, images in the pool.
        n_classes: C, number of classes in the pool.
    """
    if settings.variant != "grip":
        return settings.per_class
    return max(1, round_number * (n_images // settings.rounds) // n_classes)


def make_learner(backbone: Backbone, settings: Settings, inputs: MethodInputs) -> BaseMethod:
    """Builds the learner, over all classes; it treats pseudo-labels like labels."""
    if settings.coop is not None:
        return CoOp(backbone, settings.coop, inputs)
    return PromptSRC(backbone, settings.promptsrc, inputs)


Method = make_learner
