"""The image encoder: with visual prompts, and the features of its blocks.

The convention is IVLP's, which PromptSRC and PromptKD share (PromptSRC, arXiv:2307.06948, section
3; VPT-deep, arXiv:2203.12119). The first block gets its prompts after the patches and before
`ln_pre`, without a positional embedding. In each further prompted block, new prompts replace the
outputs at those positions. After the last prompted block, the prompt tokens are ordinary tokens.

With token merging (`clip/token_merging.py`), each block but the last leaves fewer patch tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from kdedge.clip.architecture import is_promptable_vit
from kdedge.clip.blocks import AttentionBlock
from kdedge.clip.token_merging import log_sizes, merge


def encode_image(
    visual: nn.Module,
    images: Tensor,
    visual_prompts: Tensor | None = None,
    *,
    merge_tokens: int = 0,
) -> Tensor:
    """Encodes a batch of images with a CLIP's image encoder.

    Two shortcuts are exact: prompts whose outputs are replaced compute keys and values only, once
    per batch; the last block and `ln_post` run for the class token only. An encoder other than
    CLIP's ViT runs as open_clip or timm implements it.

    Args:
        visual: the image encoder of a backbone, or a copy of it.
        images: [B, 3, H, W], normalized.
        visual_prompts: [depth, n_ctx_vision, D_vision], or None for plain CLIP. Gradients reach
            them. Only CLIP's ViT takes prompts.
        merge_tokens: r, the patch tokens that each block merges into others; 0 for none. Only
            CLIP's ViT merges tokens. See `max_merge_tokens`.

    Returns:
        [B, D], not normalized (`image_features_raw`).
    """
    if not is_promptable_vit(visual):
        assert visual_prompts is None or visual_prompts.numel() == 0
        assert merge_tokens == 0
        plain: Tensor = visual(images)
        return plain
    assert isinstance(visual, VisionTransformer)
    tokens = _embed_patches(visual, images)
    n_patches = tokens.shape[1] - 1
    sizes: Tensor | None = None  # patches in each patch token
    depth = 0 if visual_prompts is None else len(visual_prompts)
    blocks = visual.transformer.resblocks
    last = len(blocks) - 1
    for index, block in enumerate(blocks):
        memory = None
        if visual_prompts is not None and index < depth:
            prompts = visual_prompts[index]  # [n_ctx_vision, D_vision]
            if index == 0:
                prompts = visual.ln_pre(prompts)
            if index < depth - 1 or index == last:
                memory = prompts
            else:
                tokens = torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], dim=1)
        n_keys = tokens.shape[1] + (0 if memory is None else len(memory))
        bias = None if sizes is None else log_sizes(sizes, n_keys)
        assert isinstance(block, AttentionBlock)  # see `make_wrappable`
        if index == last or merge_tokens == 0:
            queries = tokens[:, :1] if index == last else None
            tokens = block(tokens, queries=queries, memory=memory, attn_mask=bias)
            continue
        attended, keys = block.attend(tokens, queries=tokens, memory=memory, attn_mask=bias)
        # Sums of tokens and similarities in the tokens' own precision, which is float32
        with torch.autocast(tokens.device.type, enabled=False):
            merged, sizes = merge(
                attended, sizes, keys.to(attended.dtype), n_patches=n_patches, r=merge_tokens
            )
        n_patches -= merge_tokens
        tokens = block.feed_forward(merged)
    features: Tensor = visual.ln_post(tokens[:, 0]) @ visual.proj
    return features


def _embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1 + patches, D_vision]: patches, class token, positions, `ln_pre`."""
    patches = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, patches, D_vision]
    # Not `len`, which would fix the batch size of an exported graph
    class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
    tokens = torch.cat([class_token, patches.to(class_token.dtype)], dim=1)
    embedded: Tensor = visual.ln_pre(tokens + visual.positional_embedding)
    return embedded


class BlockFeatures(nn.Module):
    """Image encoder -> [B, D_blocks], of which the first D are the encoder's own features.

    Args:
        visual: a frozen image encoder.
        n_blocks: number of blocks, spread evenly up to the last; all blocks if the encoder has
            fewer, and no block if it does not expose their outputs.
    """

    def __init__(self, visual: nn.Module, n_blocks: int) -> None:
        super().__init__()
        self.visual = visual
        n_all = _n_blocks(visual)
        n = min(n_all, n_blocks)
        self.chosen = tuple((index + 1) * n_all // n - 1 for index in range(n))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized -> [B, D_blocks], float32."""
        visual = self.visual
        if not self.chosen:
            features: Tensor = visual(images)
            return features.float()
        if isinstance(visual, VisionTransformer):
            return self._clip_features(visual, images)
        # open_clip wraps an encoder of timm as `trunk`, with a `head` after it
        encoder: Any = visual
        trunk = getattr(encoder, "trunk", encoder)
        last, maps = trunk.forward_intermediates(images, indices=list(self.chosen))
        features = trunk.forward_head(last)
        features = features if trunk is encoder else encoder.head(features)
        pooled = [output.mean(dim=(2, 3)) for output in maps]
        return torch.cat([features, *pooled], dim=1).float()

    def _clip_features(self, visual: VisionTransformer, images: Tensor) -> Tensor:
        tokens = _embed_patches(visual, images)
        blocks = visual.transformer.resblocks
        features = []
        for index, block in enumerate(blocks):
            is_last = index == len(blocks) - 1
            tokens = block(tokens, queries=tokens[:, :1] if is_last else None)
            if index in self.chosen:
                features.append(tokens[:, 0])
                if not is_last:
                    features.append(tokens[:, 1:].mean(dim=1))
        return torch.cat([visual.ln_post(tokens[:, 0]) @ visual.proj, *features], dim=1).float()


def _n_blocks(visual: nn.Module) -> int:
    """Number of blocks or stages whose outputs an encoder exposes; 0 if it exposes none."""
    if isinstance(visual, VisionTransformer) and is_promptable_vit(visual):
        return len(visual.transformer.resblocks)
    trunk: Any = getattr(visual, "trunk", visual)
    if not hasattr(trunk, "forward_intermediates") or not hasattr(trunk, "forward_head"):
        return 0
    return len(trunk.feature_info)
