"""A frozen image encoder without a text encoder, for a student with its teacher's class vectors.

It comes from a CLIP whose text encoder kdedge does not run (MobileCLIP, SigLIP), or from timm,
where it was trained without texts. It has no zero-shot predictions and no logit scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kdedge.clip.architecture import is_promptable_vit
from kdedge.clip.backbone import Backbone
from kdedge.clip.blocks import make_wrappable
from kdedge.clip.weights import hash_weights
from kdedge.errors import RecipeError, is_out_of_memory
from kdedge.runtime.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class ImageBackbone:
    """A frozen image encoder in float32 and evaluation mode.

    Attributes:
        name: its name in tables and messages.
        visual: [B, 3, H, W] -> [B, embed_dim]; no parameter has a gradient.
        preprocess: the image preprocessing of its pre-training.
        identity: hash of everything that decides its features.
        embed_dim: D.
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


AnyBackbone: TypeAlias = Backbone | ImageBackbone


def make_image_backbone(
    visual: nn.Module,
    *,
    name: str,
    preprocess: Preprocess,
    is_trained_with_texts: bool,
    device: torch.device | str = "cpu",
    identity: str | None = None,
) -> ImageBackbone:
    """Makes a frozen backbone from an image encoder that is already built.

    The blocks of CLIP's ViT are replaced in place by blocks of plain linear layers.

    Args:
        visual: [B, 3, H, W] -> [B, D].
        name: its name in tables and messages.
        preprocess: the image preprocessing of its pre-training.
        is_trained_with_texts: whether it was trained with texts.
        device: device of the backbone.
        identity: hash of everything that decides its features; None hashes its weights.

    Raises:
        RecipeError: its output is not one vector per image.
    """
    visual = visual.float().eval().requires_grad_(False)
    if is_promptable_vit(visual):
        make_wrappable(visual.transformer)
    return ImageBackbone(
        name=name,
        preprocess=preprocess,
        identity=identity or hash_weights(visual.state_dict()),
        embed_dim=count_features(visual, name, preprocess.size_px),
        is_trained_with_texts=is_trained_with_texts,
        visual=visual.to(device),
    )


@torch.no_grad()
def count_features(visual: nn.Module, name: str, size_px: int) -> int:
    """D, measured by encoding one image, as no attribute holds it in every timm model.

    Raises:
        RecipeError: the encoder's output is not one vector per image, or it refuses the size.
    """
    device = next(visual.parameters()).device
    try:
        features = visual(torch.zeros(1, 3, size_px, size_px, device=device))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise RecipeError(
            f"{name} cannot encode images of {size_px}x{size_px} pixels: {reason}.\n"
            "  Set the image size that its architecture was built for, or choose another model."
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise RecipeError(
            f"{name} gives {got} for one image; expected one vector of features, [1, D].\n"
            "  Choose a model with pooled features."
        )
    return features.shape[1]
