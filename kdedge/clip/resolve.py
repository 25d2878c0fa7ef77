"""Which config, weights and preprocessing a recipe's words on a model mean.

Weights come by pretrained tag, from a local file (`clip/weights.py` says which kinds), from a file
beside a model config of one's own, or built in for the demo. Which GELU the towers run is decided
by the weights: QuickGELU weights under erf-GELU lose accuracy without any error, so a contradiction
is an error here, and so is not knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from kdedge.clip.architecture import image_size, read_config
from kdedge.clip.builtin import BUILTIN_MODELS, builtin_model
from kdedge.clip.download import fetch_pretrained
from kdedge.clip.weights import Weights, describe_missing_weights, infer_config, read_weights
from kdedge.config.fields import looks_like_path
from kdedge.errors import RecipeError
from kdedge.runtime.preprocess import Preprocess

TIMM_PREFIX = "timm/"
"""Begins the name of a timm model, as on its hub."""


@dataclass(frozen=True)
class Resolved:
    """What a recipe's words on a model come down to.

    Attributes:
        label: what messages call the model.
        model_config: open_clip's, with the activation settled.
        weights: its own, read.
        preprocess: what its images went through in pre-training.
    """

    label: str
    model_config: dict[str, Any]
    weights: Weights
    preprocess: Preprocess


Check = Callable[[str, Mapping[str, Any]], object]
"""Raises what is wrong with a model config, before its weights are read or fetched."""


def resolve(
    name: str | None,
    weights: str | None,
    config: Path | None,
    quick_gelu: bool | None,
    *,
    check: Check,
) -> Resolved:
    """Finds config, weights and preprocessing; arguments and errors as of `load_backbone`."""
    if name is not None and name.startswith(TIMM_PREFIX):
        raise RecipeError(
            f"{name} has seen no texts: without a text tower it can only be a student.\n"
            "  Use it as one that answers with its teacher's class vectors (method: promptkd,"
            " settings: {tune: full}), or choose a CLIP such as ViT-B-16."
        )
    if name in BUILTIN_MODELS:
        model_config, state_dict = builtin_model(name)
        loaded = Weights(state_dict, None, "", "safetensors")
        return Resolved(name, model_config, loaded, _default_preprocess(model_config))
    if config is not None:
        if weights is None:
            raise RecipeError(f"config: {config} has no weights.\n  Name their file under weights.")
        model_config = read_config(config)
        check(config.name, model_config)
        loaded = read_weights(Path(weights).expanduser())
        declared = model_config.get("quick_gelu", False)
        settled = _settle_quick_gelu(config.name, declared, quick_gelu, loaded.quick_gelu)
        settled_config = {**model_config, "quick_gelu": settled}
        return Resolved(config.stem, settled_config, loaded, _default_preprocess(model_config))
    if weights is not None and looks_like_path(weights):
        return _resolve_file(name, Path(weights).expanduser(), quick_gelu)
    if name is None or weights is None:
        raise RecipeError(
            f"A backbone needs a name and weights, got backbone: {name} and weights: {weights}.\n"
            "  Name both (backbone: ViT-B-16, weights: openai), or a file of OpenAI's weights alone"
            " (.safetensors, .pt, .pth, .bin)."
        )
    return _resolve_tag(name, weights, quick_gelu, check)


def _resolve_file(name: str | None, path: Path, quick_gelu: bool | None) -> Resolved:
    """Weights from a local file, sizes by model name or from the file itself."""
    loaded = read_weights(path)
    if name is None:
        model_config = infer_config(loaded.state_dict)
        declared = None
    else:
        model_config = named_config(name)
        # A plain name says nothing: open_clip's ViT-B-16 has released weights of both kinds.
        declared = True if model_config.get("quick_gelu") else None
    settled = _settle_quick_gelu(name or path.name, declared, quick_gelu, loaded.quick_gelu)
    settled_config = {**model_config, "quick_gelu": settled}
    return Resolved(name or path.stem, settled_config, loaded, _default_preprocess(model_config))


def _resolve_tag(name: str, tag: str, quick_gelu: bool | None, check: Check) -> Resolved:
    """Weights by pretrained tag, from open_clip's own cache or its download."""
    model_config = named_config(name)
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    if not pretrained:
        raise describe_missing_weights(name, tag, None)
    check(name, model_config)
    try:
        path = fetch_pretrained(pretrained)
    # Each transport (urllib, the hub's client) has errors of its own, and all mean the same here.
    except Exception as error:
        raise describe_missing_weights(name, tag, error) from error
    declared = True if model_config.get("quick_gelu") else None
    by_tag = bool(pretrained.get("quick_gelu", False))
    settled = _settle_quick_gelu(name, declared, quick_gelu, by_tag)
    settled_config = {**model_config, "quick_gelu": settled}
    preprocess = pretrained_preprocess(model_config, pretrained)
    return Resolved(name, settled_config, read_weights(path), preprocess)


def pretrained_preprocess(
    model_config: Mapping[str, Any], pretrained: Mapping[str, Any]
) -> Preprocess:
    """The preprocessing of open_clip's entry for a pretrained tag; else CLIP's own."""
    return Preprocess(
        size_px=image_size(model_config),
        mean=tuple(pretrained.get("mean") or OPENAI_DATASET_MEAN),
        std=tuple(pretrained.get("std") or OPENAI_DATASET_STD),
        interpolation=pretrained.get("interpolation") or "bicubic",
        resize_mode=pretrained.get("resize_mode") or "shortest",
    )


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


def named_config(name: str) -> dict[str, Any]:
    """open_clip's config of a model.

    Raises:
        RecipeError: it knows no such model.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise describe_missing_weights(name, None, None)
    return dict(config)


def _default_preprocess(model_config: Mapping[str, Any]) -> Preprocess:
    """CLIP's own preprocessing, in the model's size."""
    return pretrained_preprocess(model_config, {})
