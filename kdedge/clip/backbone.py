"""A frozen CLIP: open_clip's model, its weights' hash, its preprocessing and its tokenizer.

Weights come by pretrained tag, from a local file (`clip/weights.py` says which kinds), from a file
beside a model config of one's own, or built in for the demo. Which GELU the towers run is decided
by the weights: QuickGELU weights under erf-GELU lose accuracy without any error, so a contradiction
is an error here, and so is not knowing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import CLIP, SimpleTokenizer
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import Transformer
from torch import Tensor
from torch.nn import functional as F

from kdedge._files import sha256_json
from kdedge.clip.architecture import (
    build_empty,
    build_filled,
    image_size,
    read_config,
    why_no_prompts,
)
from kdedge.clip.builtin import BUILTIN_MODELS, builtin_model
from kdedge.clip.class_vectors import TextFeatureCache
from kdedge.clip.download import fetch_pretrained
from kdedge.clip.text import TokenizedTexts, encode_in_chunks, encode_text, tokenize
from kdedge.clip.vision import encode_image
from kdedge.clip.weights import (
    Weights,
    describe_missing_weights,
    infer_config,
    match_state_dict,
    read_weights,
)
from kdedge.config._fields import looks_like_path
from kdedge.errors import RecipeError
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
    label, model_config, loaded, preprocess = _resolve(name, weights, config, quick_gelu)
    return make_backbone(
        _build(label, model_config, loaded),
        name=label,
        preprocess=preprocess or _default_preprocess(model_config),
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
    """Makes a backbone of a frozen CLIP that is built already."""
    weights_hash = hash_weights(model.state_dict())
    architecture = _describe_blocks(model.transformer)
    if why_no_prompts(model.visual) is None:
        architecture = _describe_blocks(model.visual.transformer) + architecture
    else:  # what its layers are, of which heads are in no tensor's shape
        layers = model.visual.modules()
        kinds = [[type(layer).__name__, getattr(layer, "num_heads", None)] for layer in layers]
        architecture = kinds + architecture
    return Backbone(
        name=name,
        model=model.to(device),
        preprocess=preprocess,
        tokenizer=_tokenizer(model.context_length),
        weights_hash=weights_hash,
        identity=sha256_json([weights_hash, architecture, preprocess.as_dict()]),
        text_cache=TextFeatureCache(cache_folder),
    )


def _describe_blocks(transformer: Transformer) -> list[list[Any]]:
    """Activation and heads of each block of a CLIP transformer."""
    return [
        [type(block.mlp.gelu).__name__, block.attn.num_heads] for block in transformer.resblocks
    ]


@functools.cache
def _tokenizer(context_length: int) -> SimpleTokenizer:
    """CLIP's tokenizer; to read its table takes as long as to load a small model."""
    return SimpleTokenizer(context_length=context_length)


def _resolve(
    name: str | None, weights: str | None, config: Path | None, quick_gelu: bool | None
) -> tuple[str, dict[str, Any], Weights, Preprocess | None]:
    """Gives label, model config with its activation settled, weights and preprocessing."""
    if name in BUILTIN_MODELS:
        model_config, state_dict = builtin_model(name)
        return name, model_config, Weights(state_dict, None, "", "safetensors"), None
    if config is not None:
        if weights is None:
            raise RecipeError(f"config: {config} has no weights.\n  Name their file under weights.")
        model_config = read_config(config)
        build_empty(config.name, model_config)  # says what is wrong before weights are read
        loaded = read_weights(Path(weights).expanduser())
        declared = model_config.get("quick_gelu", False)
        settle = _settle_quick_gelu(config.name, declared, quick_gelu, loaded.quick_gelu)
        return config.stem, {**model_config, "quick_gelu": settle}, loaded, None
    if weights is not None and looks_like_path(weights):
        return _resolve_file(name, Path(weights).expanduser(), quick_gelu)
    if name is None or weights is None:
        raise RecipeError(
            f"A backbone needs a name and weights, got backbone: {name} and weights: {weights}.\n"
            "  Name both (backbone: ViT-B-16, weights: openai), or a file of OpenAI's weights alone"
            " (.safetensors, .pt, .pth, .bin)."
        )
    return _resolve_tag(name, weights, quick_gelu)


def _resolve_file(
    name: str | None, path: Path, quick_gelu: bool | None
) -> tuple[str, dict[str, Any], Weights, Preprocess | None]:
    """Weights from a local file, sizes by model name or from the file itself."""
    loaded = read_weights(path)
    if name is None:
        model_config = infer_config(loaded.state_dict)
        declared = None
    else:
        model_config = _named_config(name)
        # A plain name says nothing: open_clip's ViT-B-16 has released weights of both kinds.
        declared = True if model_config.get("quick_gelu") else None
    settled = _settle_quick_gelu(name or path.name, declared, quick_gelu, loaded.quick_gelu)
    return name or path.stem, {**model_config, "quick_gelu": settled}, loaded, None


def _resolve_tag(
    name: str, tag: str, quick_gelu: bool | None
) -> tuple[str, dict[str, Any], Weights, Preprocess | None]:
    """Weights by pretrained tag, from open_clip's own cache or its download."""
    model_config = _named_config(name)
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    if not pretrained:
        raise describe_missing_weights(name, tag, None)
    build_empty(name, model_config)  # what cannot be prompted is not downloaded
    try:
        path = fetch_pretrained(pretrained)
    # Each transport (urllib, the hub's client) has errors of its own, and all mean the same here.
    except Exception as error:
        raise describe_missing_weights(name, tag, error) from error
    declared = True if model_config.get("quick_gelu") else None
    by_tag = bool(pretrained.get("quick_gelu", False))
    settled = _settle_quick_gelu(name, declared, quick_gelu, by_tag)
    preprocess = Preprocess(
        size_px=image_size(model_config),
        mean=tuple(pretrained.get("mean") or OPENAI_DATASET_MEAN),
        std=tuple(pretrained.get("std") or OPENAI_DATASET_STD),
        interpolation=pretrained.get("interpolation") or "bicubic",
        resize_mode=pretrained.get("resize_mode") or "shortest",
    )
    return name, {**model_config, "quick_gelu": settled}, read_weights(path), preprocess


def _settle_quick_gelu(
    label: str, by_name: bool | None, by_recipe: bool | None, by_weights: bool | None
) -> bool:
    """Decides the activation; the weights have the last word and nobody may contradict them."""
    said = {
        key: value
        for key, value in (
            ("the weights", by_weights),
            ("the recipe's quick_gelu", by_recipe),
            ("the model's name or config", by_name),
        )
        if value is not None
    }
    kinds = {True: "QuickGELU", False: "GELU"}
    if not said:
        raise RecipeError(
            f"{label}: nothing says whether these weights were trained with QuickGELU or GELU.\n"
            "  Set quick_gelu: true (OpenAI's weights and those trained on from them) or"
            " quick_gelu: false beside weights."
        )
    if len(set(said.values())) > 1:
        lines = ", ".join(f"{who}: {kinds[value]}" for who, value in said.items())
        raise RecipeError(
            f"{label}: the activation is contradictory ({lines}).\n"
            "  The wrong one lowers accuracy without any other sign; name the model that the"
            " weights belong to."
        )
    return next(iter(said.values()))


def _named_config(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if config is None:
        raise describe_missing_weights(name, None, None)
    return dict(config)


def _default_preprocess(model_config: Mapping[str, Any]) -> Preprocess:
    """CLIP's own preprocessing, in the model's size."""
    return Preprocess(
        size_px=image_size(model_config), mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD
    )


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
