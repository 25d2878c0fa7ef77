"""CoCoOp: a small network shifts the context tokens, so that each image has its own class texts.

Paper: Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022,
arXiv:2203.05557, section 3.2: v_m(x) = v_m + π with π = h_θ(x), and logits <x, g(t_i(x))> / τ.
Pairs of image and class are encoded in chunks, so that memory does not grow with their number.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.prompts import first_context, random_linear, text_width
from kdedge.clip.text import TokenizedTexts, encode_text, in_chunks
from kdedge.config.optim_spec import OptimSettings
from kdedge.methods.base import Classifier, MethodInputs, MethodSettings
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import TextPromptMethod

METHOD = Declaration(
    label="CoCoOp",
    paper="arXiv:2203.05557",
    data_needs=DataNeeds(labels=True),
    # The authors' code, base-to-novel.
    optim=OptimSettings(lr=0.002, epochs=10, batch_size=1),
)

REDUCTION = 16
"""Size of the image features over hidden width of the meta-net (section 3.2)."""


class Settings(MethodSettings):
    """Settings of CoCoOp; defaults from the authors' base-to-novel configuration."""

    n_ctx: int = Field(4, ge=1, le=1000, description="Number of context tokens.")
    context_init: str = Field(
        "a photo of a",
        description="Words whose embeddings initialize the context; N(0, 0.02²) if they are few.",
    )

    classifier: ClassVar[Classifier] = "own_logits"  # each image has texts of its own


class MetaNet(nn.Module):
    """Image features to a shift of the context: linear, ReLU, linear (h_θ in section 3.2).

    Args:
        embed_dim: D.
        width: D_text.
        generator: on the CPU; draws PyTorch's default values.
    """

    def __init__(self, embed_dim: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(1, embed_dim // REDUCTION)
        self.linear1 = random_linear(embed_dim, hidden, generator)
        self.linear2 = random_linear(hidden, width, generator)

    def forward(self, image_features: Tensor) -> Tensor:
        """[B, D], unit length -> [B, D_text]."""
        shift: Tensor = self.linear2(F.relu(self.linear1(image_features)))
        return shift


class PromptLearner(nn.Module):
    """The parameters of CoCoOp: the context [n_ctx, D_text] and the meta-net."""

    def __init__(self, context: Tensor, meta_net: MetaNet) -> None:
        super().__init__()
        self.context = nn.Parameter(context)
        self.meta_net = meta_net

    def contexts(self, image_features: Tensor) -> Tensor:
        """[B, D] -> [B, n_ctx, D_text]: v_m(x) = v_m + π, the same π for every token."""
        shift: Tensor = self.meta_net(image_features)
        return self.context + shift[:, None]


class Method(TextPromptMethod):
    """CoCoOp on a frozen backbone: image-conditioned, so it has logits but no class vectors."""

    module: PromptLearner
    half_precision = r"^context$|^meta_net\."

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        n_ctx = settings.n_ctx
        init = settings.context_init
        generator = inputs.generator
        context = first_context(backbone, n_ctx=n_ctx, context_init=init, generator=generator)
        meta_net = MetaNet(backbone.embed_dim, text_width(backbone), generator)
        self.module = PromptLearner(context, meta_net).to(backbone.device)

    def class_logits(self, image_features: Tensor, texts: TokenizedTexts | None = None) -> Tensor:
        """Logits of images against their own class texts: <x, g(t_i(x))> / τ.

        Pairs of image and class are encoded in chunks to save memory.

        Args:
            image_features: [B, D], unit length.
            texts: texts of the C classes; None for the training classes.

        Returns:
            [B, C], scaled, float32, with gradients.
        """
        texts = texts or self._train_texts
        scale = self.scale
        n_images = len(image_features)
        n_classes = len(texts.tokens)
        with torch.autocast(image_features.device.type, enabled=False):
            contexts = self.module.contexts(image_features)

        def compare(pairs: slice) -> Tensor:
            pair = torch.arange(pairs.start, pairs.stop, device=image_features.device)
            image = pair // n_classes
            label = pair % n_classes
            raw = encode_text(self._backbone.model, texts[label], context=contexts[image])
            return scale * (image_features[image] * unit_length(raw)).sum(dim=-1)

        return in_chunks(compare, n_images * n_classes).view(n_images, n_classes)

    @torch.no_grad()
    def own_logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], over all classes, with the current parameters."""
        return self.class_logits(self.training_features(images), self.texts)

    def class_vectors(self) -> Tensor:
        """[C, 0]: the text features depend on the image, so there are no class vectors."""
        return torch.zeros(len(self.texts.tokens), 0, device=self._backbone.device)
