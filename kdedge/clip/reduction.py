"""Smaller image encoders: the first blocks of one, and tokens that are merged in it."""

from __future__ import annotations

from open_clip.transformer import VisionTransformer
from torch import nn

from kdedge.clip.architecture import why_no_prompts
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.low_rank import with_layers
from kdedge.clip.prompts import check_depth
from kdedge.clip.token_merging import max_merge_tokens
from kdedge.errors import RecipeError

_BLOCKS = "transformer.resblocks"


def first_blocks(visual: nn.Module, depth: int | None) -> nn.Module:
    """CLIP's ViT with its first `depth` blocks; all tensors are shared. None: the encoder itself.

    `ln_post` and the projection, which were trained on the last block's output, follow the last
    block that is kept.
    """
    if depth is None:
        return visual
    blocks = visual.get_submodule(_BLOCKS)
    assert isinstance(blocks, nn.ModuleList)
    return with_layers(visual, {_BLOCKS: blocks[:depth]})


def check_reduction(backbone: AnyBackbone, *, depth: int | None, merge_tokens: int) -> None:
    """Checks that an image encoder has as many blocks, and enough patch tokens.

    Args:
        backbone: frozen.
        depth: number of blocks that are kept; None for all.
        merge_tokens: r, merged in each block but the last.

    Raises:
        RecipeError: it has fewer, or is not CLIP's ViT.
    """
    if depth is None and merge_tokens == 0:
        return
    visual, why = backbone.visual, why_no_prompts(backbone.visual)
    if why is not None:
        raise RecipeError(
            f"{backbone.name} takes neither depth nor merge_tokens: its image encoder {why}.\n"
            "  Remove them, or use CLIP's ViT, such as ViT-B-16."
        )
    assert isinstance(visual, VisionTransformer)
    n_blocks = len(visual.transformer.resblocks)
    if depth is not None:
        check_depth(depth, n_blocks, "depth", "image")
    why = why_not_merged(
        merge_tokens, n_patches=len(visual.positional_embedding) - 1, n_blocks=depth or n_blocks
    )
    if why is not None:
        raise RecipeError(f"merge_tokens is {merge_tokens}, but {why}")


def why_not_merged(merge_tokens: int, *, n_patches: int, n_blocks: int) -> str | None:
    """Says why so many tokens cannot be merged in each block, and how many can; None if they can.

    Args:
        merge_tokens: r.
        n_patches: patch tokens of an image.
        n_blocks: blocks of the image encoder that are kept.
    """
    most = max_merge_tokens(n_patches, n_blocks)
    if merge_tokens <= most:
        return None
    blocks = "1 block" if n_blocks == 1 else f"{n_blocks} blocks"
    return (
        f"the image encoder has {n_patches} patch tokens and {blocks}: a block merges at most half"
        " of its patch tokens, and the last block merges none.\n"
        f"  Set merge_tokens to {most} or less."
    )
