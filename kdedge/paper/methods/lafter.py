"""LaFTer: a classifier trained on texts labels images; visual prompts and layer norms learn them.

Paper: Mirza et al., LaFTer: Label-Free Tuning of Zero-shot Classifier using Language and Unlabeled
Image Collections, NeurIPS 2023, arXiv:2305.18287.

1. A linear classifier learns sentences about the classes: noisy text features, cross-entropy with
   smoothed labels. CLIP's images and texts share a space, so a frozen copy of the classifier
   labels images.
2. The classifier, visual prompts and all layer norms of the image encoder learn an image's
   pseudo-label from a strong view of it. The view's features are not normalized. They are about ten
   times as long as the text features of step 1, which sharpens the softmax by the same factor.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.layers import with_layers
from kdedge.clip.prompts import make_visual_prompts, random_linear, readable
from kdedge.clip.text import tokenize
from kdedge.clip.vision import encode_image
from kdedge.config.optim_spec import OptimSettings
from kdedge.loading.batch import Batch
from kdedge.methods.base import BaseMethod, ImageModules, MethodInputs, MethodSettings, StepOutput
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import encode_images
from kdedge.methods.zeroshot import template_list

METHOD = Declaration(
    label="LaFTer",
    paper="arXiv:2305.18287",
    data_needs=DataNeeds(unlabeled_images=True, novel_class_names=True),
    # The authors' code.
    optim=OptimSettings(
        algorithm="adamw",
        lr=5e-4,
        weight_decay=0.01,
        epochs=50,
        batch_size=50,
        warmup_epochs=0,
        schedule="constant",
        crop_scale_min=0.2,
        strong_views=True,
    ),
    needs_clean_images=True,
    learns_from_texts=True,
)

TEXT_WEIGHT_DECAY = 0.01
"""Of the classifier on texts (the authors' code)."""


class Settings(MethodSettings):
    """Settings of LaFTer; defaults from the authors' code.

    The texts are the sentences of the recipe's `classes.texts` and its template. If it has no
    sentences, they are OpenAI's 80 ImageNet templates and the recipe's template.
    """

    n_ctx_vision: int = Field(
        50,
        ge=1,
        le=1000,
        description="Visual prompts before the first image layer; all layers keep them.",
    )
    n_text_steps: int = Field(
        600, ge=1, le=10**7, description="Training steps of the text classifier, each on all texts."
    )
    text_lr: float = Field(
        5e-4,
        gt=0,
        le=10,
        description="Learning rate of the text classifier's training steps (AdamW).",
    )
    text_noise_std: float = Field(
        0.1,
        ge=0,
        le=100,
        description="Standard deviation of the noise that is added to unit-length text features.",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of each label that is spread over all classes."
    )

    is_class_specific: ClassVar[bool] = True  # its classifier has one row per class


class TunedEncoder(nn.Module):
    """The parameters of LaFTer.

    Attributes:
        visual_prompts: [1, n_ctx_vision, D_vision].
        norms: the image encoder's layer norms, copies of the frozen ones.
        classifier: [C, D], one row per class, of any length.
        labeler: [C, D], copy of the classifier that was trained on texts alone; zeros until then.
        feature_length: [], mean length of the frozen image encoder's features of the first batch;
            0 until then.
    """

    labeler: Tensor
    feature_length: Tensor

    def __init__(
        self, visual_prompts: nn.Parameter, norms: Sequence[nn.LayerNorm], classifier: nn.Parameter
    ) -> None:
        super().__init__()
        self.visual_prompts = visual_prompts
        self.norms = nn.ModuleList(norms)
        self.classifier = classifier
        self.register_buffer("labeler", torch.zeros_like(classifier))
        self.register_buffer("feature_length", classifier.new_zeros(()))


def template_texts(class_names: Sequence[str], template: str) -> list[list[str]]:
    """Texts of each class: OpenAI's 80 ImageNet templates and the recipe's, without duplicates."""
    templates = list(dict.fromkeys([*template_list("ensemble80", template), template]))
    return [[pattern.format(readable(name)) for pattern in templates] for name in class_names]


def train_text_classifier(
    weight: Tensor,
    text_features: Tensor,
    labels: Tensor,
    settings: Settings,
    generator: torch.Generator,
) -> Tensor:
    """Trains W on texts: min over W of E CE(W (t + ε), label), with ε from N(0, text_noise_std²).

    With label smoothing s, the target of CE is 1 - s + s / C for the label, s / C otherwise.

    Args:
        weight: [C, D], initial value of W.
        text_features: [T, D], unit length, float32.
        labels: [T], the class that each text is about.
        settings: number of steps, learning rate, noise and label smoothing.
        generator: on the CPU; draws the noise of every step.

    Returns:
        [C, D], W after `n_text_steps` steps on all texts at once.
    """
    weight = nn.Parameter(weight.detach().clone())
    optimizer = torch.optim.AdamW([weight], lr=settings.text_lr, weight_decay=TEXT_WEIGHT_DECAY)
    for _ in range(settings.n_text_steps):
        noise = torch.randn(text_features.shape, generator=generator).to(text_features.device)
        logits = (text_features + settings.text_noise_std * noise) @ weight.T
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        (weight.grad,) = torch.autograd.grad(loss, [weight])
        optimizer.step()
    return weight.detach()


class Method(BaseMethod):
    """LaFTer on a frozen backbone; its layer norms are copies."""

    module: TunedEncoder
    _backbone: Backbone

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        names = inputs.class_names
        generator = inputs.generator
        visual_prompts = make_visual_prompts(
            backbone, n_ctx=settings.n_ctx_vision, prompt_depth=1, generator=generator
        )
        norms = {
            name: copy.deepcopy(part).requires_grad_(True)
            for name, part in backbone.visual.named_modules()
            if isinstance(part, nn.LayerNorm)
        }
        self._visual = with_layers(backbone.visual, norms)
        linear = random_linear(backbone.embed_dim, len(names), generator, bias=False)
        classifier = nn.Parameter(linear.weight.detach().to(backbone.device))
        self.module = TunedEncoder(visual_prompts, list(norms.values()), classifier)
        self._texts = template_texts(names, inputs.template)
        if inputs.sentences is not None:
            self._texts = [
                [*about_class, inputs.template.format(readable(name))]
                for name, about_class in zip(names, inputs.sentences, strict=True)
            ]
            for texts in self._texts:  # fails on a text that is too long, before a run is made
                tokenize(backbone.tokenizer, texts, context_length=backbone.context_length)
        self._noise_seed = int(torch.randint(2**62, (), generator=generator))
        self._first_classifier = classifier.detach().clone()
        self._learned_version: int | None = None

    @property
    def scale(self) -> float:
        """Factor from cosines to the classifier's logits, for features of the mean length."""
        return float(self._longest()) * (float(self.module.feature_length) or 1.0)

    @torch.no_grad()
    def _longest(self) -> Tensor:
        """[], the length of the classifier's longest row."""
        longest: Tensor = self.module.classifier.norm(dim=-1).max()
        return longest

    def learn_texts(self) -> None:
        """Trains classifier and labeler on texts, once.

        A step that runs out of memory is repeated with its earlier buffers, in which the labeler
        may be empty. The text training then starts from the classifier's initial values again.
        """
        version = self.module.labeler._version  # torch's count of in-place changes
        if version == self._learned_version:
            return
        if bool(self.module.labeler.any()):  # synchronizes with the GPU
            self._learned_version = version
            return
        device = self._backbone.device
        texts = [text for about_class in self._texts for text in about_class]
        labels = torch.tensor([label for label, about in enumerate(self._texts) for _ in about])
        with torch.autocast(device.type, enabled=False):
            weight = train_text_classifier(
                self._first_classifier,
                unit_length(self._backbone.text_features_raw(texts)),
                labels.to(device),
                self._settings,
                torch.Generator().manual_seed(self._noise_seed),
            )
        with torch.no_grad():
            self.module.classifier.copy_(weight)
            self.module.labeler.copy_(weight)

    @torch.no_grad()
    def pseudo_labels(self, image_features: Tensor) -> Tensor:
        """[B, D], frozen image features of any length -> [B], classes predicted by the labeler."""
        with torch.autocast(image_features.device.type, enabled=False):
            return (image_features @ self.module.labeler.T).argmax(dim=-1)

    def image_features_raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], not normalized, float32, with gradients."""
        return encode_image(self._visual, images, self.module.visual_prompts).float()

    def training_step(self, batch: Batch) -> StepOutput:
        """Smoothed cross-entropy of views with pseudo-labels; the first step learns the texts."""
        assert batch.clean_images is not None  # `needs_clean_images` is set
        self.learn_texts()
        clean = replace(batch, images=batch.clean_images)
        with torch.no_grad():
            frozen = encode_images(clean, lambda x: encode_image(self._backbone.visual, x).float())
            length = self.module.feature_length
            length.copy_(torch.where(length == 0, frozen.norm(dim=-1).mean(), length))
        labels = self.pseudo_labels(frozen)
        image_features = encode_images(batch, self.image_features_raw)
        with torch.autocast(image_features.device.type, enabled=False):
            logits = image_features @ self.module.classifier.T
            loss = F.cross_entropy(logits, labels, label_smoothing=self._settings.label_smoothing)
        agreement = 100 * (logits.detach().argmax(dim=-1) == labels).float().mean()
        return StepOutput(loss, {"pseudo_label_agreement_percent": agreement})

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """[C, D], the classifier's rows, divided by the length of the longest one."""
        return self.module.classifier / self._longest()

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D] through `image_modules`."""
        return unit_length(self.image_features_raw(images))

    def image_modules(self) -> ImageModules:
        """The image encoder with its own layer norms and its prompts."""
        return ImageModules(self._visual, self.module.visual_prompts)
