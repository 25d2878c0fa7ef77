"""Model configs of the CLIPs that kdedge runs, read and checked before their weights.

kdedge runs CLIP's own text encoder. Of a model with another text encoder it can only use the image
encoder, which may be any of open_clip's; only CLIP's ViT takes visual prompts.

A user may write a config, so every failure of open_clip to build one is reported as an error in the
config. A config for which open_clip would fetch an encoder or a tokenizer is refused first.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from pydantic import BaseModel, ConfigDict
from torch import nn

from kdedge.clip.blocks import AttentionBlock
from kdedge.errors import RecipeError
from kdedge.messages import one_line
from kdedge.records.record import read_record

VOCAB_SIZE = 49408
"""Tokens of CLIP's byte-pair tokenizer (openai/CLIP, clip/simple_tokenizer.py)."""

_OTHER_TEXT_ENCODER = ("hf_model_name",)
_OTHER_TOKENIZER = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")


class _Config(BaseModel):
    """The keys of a config that this module reads; open_clip checks the others."""

    model_config = ConfigDict(extra="allow")

    embed_dim: Any
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    quick_gelu: bool = False


def read_config(path: Path) -> dict[str, Any]:
    """Reads an open_clip model config.

    Raises:
        DataError: the file is not a JSON object with `embed_dim`, `vision_cfg` and `text_cfg`.
    """
    remedy = "An open_clip model config is an object with embed_dim, vision_cfg and text_cfg."
    return read_record(_Config, path, remedy=remedy).model_dump(exclude_unset=True)


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def image_size(model_config: Mapping[str, Any]) -> int:
    """The side of a config's images in pixels.

    Raises:
        RecipeError: the images are not square, or the value is not a size.
    """
    size = model_config["vision_cfg"].get("image_size", 224)
    sides = size if isinstance(size, list | tuple) else (size, size)
    is_size = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    if not is_size or sides[0] != sides[1]:
        raise RecipeError(
            f"vision_cfg.image_size is {_shortened(size)}; expected the side of a square in pixels,"
            " such as 224.\n"
            "  Choose a model with square images."
        )
    return int(sides[0])


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of a CLIP's encoders, as far as its config has them.

    Attributes:
        n_layers: encoder (`image`, `text`) -> number of layers.
        n_patches: patch tokens of an image, for a ViT.
    """

    n_layers: Mapping[str, int] = field(default_factory=dict)
    n_patches: int | None = None


def encoder_sizes(model_config: Mapping[str, Any]) -> EncoderSizes:
    """Reads the sizes from a config; missing keys have open_clip's defaults."""
    vision = model_config["vision_cfg"]
    text = model_config["text_cfg"]
    layers = {"image": vision.get("layers", 12), "text": text.get("layers", 12)}
    if vision.get("timm_model_name"):
        del layers["image"]
    n_layers = {encoder: number for encoder, number in layers.items() if type(number) is int}
    patch = vision.get("patch_size", 16)
    side = vision.get("image_size", 224)
    is_vit = "image" in n_layers and type(patch) is int and type(side) is int and patch > 0
    return EncoderSizes(n_layers, (side // patch) ** 2 if is_vit else None)


def build_clip(label: str, model_config: Mapping[str, Any], *, device: str = "meta") -> CLIP:
    """Builds open_clip's CLIP from a config.

    Args:
        label: the model's name in messages.
        model_config: an open_clip config, with `vision_cfg` and `text_cfg`.
        device: meta for shapes without values; cpu for initial values.

    Raises:
        RecipeError: open_clip cannot build the model, or its text encoder is not CLIP's own.
    """
    problem = _text_problem(label, model_config)
    if problem is not None:
        raise RecipeError(
            f"kdedge cannot use {label}: {problem}.\n"
            "  kdedge runs CLIPs with CLIP's own text encoder and tokenizer, such as ViT-B-16 or"
            " RN50.\n"
            "  Another model's image encoder can be a student: promptkd with class_vectors:"
            " teacher."
        )
    return _construct(label, model_config, device=device)


def has_clip_text_encoder(label: str, model_config: Mapping[str, Any]) -> bool:
    """Whether a config's text encoder and tokenizer are CLIP's own.

    Raises:
        RecipeError: open_clip cannot build the model.
    """
    return _text_problem(label, model_config) is None


def build_image_encoder(label: str, model_config: Mapping[str, Any], *, device: str) -> nn.Module:
    """Builds the image encoder of a config, whatever its text encoder is.

    Args:
        label: the model's name in messages.
        model_config: an open_clip config, with `vision_cfg`.
        device: meta for shapes without values; cpu for initial values.

    Raises:
        RecipeError: open_clip cannot build the encoder.
    """
    vision = {**model_config["vision_cfg"], "output_tokens": False}  # CoCa's gives two outputs
    config = {
        "embed_dim": model_config["embed_dim"],
        "vision_cfg": vision,
        "quick_gelu": model_config.get("quick_gelu", False),
        "text_cfg": {"width": 8, "heads": 1, "layers": 1},  # as small as possible: it is dropped
    }
    visual: nn.Module = _construct(label, config, device=device).visual
    return visual


def _construct(label: str, model_config: Mapping[str, Any], *, device: str) -> CLIP:
    vision = model_config["vision_cfg"]
    timm_name = str(vision.get("timm_model_name") or "")
    if ":" in timm_name:
        raise RecipeError(
            f"{label}: timm would download its image encoder ({_shortened(timm_name)}), which"
            " kdedge does not allow.\n"
            "  Name an architecture of timm, such as convnext_base."
        )
    image_size(model_config)
    arguments = {key: value for key, value in model_config.items() if key != "custom_text"}
    if timm_name:  # its values come from the CLIP's file of weights
        arguments["vision_cfg"] = {**vision, "timm_model_pretrained": False}
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return _empty_clip(json.dumps(arguments)) if device == "meta" else CLIP(**arguments)
    # Wrong values make open_clip and torch raise different errors, depending on where they are used
    except (
        TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, LookupError,
        RuntimeError,
    ) as error:  # fmt: skip
        raise RecipeError(
            f"{label}: open_clip cannot build this model config: {one_line(error)}.\n"
            "  Compare its vision_cfg and text_cfg with one of open_clip's own configs, such as"
            " ViT-B-16."
        ) from error


@functools.lru_cache(maxsize=8)
def _empty_clip(config: str) -> CLIP:
    """A config's CLIP on the meta device; built once for all who check it: nobody may change it."""
    return CLIP(**json.loads(config))


def is_promptable_vit(visual: nn.Module) -> bool:
    """Whether an image encoder is CLIP's ViT, which takes visual prompts."""
    return why_no_prompts(visual) is None


def why_no_prompts(visual: nn.Module) -> str | None:
    """Says why an image encoder takes no visual prompts; None for CLIP's ViT, which does."""
    if not isinstance(visual, VisionTransformer):
        return f"is a {type(getattr(visual, 'trunk', visual)).__name__}"
    unsupported = {
        "has attentional pooling": visual.attn_pool is not None,
        "has average pooling": visual.pool_type != "tok",
        "has a layer norm after pooling": visual.final_ln_after_pool,
        "has no layer norm before its blocks": isinstance(visual.ln_pre, nn.Identity),
        "has blocks of its own": not _has_clip_blocks(visual.transformer),
    }
    return next((what for what, is_there in unsupported.items() if is_there), None)


def _has_clip_blocks(transformer: Transformer) -> bool:
    kinds = (ResidualAttentionBlock, AttentionBlock)
    return all(isinstance(block, kinds) for block in transformer.resblocks)


def _text_problem(label: str, model_config: Mapping[str, Any]) -> str | None:
    """Says what of a config's text encoder or tokenizer is not CLIP's own; None if all of it is."""
    return _foreign_text_part(model_config) or _unsupported_text(
        _construct(label, model_config, device="meta")
    )


def _foreign_text_part(model_config: Mapping[str, Any]) -> str | None:
    """Says why a config's text encoder or tokenizer is not CLIP's own; None if both are."""
    text = model_config["text_cfg"]
    known = {field.name for field in dataclasses.fields(open_clip.CLIPTextCfg)}
    if (
        set(text) - known
        or any(text.get(key) for key in _OTHER_TEXT_ENCODER)
        or model_config.get("custom_text")
        or "multimodal_cfg" in model_config
    ):
        return "its text encoder is not CLIP's own"
    used = [key for key in _OTHER_TOKENIZER if text.get(key)]
    if used:
        return f"its tokenizer is not CLIP's (text_cfg.{used[0]}: {_shortened(text[used[0]])})"
    vocab_size = text.get("vocab_size", VOCAB_SIZE)
    if vocab_size != VOCAB_SIZE:
        return (
            f"its tokenizer is not CLIP's (text_cfg.vocab_size: {_shortened(vocab_size)}, expected"
            f" {VOCAB_SIZE})"
        )
    return None


def _unsupported_text(model: CLIP) -> str | None:
    """Names a part of a text encoder that `encode_text` does not compute; None if there is none."""
    unsupported = {
        "text pooling other than the end token": model.text_pool_type != "argmax",
        "a linear text projection": not isinstance(model.text_projection, nn.Parameter),
        "no causal text mask": model.attn_mask is None,
        "a logit bias": model.logit_bias is not None,
        "text blocks of its own": not _has_clip_blocks(model.transformer),
    }
    return next((f"it has {what}" for what, is_there in unsupported.items() if is_there), None)
