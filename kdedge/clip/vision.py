"""The image encoder, with visual prompts.

Convention: IVLP's, which PromptSRC and PromptKD share (PromptSRC, arXiv:2307.06948, section 3;
VPT-deep, arXiv:2203.12119). The first block gets its prompts after the patches and before `ln_pre`,
without a positional embedding; each further prompted block gets prompts of its own in place of the
outputs at those positions; after the last prompted block the prompt tokens travel on as ordinary
tokens.
"""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from kdedge.clip.architecture import why_no_prompts
from kdedge.clip.blocks import AttentionBlock


def encode_image(visual: nn.Module, images: Tensor, visual_prompts: Tensor | None = None) -> Tensor:
    """Encodes a batch of images with a CLIP's image tower.

    Exact savings, against running every block on every token: prompts whose outputs are replaced
    give keys and values only, computed once a batch; the last block and `ln_post` run for the class
    token alone. A tower other than CLIP's ViT runs as open_clip has it.

    Args:
        visual: the image tower.
        images: [B, 3, H, W], normalized.
        visual_prompts: [depth, n_ctx_vision, D_vision], or None for plain CLIP. Gradients reach
            them. For CLIP's ViT alone.

    Returns:
        [B, D], not normalized (`image_features_raw`).
    """
    if why_no_prompts(visual) is not None:
        assert visual_prompts is None or visual_prompts.numel() == 0
        plain: Tensor = visual(images)
        return plain
    assert isinstance(visual, VisionTransformer)
    tokens = _embed(visual, images)
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
        queries = tokens[:, :1] if index == last else None
        assert isinstance(block, AttentionBlock)  # `make_wrappable` has been called
        tokens = block(tokens, queries=queries, memory=memory)
    pooled = visual.ln_post(tokens[:, 0])
    features: Tensor = pooled @ visual.proj
    return features


def _embed(visual: VisionTransformer, images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1 + patches, D_vision]: patches, class token, positions, `ln_pre`."""
    patches = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, patches, D_vision]
    class_token = visual.class_embedding.expand(len(patches), 1, -1)
    tokens = torch.cat([class_token, patches.to(class_token.dtype)], dim=1)
    embedded: Tensor = visual.ln_pre(tokens + visual.positional_embedding)
    return embedded
