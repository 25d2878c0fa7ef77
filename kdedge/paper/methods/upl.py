"""UPL: CoOp on zero-shot CLIP's pseudo-labels; the logits of several runs are averaged.

Paper: Huang et al., Unsupervised Prompt Learning, arXiv:2204.03649, sections 3.2 to 3.4. Zero-shot
CLIP classifies the images with the recipe's template. Each class labels the `per_class` images that
are predicted as this class with the highest probability, or fewer if it is rarely predicted. The
images are chosen once, over all classes, and no label is read.

The runs differ in their initial context only and see the same crops in the same order. So all train
in one pass over the images, each by its own cross-entropy; the loss is their sum. (Under
`optim.clip_grad_norm` the runs' gradients are clipped together.) The image encoder is not trained,
so the average of the logits equals the logits of the averaged class vectors, at one run's cost.
These vectors are shorter than unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import INIT_STD, prompted_text_features, text_width
from kdedge.clip.text import TokenizedTexts
from kdedge.config.fields import MAX_COUNT
from kdedge.config.optim_spec import OptimSettings
from kdedge.data.pseudo_labels import Probabilities, PseudoLabel, most_confident_predicted
from kdedge.loading.batch import Batch
from kdedge.methods.base import MethodInputs, StepOutput
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import TextPromptMethod, cross_entropy, encode_images, labels_of
from kdedge.paper.rounds import RoundsSettings

METHOD = Declaration(
    label="UPL",
    paper="arXiv:2204.03649",
    data_needs=DataNeeds(unlabeled_images=True, novel_class_names=True),
    # The authors' code.
    optim=OptimSettings(lr=0.002, epochs=50, batch_size=32),
)


class Settings(RoundsSettings):
    """Settings of UPL; defaults from the authors' code."""

    n_runs: int = Field(
        16, ge=1, le=1000, description="Contexts that are trained, and whose logits are averaged."
    )
    n_ctx: int = Field(
        16, ge=1, le=1000, description="Tokens per context, initialized from N(0, 0.02²)."
    )
    per_class: int = Field(
        16,
        ge=1,
        le=MAX_COUNT,
        description="Pseudo-labels per class at most: the most confident images predicted as it.",
    )

    context_init: ClassVar[str] = ""  # the contexts start from random values
    n_rounds: ClassVar[int] = 1  # pseudo-labels are chosen once

    def choose_labels(
        self, probabilities: Probabilities, *, round_number: int, classes: Sequence[int]
    ) -> list[PseudoLabel]:
        """For each class, the most confident of the images predicted as it; UPL has no labels."""
        return most_confident_predicted(probabilities, self.per_class)


class Method(TextPromptMethod):
    """UPL on a frozen backbone.

    Its parameters are `contexts`, [R, n_ctx, D_text]: one context per run, shared by all classes.
    """

    module: nn.ParameterDict

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        shape = (settings.n_runs, settings.n_ctx, text_width(backbone))
        contexts = INIT_STD * torch.randn(shape, generator=inputs.generator)
        self.module = nn.ParameterDict({"contexts": contexts.to(backbone.device)})

    def text_features_of_runs(self, texts: TokenizedTexts) -> Tensor:
        """[R, C, D], unit length, with gradients; encoded in chunks of classes to save memory."""
        backbone = self._backbone
        contexts = self.module["contexts"]
        features = [prompted_text_features(backbone, texts, context) for context in contexts]
        return torch.stack(features)

    def text_features(self, texts: TokenizedTexts) -> Tensor:
        """[C, D], the average over the runs, shorter than unit length."""
        return self.text_features_of_runs(texts).mean(dim=0)

    def training_step(self, batch: Batch) -> StepOutput:
        """The sum of the runs' cross-entropies with the pseudo-labels."""
        labels = labels_of(batch)
        image_features = encode_images(batch, self.training_features)
        text_features = self.text_features_of_runs(self._train_texts)
        with torch.autocast(image_features.device.type, enabled=False):
            logits = self.scale * image_features @ text_features.mT  # [R, B, C]
        losses = torch.stack([cross_entropy(run, labels, batch.weights) for run in logits])
        predicted = logits.detach().mean(dim=0).argmax(dim=-1)
        scalars = {
            "loss_of_a_run": losses.detach().mean(),
            "batch_accuracy_percent": 100 * (predicted == labels).float().mean(),
        }
        return StepOutput(losses.sum(), scalars)
