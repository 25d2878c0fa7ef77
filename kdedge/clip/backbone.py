"""Frozen backbones: a CLIP with its preprocessing and tokenizer, or an image encoder alone."""

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
from kdedge.clip.text import TokenizedTexts, encode_text, in_chunks, tokenize
from kdedge.clip.vision import encode_image
from kdedge.clip.weights import hash_weights
from kdedge.errors import RecipeError, is_out_of_memory
from kdedge.messages import one_line
from kdedge.runtime.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class ImageBackbone:
    """A frozen image encoder in float32 and evaluation mode.

    If it is not a `Backbone`, it has no text encoder and serves a student that uses its teacher's
    class vectors. It comes from a CLIP whose text encoder kdedge does not run (MobileCLIP, SigLIP),
    or from timm, whose models are trained without texts. It then has no zero-shot predictions and
    no logit scale.

    Attributes:
        name: its name in tables and messages.
        visual: [B, 3, H, W] -> [B, embed_dim]; no parameter has a gradient.
        preprocess: the image preprocessing of its pre-training.
        identity: hash of everything that decides its features.
        embed_dim: D; of a CLIP, the dimension that images and texts share.
        is_trained_with_texts: whether it was trained with texts.
    """

    name: str
    visual: nn.Module
    preprocess: Preprocess
    identity: str
    embed_dim: int
    is_trained_with_texts: bool

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.visual.parameters()).device


@dataclass(frozen=True, eq=False)
class Backbone(ImageBackbone):
    """A frozen CLIP in float32 and evaluation mode.

    Attributes:
        model: open_clip's CLIP; no parameter has a gradient.
        tokenizer: CLIP's byte-pair tokenizer.
        text_cache: keeps the features of frozen texts.
    """

    model: CLIP
    tokenizer: SimpleTokenizer
    text_cache: TextFeatureCache

    @property
    def context_length(self) -> int:
        """Token positions of the text encoder."""
        return int(self.model.positional_embedding.shape[0])

    @functools.cached_property
    def scale(self) -> float:
        """`logit_scale.exp()`, frozen in every prompt method."""
        return float(self.model.logit_scale.exp())

    def image_features(self, images: Tensor, visual_prompts: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, float32; gradients reach the prompts.

        Only CLIP's ViT takes prompts.
        """
        return unit_length(encode_image(self.visual, images, visual_prompts))

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Turns texts into token ids on the device.

        Raises:
            DataError: a text needs more positions than the model has.
        """
        tokenized = tokenize(self.tokenizer, texts, context_length=self.context_length)
        return TokenizedTexts(tokenized.tokens.to(self.device), tokenized.end.to(self.device))

    @torch.no_grad()
    def text_features_raw(self, texts: Sequence[str]) -> Tensor:
        """Frozen texts -> [C, D], not normalized, float32; computed once per set of weights."""

        def compute() -> Tensor:
            tokenized = self.tokenize(texts)
            with torch.autocast(self.device.type, enabled=False):
                return in_chunks(
                    lambda rows: encode_text(self.model, tokenized[rows]), len(tokenized.tokens)
                )

        key = f"{self.identity} {self.device.type}"
        return self.text_cache.get(key, texts, compute).to(self.device)


def unit_length(features_raw: Tensor) -> Tensor:
    """Scales each row to length 1, in float32."""
    return F.normalize(features_raw.float(), dim=-1)


def make_backbone(
    module: nn.Module,
    *,
    name: str,
    preprocess: Preprocess,
    device: torch.device | str = "cpu",
    text_cache_folder: Path | None = None,
    identity: str | None = None,
    is_trained_with_texts: bool = True,
) -> ImageBackbone:
    """Makes a frozen backbone from a module that is already built; a `Backbone` from a CLIP.

    CLIP's blocks are replaced in place by blocks of plain linear layers.

    Args:
        module: open_clip's CLIP, or an image encoder, [B, 3, H, W] -> [B, D].
        name: its name in tables and messages.
        preprocess: the image preprocessing of its pre-training.
        device: device of the backbone.
        text_cache_folder: keeps features of frozen texts between runs; None keeps them in memory.
        identity: hash of everything that decides its features; None hashes its weights.
        is_trained_with_texts: whether the image encoder was trained with texts.

    Raises:
        RecipeError: an image encoder's output is not one vector per image.
    """
    visual = module.visual if isinstance(module, CLIP) else module
    if is_promptable_vit(visual):
        make_wrappable(visual.transformer)
    module = module.float().eval().requires_grad_(False)
    identity = identity or hash_weights(module.state_dict())
    if not isinstance(module, CLIP):
        embed_dim = count_features(visual, name, preprocess.size_px)
        visual = visual.to(device)
        return ImageBackbone(name, visual, preprocess, identity, embed_dim, is_trained_with_texts)
    make_wrappable(module.transformer)
    return Backbone(
        name=name,
        visual=module.to(device).visual,
        preprocess=preprocess,
        identity=identity,
        embed_dim=int(module.text_projection.shape[1]),
        is_trained_with_texts=True,
        model=module,
        tokenizer=_tokenizer(),
        text_cache=TextFeatureCache(text_cache_folder),
    )


# Cached, since reading its table takes as long as loading a small model
_tokenizer = functools.cache(SimpleTokenizer)


@torch.no_grad()
def count_features(visual: nn.Module, name: str, size_px: int) -> int:
    """Returns D, measured by encoding one image, as timm's models have no common attribute for it.

    Raises:
        RecipeError: the encoder's output is not one vector per image, or it refuses this size.
    """
    device = next(visual.parameters()).device
    try:
        features = visual(torch.zeros(1, 3, size_px, size_px, device=device))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise RecipeError(
            f"{name} cannot encode images of {size_px}x{size_px} pixels: {one_line(error)}.\n"
            "  Set the image size that its architecture was built for, or choose another model."
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise RecipeError(
            f"{name} gives {got} for one image; expected one vector of features, [1, D].\n"
            "  Choose a model with pooled features."
        )
    return features.shape[1]
