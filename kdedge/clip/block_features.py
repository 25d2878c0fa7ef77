"""Features of several blocks of a frozen image encoder, pooled over positions.

For CLIP's ViT: the projected features, then of each chosen block its class token and the mean of
its other tokens, which the last block does not compute. For an encoder of timm: the pooled
features, then the mean over positions of each chosen stage or block.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from kdedge.clip.architecture import is_promptable_vit
from kdedge.clip.vision import embed_patches


class BlockFeatures(nn.Module):
    """Image encoder -> [B, D_blocks], of which the first D are the encoder's own features.

    Args:
        visual: a frozen image encoder.
        n_blocks: number of blocks, spread evenly up to the last; fewer where the encoder has fewer,
            and none where it does not show them.
    """

    def __init__(self, visual: nn.Module, n_blocks: int) -> None:
        super().__init__()
        self.visual = visual
        n_all = _n_blocks(visual)
        n = min(n_all, n_blocks)
        self.chosen = tuple((index + 1) * n_all // n - 1 for index in range(n))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized -> [B, D_blocks]."""
        visual = self.visual
        if not self.chosen:
            features: Tensor = visual(images)
            return features
        if isinstance(visual, VisionTransformer):
            return self._of_clip(visual, images)
        # open_clip wraps an encoder of timm as `trunk`, with a `head` after it
        encoder: Any = visual
        trunk = getattr(encoder, "trunk", encoder)
        last, maps = trunk.forward_intermediates(images, indices=list(self.chosen))
        features = trunk.forward_head(last)
        features = features if trunk is encoder else encoder.head(features)
        return torch.cat([features, *(one.mean(dim=(2, 3)) for one in maps)], dim=1)

    def _of_clip(self, visual: VisionTransformer, images: Tensor) -> Tensor:
        tokens = embed_patches(visual, images)
        blocks, features = visual.transformer.resblocks, []
        for index, block in enumerate(blocks):
            is_last = index == len(blocks) - 1
            tokens = block(tokens, queries=tokens[:, :1] if is_last else None)
            if index in self.chosen:
                features.append(tokens[:, 0])
                if not is_last:
                    features.append(tokens[:, 1:].mean(dim=1))
        return torch.cat([visual.ln_post(tokens[:, 0]) @ visual.proj, *features], dim=1)


def _n_blocks(visual: nn.Module) -> int:
    """How many blocks or stages an encoder shows; 0 for one that gives its features alone."""
    if isinstance(visual, VisionTransformer) and is_promptable_vit(visual):
        return len(visual.transformer.resblocks)
    trunk: Any = getattr(visual, "trunk", visual)
    if not hasattr(trunk, "forward_intermediates") or not hasattr(trunk, "forward_head"):
        return 0
    return len(trunk.feature_info)
