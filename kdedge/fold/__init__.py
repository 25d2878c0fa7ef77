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
from torch import Tensor

from kdedge.clip.architecture import is_promptable_vit
from kdedge.clip.backbone import count_features
from kdedge.errors import ShapeError
from kdedge.fold.encoder import FoldedEncoder
from kdedge.fold.head import FoldedModel, FoldRequest
from kdedge.fold.vit import FoldedViT
from kdedge.methods.protocol import ImagePath
from kdedge.runtime.artifact import Head, Pixels
from kdedge.runtime.preprocess import Preprocess

__all__ = ["FoldedModel", "fold"]


@torch.no_grad()
def fold(
    path: ImagePath,
    class_vectors: Tensor,
    *,
    scale: float,
    preprocess: Preprocess,
    head: Head = "scores",
    pixels: Pixels = "float",
    open_classes: bool = False,
    offsets: Tensor | None = None,
) -> FoldedModel:
    """Folds a trained student into a plain module.

    Args:
        path: the modules of the student's image path.
        class_vectors: [C, D], unit length, in class-list order.
        scale: `logit_scale.exp()`.
        preprocess: its mean and std become part of the graph; resizing does not.
        head: `scores` keeps L2 normalization, `argmax` skips it.
        pixels: the graph takes 0-1 float or 0-255 uint8 pixels.
        open_classes: the graph gives features; class vectors and `scale` are not folded in.
        offsets: [C], subtracted from the logits (`data/balance.py`), or None. With open
            classes the features get a further one, which is 1: see `deploy.classes`.

    Returns:
        A module in evaluation mode on the CPU; it shares no tensor with `path`.

    Raises:
        RecipeError: the image encoder refuses the image size, or a wrapped layer in CLIP's ViT is
            not linear.
        ShapeError: the class vectors have another dimension than the student's features.
    """
    if path.projector is None:
        dim = count_features(path.visual, "The image encoder", preprocess.size_px)
    else:
        dim = path.projector.linears[-1].out_features
    if class_vectors.ndim != 2 or class_vectors.shape[1] != dim:
        raise ShapeError(
            f"Class vectors of shape {list(class_vectors.shape)} do not fit image features of"
            f" dimension {dim}.\n"
            "  They belong to another teacher: export a run with its own class vectors."
        )
    prompts, projector = path.visual_prompts, path.projector
    path = replace(
        path,
        visual=copy.deepcopy(path.visual).float().cpu(),
        visual_prompts=None if prompts is None else prompts.detach().clone().float().cpu(),
        projector=None if projector is None else copy.deepcopy(projector).float().cpu(),
    )
    request = FoldRequest(
        path.projector,
        class_vectors.detach().cpu(),
        scale=scale,
        preprocess=preprocess,
        head=head,
        pixels=pixels,
        open_classes=open_classes,
        offsets=None if offsets is None else offsets.detach().double().cpu(),
        has_unit_length=path.has_unit_length,
    )
    model: FoldedModel
    if is_promptable_vit(path.visual):
        model = FoldedViT(path.visual, path.visual_prompts, request, merge_tokens=path.merge_tokens)
    else:
        model = FoldedEncoder(path.visual, request)
    return model.eval().requires_grad_(False)
