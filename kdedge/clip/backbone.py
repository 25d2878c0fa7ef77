"""A frozen CLIP: open_clip's model, its weights' hash, its preprocessing and its tokenizer."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP, SimpleTokenizer
from open_clip.transformer import Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge._files import sha256_json
from kdedge.clip.architecture import build_empty, build_filled, why_no_prompts
from kdedge.clip.blocks import make_wrappable
from kdedge.clip.class_vectors import TextFeatureCache
from kdedge.clip.resolve import resolve
from kdedge.clip.text import TokenizedTexts, encode_in_chunks, encode_text, tokenize
from kdedge.clip.vision import encode_image
from kdedge.clip.weights import Weights, match_state_dict
from kdedge.runtime.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP in float32 and evaluation mode.

    Attributes:
        name: what it is called in tables and messages.
        model: open_clip's CLIP; no parameter has a gradient.
        preprocess: what its images went through in pre-training.
        tokenizer: CLIP's byte-pair tokenizer.
        weights_hash: SHA-256 over the sorted keys: each key's bytes, then its float32 bytes.
        identity: hash of everything that decides its features: weights, activation, heads,
            preprocessing.
        text_cache: where frozen texts' features are kept.
    """

    name: str
    model: CLIP
    preprocess: Preprocess
    tokenizer: SimpleTokenizer
    weights_hash: str
    identity: str
    text_cache: TextFeatureCache

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        visual: nn.Module = self.model.visual
        return visual

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def context_length(self) -> int:
        """Token positions of the text tower."""
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
        """Frozen texts -> [C, D], not normalized, float32; computed once for these weights."""

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


def load_backbone(
    *,
    name: str | None,
    weights: str | None,
    config: Path | None = None,
    quick_gelu: bool | None = None,
    device: torch.device | str = "cpu",
    cache_folder: Path | None = None,
) -> Backbone:
    """Loads a frozen CLIP.

    Args:
        name: an open_clip model name or a built-in one; None to take all sizes from an
            OpenAI-layout file.
        weights: a pretrained tag, a local file, or "builtin".
        config: an open_clip model-config JSON of one's own, in place of a name; wants a local file
            of weights.
        quick_gelu: the recipe's word on the activation, for weights that do not say.
        device: where to put it.
        cache_folder: where features of frozen texts are kept between runs; None keeps them in
            memory.

    Raises:
        RecipeError: unknown name or tag, contradictory activation, an architecture that kdedge does
            not prompt.
        DataError: the file of weights is damaged or is another model's.
        SetupError: the weights would have to be downloaded and cannot be.
    """
    found = resolve(name, weights, config, quick_gelu, check=build_empty)
    return make_backbone(
        _build(found.label, found.model_config, found.weights),
        name=found.label,
        preprocess=found.preprocess,
        device=device,
        cache_folder=cache_folder,
    )


def make_backbone(
    model: CLIP,
    *,
    name: str,
    preprocess: Preprocess,
    device: torch.device | str = "cpu",
    cache_folder: Path | None = None,
) -> Backbone:
    """Makes a backbone of a frozen CLIP that is built already; its blocks are replaced in place."""
    if why_no_prompts(model.visual) is None:
        make_wrappable(model.visual.transformer)
    make_wrappable(model.transformer)
    weights_hash = hash_weights(model.state_dict())
    architecture = describe_image_tower(model.visual) + _describe_blocks(model.transformer)
    return Backbone(
        name=name,
        model=model.to(device),
        preprocess=preprocess,
        tokenizer=_tokenizer(model.context_length),
        weights_hash=weights_hash,
        identity=sha256_json([weights_hash, architecture, preprocess.as_dict()]),
        text_cache=TextFeatureCache(cache_folder),
    )


def describe_image_tower(visual: nn.Module) -> list[list[Any]]:
    """What decides an image tower's features and is in no tensor's shape."""
    if why_no_prompts(visual) is None:
        return _describe_blocks(visual.transformer)
    return [[type(layer).__name__, getattr(layer, "num_heads", None)] for layer in visual.modules()]


def _describe_blocks(transformer: Transformer) -> list[list[Any]]:
    """Activation and heads of each block of a CLIP transformer."""
    return [
        [type(block.mlp.gelu).__name__, block.attn.num_heads] for block in transformer.resblocks
    ]


@functools.cache
def _tokenizer(context_length: int) -> SimpleTokenizer:
    """CLIP's tokenizer; to read its table takes as long as to load a small model."""
    return SimpleTokenizer(context_length=context_length)


def _build(label: str, model_config: Mapping[str, Any], weights: Weights) -> CLIP:
    """Builds open_clip's CLIP from a config and fills it strictly."""
    model = build_empty(label, model_config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    match_state_dict(shapes, weights.state_dict, label)
    if why_no_prompts(model.visual) is None:
        model = model.to_empty(device="cpu")
    else:
        model = build_filled(label, model_config)
    model.load_state_dict({key: weights.state_dict[key].float() for key in shapes})
    model.attn_mask = None  # the towers here mask by position
    return model.float().eval().requires_grad_(False)


def hash_weights(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted keys: each key's bytes, then its float32 bytes."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        digest.update(key.encode())
        digest.update(state_dict[key].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
