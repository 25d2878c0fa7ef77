"""A student with a folded, compressed image encoder, which is trained like any other."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from kdedge.clip.image_backbone import count_features
from kdedge.compression.sparsity import can_be_sparse, fix_zeros, is_sparse
from kdedge.config.recipe import StudentSpec
from kdedge.errors import RecipeError
from kdedge.fold import FoldedModel, fold
from kdedge.fold.layers import inner_layers
from kdedge.fold.tower import make_plain
from kdedge.methods.protocol import ImagePath, Method, TakesEncoder
from kdedge.runtime.preprocess import Preprocess


@dataclass(frozen=True)
class Compression:
    """How a student's image encoder is compressed.

    Attributes:
        is_sparse: whether its layers have 2:4 zeros.
        preprocess: the preprocessing of its images.
    """

    is_sparse: bool
    preprocess: Preprocess

    def apply(self, method: Method) -> Method:
        """Folds a student's image encoder and compresses its layers, from their current weights.

        Args:
            method: plain or compressed; it is not changed.

        Returns:
            The same student with the compressed encoder, all of which is trained.

        Raises:
            RecipeError: the method's image encoder cannot be replaced.
        """
        if not isinstance(method, TakesEncoder):
            raise RecipeError(
                f"student.sparsity needs a method whose image encoder can be folded, but"
                f" {type(method).__module__.rpartition('.')[2]} has no with_encoder.\n"
                "  Use student.method: promptkd."
            )
        path = method.image_path()
        device = next(path.visual.parameters()).device
        encoder = fold_encoder(path, self.preprocess)
        if self.is_sparse:
            for layer in inner_layers(encoder, self.preprocess.size_px).values():
                if can_be_sparse(layer):
                    fix_zeros(layer)
        return method.with_encoder(encoder.requires_grad_(True).to(device))

    def layers(self, method: Method) -> Layers:
        """Names the layers of a compressed student's encoder."""
        sparse: list[str] = []
        dense: list[str] = []
        for name, module in method.image_path().visual.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                (sparse if is_sparse(module) else dense).append(name)
        return Layers(tuple(sparse), tuple(dense))


@dataclass(frozen=True)
class Layers:
    """The linear layers and convolutions of a compressed encoder, by what was done to them.

    Attributes:
        sparse: with 2:4 zeros.
        dense: all others, such as the first convolution and layers whose width is not divisible by
            four.
    """

    sparse: tuple[str, ...]
    dense: tuple[str, ...]

    def __str__(self) -> str:
        n_layers = len(self.sparse) + len(self.dense)
        dense = f"; dense: {', '.join(self.dense)}" if self.dense else ""
        return f"{len(self.sparse)} of {n_layers} layers get 2:4 zeros{dense}"

    def to_dict(self) -> dict[str, list[str]]:
        """Values for JSON."""
        return {"sparse": list(self.sparse), "dense": list(self.dense)}


def compression_of(spec: StudentSpec | None, preprocess: Preprocess) -> Compression | None:
    """The compression that a recipe's student asks for; None for a plain student."""
    if spec is None or not spec.compression:
        return None
    return Compression(spec.sparsity is not None, preprocess)


def fold_encoder(path: ImagePath, preprocess: Preprocess) -> FoldedModel:
    """A student's image encoder, from normalized images to [B, D_student], with plain layers.

    Prompts are folded into it. It shares no tensor with `path`.
    """
    if isinstance(path.visual, FoldedModel):
        folded = copy.deepcopy(path.visual)
        make_plain(folded)
        return folded.float().cpu().eval().requires_grad_(False)
    path = replace(path, projector=None)
    dim = count_features(path.visual, "The image encoder", preprocess.size_px)
    normalized = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    # Class vectors that are the axes of the feature space make the features the "logits"
    return fold(path, torch.eye(dim), scale=1.0, preprocess=normalized, head="argmax")
