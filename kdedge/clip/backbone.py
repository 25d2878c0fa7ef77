"""A frozen CLIP: open_clip's model, its weights' hash, its preprocessing and its tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.architecture import is_promptable_vit
from kdedge.clip.blocks import make_wrappable
from kdedge.clip.class_vectors import TextFeatureCache
from kdedge.clip.text import TokenizedTexts, encode_in_chunks, encode_text, tokenize
from kdedge.clip.vision import encode_image
from kdedge.clip.weights import hash_weights
from kdedge.runtime.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP in float32 and evaluation mode.

    Attributes:
        name: its name in tables and messages.
        model: open_clip's CLIP; no parameter has a gradient.
        preprocess: the image preprocessing of its pre-training.
        tokenizer: CLIP's byte-pair tokenizer.
        identity: hash of everything that decides its features.
        text_cache: keeps the features of frozen texts.
    """

    name: str
    model: CLIP
    preprocess: Preprocess
    tokenizer: SimpleTokenizer
    identity: str
    text_cache: TextFeatureCache

    @property
    def visual(self) -> nn.Module:
        """The image encoder."""
        visual: nn.Module = self.model.visual
        return visual

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def context_length(self) -> int:
        """Token positions of the text encoder."""
        return int(self.model.positional_embedding.shape[0])

    @property
    def embed_dim(self) -> int:
        """D, the joint dimension."""
        return int(self.model.text_projection.shape[1])

    @functools.cached_property
    def scale(self) -> float:
        """`logit_scale.exp()`, frozen in every prompt method."""
        return float(self.model.logit_scale.exp())

    def image_features(self, images: Tensor, visual_prompts: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, float32; gradients reach the prompts.

        Only CLIP's ViT takes prompts.
        """
        return unit_length(encode_image(self.model.visual, images, visual_prompts))

    @torch.no_grad()
    def text_features_raw(self, texts: Sequence[str]) -> Tensor:
        """Frozen texts -> [C, D], not normalized, float32; computed once per set of weights."""

        def compute() -> Tensor:
            tokenized = tokenize(self.tokenizer, texts, context_length=self.context_length)
            on_device = TokenizedTexts(
                tokenized.tokens.to(self.device), tokenized.end.to(self.device)
            )
            with torch.autocast(self.device.type, enabled=False):
                return encode_in_chunks(lambda chunk: encode_text(self.model, chunk), on_device)

        return self.text_cache.get(f"{self.identity} {self.device.type}", texts, compute).to(
            self.device
        )


def unit_length(features_raw: Tensor) -> Tensor:
    """Scales each row to length 1, in float32."""
    return F.normalize(features_raw.float(), dim=-1)


def make_backbone(
    model: CLIP,
    *,
    name: str,
    preprocess: Preprocess,
    device: torch.device | str = "cpu",
    text_cache_folder: Path | None = None,
    identity: str | None = None,
) -> Backbone:
    """Makes a frozen backbone from a CLIP that is already built.

    The blocks of its transformers are replaced in place by blocks of plain linear layers.

    Args:
        model: open_clip's CLIP.
        name: its name in tables and messages.
        preprocess: the image preprocessing of its pre-training.
        device: device of the backbone.
        text_cache_folder: keeps features of frozen texts between runs; None keeps them in memory.
        identity: hash of everything that decides its features; None hashes its weights.
    """
    if is_promptable_vit(model.visual):
        make_wrappable(model.visual.transformer)
    make_wrappable(model.transformer)
    model = model.float().eval().requires_grad_(False)
    return Backbone(
        name=name,
        preprocess=preprocess,
        tokenizer=_tokenizer(model.context_length),
        identity=identity or hash_weights(model.state_dict()),
        model=model.to(device),
        text_cache=TextFeatureCache(text_cache_folder),
    )


@functools.cache
def _tokenizer(context_length: int) -> SimpleTokenizer:
    """CLIP's tokenizer, cached: reading its table takes as long as loading a small model."""
    return SimpleTokenizer(context_length=context_length)
