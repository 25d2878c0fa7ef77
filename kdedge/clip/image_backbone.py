"""An image tower alone: for a student that answers with its teacher's class vectors.

It comes from a CLIP whose text tower does not run here (MobileCLIP, SigLIP), or from timm, where no
text was seen. It has no zero-shot answers and no logit scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from kdedge._files import sha256_json
from kdedge.clip.architecture import (
    build_image_tower,
    has_own_text_tower,
    read_config,
    why_no_prompts,
)
from kdedge.clip.backbone import Backbone, describe_image_tower, hash_weights
from kdedge.clip.blocks import make_wrappable
from kdedge.clip.builtin import BUILTIN_MODELS
from kdedge.clip.resolve import TIMM_PREFIX, pretrained_preprocess, resolve
from kdedge.clip.timm_tower import load_timm_tower
from kdedge.clip.vision import encode_image
from kdedge.clip.weights import match_state_dict
from kdedge.config._fields import looks_like_path
from kdedge.errors import RecipeError
from kdedge.runtime.preprocess import Preprocess

_PREFIX = "visual."
"""Before the image tower's names in a CLIP's state dict."""


@dataclass(frozen=True, eq=False)
class ImageBackbone:
    """A frozen image tower in float32 and evaluation mode.

    Attributes:
        name: what it is called in tables and messages.
        visual: [B, 3, H, W] -> [B, embed_dim]; no parameter has a gradient.
        preprocess: what its images went through in pre-training.
        weights_hash: as `Backbone.weights_hash`, of the tower's own state dict.
        identity: hash of everything that decides its features.
        embed_dim: D.
        is_trained_with_texts: whether it was trained with texts.
    """

    name: str
    visual: nn.Module
    preprocess: Preprocess
    weights_hash: str
    identity: str
    embed_dim: int
    is_trained_with_texts: bool

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.visual.parameters()).device


AnyBackbone = Backbone | ImageBackbone


def has_texts(name: str | None, config: Path | None) -> bool:
    """Whether a recipe's backbone has a text tower that runs here.

    Args:
        name: as of `load_backbone`. What is no model at all is for that to refuse.
        config: as of `load_backbone`.

    Raises:
        DataError: the config is none.
        RecipeError: open_clip cannot build it.
    """
    if config is not None:
        return has_own_text_tower(config.name, read_config(config))
    if name is None or name in BUILTIN_MODELS:
        return True
    if name.startswith(TIMM_PREFIX):
        return False
    model_config = open_clip.get_model_config(name)
    return model_config is None or has_own_text_tower(name, model_config)


def load_image_backbone(
    *,
    name: str | None,
    weights: str | None,
    config: Path | None = None,
    quick_gelu: bool | None = None,
    device: torch.device | str = "cpu",
) -> ImageBackbone:
    """Loads the image tower of a model whose texts do not run here; `has_texts` says which.

    Args:
        name: an open_clip model name, or `timm/` and timm's name of a model.
        weights: a pretrained tag or a file of the whole model; of timm's, `pretrained` or a file.
        config: as of `load_backbone`.
        quick_gelu: as of `load_backbone`.
        device: where to put it.

    Raises:
        RecipeError: unknown name or tag, contradictory activation, images or features that kdedge
            does not prepare or take.
        DataError: the file of weights is damaged or is another model's.
        SetupError: the weights would have to be downloaded and cannot be.
    """
    if name is not None and name.startswith(TIMM_PREFIX):
        visual, preprocess = load_timm_tower(name, weights)
        return make_image_backbone(
            visual, name=name, preprocess=preprocess, is_trained_with_texts=False, device=device
        )
    found = resolve(name, weights, config, quick_gelu, check=_build_empty)
    preprocess = found.preprocess
    if name is not None and weights is not None and looks_like_path(weights):
        preprocess = agreed_preprocess(name, found.model_config) or preprocess
    visual = _build(found.label, found.model_config, found.weights.state_dict)
    return make_image_backbone(
        visual, name=found.label, preprocess=preprocess, is_trained_with_texts=True, device=device
    )


def make_image_backbone(
    visual: nn.Module,
    *,
    name: str,
    preprocess: Preprocess,
    is_trained_with_texts: bool,
    device: torch.device | str = "cpu",
) -> ImageBackbone:
    """Makes a backbone of an image tower that is built already; its blocks are replaced in place.

    Raises:
        RecipeError: it gives something other than one vector an image.
    """
    visual = visual.float().eval().requires_grad_(False)
    if why_no_prompts(visual) is None:
        make_wrappable(visual.transformer)
    weights_hash = hash_weights(visual.state_dict())
    made_of = [weights_hash, describe_image_tower(visual), preprocess.as_dict()]
    return ImageBackbone(
        name=name,
        visual=visual.to(device),
        preprocess=preprocess,
        weights_hash=weights_hash,
        identity=sha256_json(made_of),
        embed_dim=_n_features(visual, name, preprocess.size_px),
        is_trained_with_texts=is_trained_with_texts,
    )


@torch.no_grad()
def _n_features(visual: nn.Module, name: str, size_px: int) -> int:
    """D, by encoding one image: no attribute of a timm model says it for all of them."""
    device = next(visual.parameters()).device
    features = encode_image(visual, torch.zeros(1, 3, size_px, size_px, device=device))
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise RecipeError(
            f"{name} gives {got} for one image; expected one vector of features, [1, D].\n"
            "  Choose a model with pooled features."
        )
    return features.shape[1]


def _build_empty(label: str, model_config: Mapping[str, Any]) -> nn.Module:
    return build_image_tower(label, model_config, device="meta")


def _build(label: str, model_config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Any:
    """Builds a config's image tower and fills it strictly from the whole model's state dict."""
    tower = _build_empty(label, model_config)
    own = {
        key.removeprefix(_PREFIX): value
        for key, value in state_dict.items()
        if key.startswith(_PREFIX)
    }
    shapes = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    match_state_dict(shapes, own, f"{label}, image tower")
    if why_no_prompts(tower) is None:
        tower = tower.to_empty(device="cpu")
    else:  # with tensors, perhaps, that no file of weights holds
        tower = build_image_tower(label, model_config, device="cpu")
    tower.load_state_dict({key: own[key].float() for key in shapes})
    return tower


def agreed_preprocess(name: str, model_config: Mapping[str, Any]) -> Preprocess | None:
    """What all published weights of a model want: a file of weights says nothing of it itself."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    found = {
        pretrained_preprocess(model_config, open_clip.get_pretrained_cfg(name, tag)) for tag in tags
    }
    return found.pop() if len(found) == 1 else None
