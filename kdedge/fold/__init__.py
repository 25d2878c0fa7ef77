"""The exact folds of a student into one plain graph.

Every fold is exact up to rounding:

- `(pixels - mean) / std` moves into the weight and bias of the first convolution (`stem`);
- CLIP's ViT with prompts is folded in `vit`, any other image encoder in `encoder`;
- projector, `scale` and class vectors are folded into the head (`head`). If the projector has only
  one linear layer, it is folded into the fused head together with the encoder's last linear layer.

Sums are computed in float64 and stored in float32.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from kdedge.clip.architecture import is_promptable_vit
from kdedge.clip.backbone import count_features
from kdedge.errors import DataError
from kdedge.fold.encoder import FoldedEncoder
from kdedge.fold.head import FoldedModel, FoldRequest
from kdedge.fold.vit import FoldedViT
from kdedge.methods.base import ImageModules

__all__ = ["FoldRequest", "FoldedModel", "fold"]


@torch.no_grad()
def fold(modules: ImageModules, request: FoldRequest) -> FoldedModel:
    """Folds a trained student into a plain module.

    Args:
        modules: the modules that an image passes through.
        request: class vectors, preprocessing and form of the graph.

    Returns:
        A module in evaluation mode on the CPU; it shares no tensor with `modules`.

    Raises:
        RecipeError: the image encoder refuses the image size, or a wrapped layer in CLIP's ViT is
            not linear.
        DataError: the class vectors have another dimension than the student's features.
    """
    prompts = modules.visual_prompts
    projector = modules.projector
    vectors = request.class_vectors
    offsets = request.offsets
    if projector is None:
        dim = count_features(modules.visual, "The image encoder", request.preprocess.size_px)
    else:
        dim = projector.linears[-1].out_features
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise DataError(
            f"Class vectors of shape {list(vectors.shape)} do not fit image features of"
            f" dimension {dim}.\n"
            "  They belong to another teacher: export a run with its own class vectors."
        )
    modules = replace(
        modules,
        visual=copy.deepcopy(modules.visual).float().cpu(),
        visual_prompts=None if prompts is None else prompts.detach().clone().float().cpu(),
        projector=None if projector is None else copy.deepcopy(projector).float().cpu(),
    )
    request = replace(
        request,
        class_vectors=vectors.detach().cpu(),
        offsets=None if offsets is None else offsets.detach().double().cpu(),
    )
    kind = FoldedViT if is_promptable_vit(modules.visual) else FoldedEncoder
    return kind(modules, request).eval().requires_grad_(False)
