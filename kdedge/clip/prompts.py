"""Context tokens and visual prompts: shapes, first values, and the room that texts make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.text import TokenizedTexts, tokenize
from kdedge.errors import RecipeError

INIT_STD = 0.02
"""Standard deviation of a prompt's first values (PromptSRC's and PromptKD's code)."""


class TextPrompts(nn.Module):
    """Context tokens for the text encoder.

    Attributes:
        context: [n_ctx, D_text], for the first block.
        deep_context: [prompt_depth - 1, n_ctx, D_text], for the blocks after it.
    """

    def __init__(self, context: Tensor, deep_context: Tensor) -> None:
        super().__init__()
        self.context = nn.Parameter(context)
        self.deep_context = nn.Parameter(deep_context)


def make_text_prompts(
    backbone: Backbone,
    *,
    n_ctx: int,
    prompt_depth: int,
    context_init: str,
    generator: torch.Generator,
) -> TextPrompts:
    """Makes context tokens: `context_init`'s embeddings, or N(0, 0.02²) where it is too short.

    Args:
        backbone: gives the embeddings and the sizes.
        n_ctx: tokens a layer.
        prompt_depth: text layers that get tokens of their own, from the first.
        context_init: words to begin with; its first `n_ctx` tokens are taken.
        generator: on the CPU; draws all random values.

    Raises:
        RecipeError: the text tower has fewer layers than `prompt_depth`.
    """
    model = backbone.model
    _check_depth(prompt_depth, len(model.transformer.resblocks), "prompt_depth_text", "text")
    width = model.ln_final.weight.shape[0]
    words = backbone.tokenizer.encode(context_init)
    deep = INIT_STD * torch.randn(prompt_depth - 1, n_ctx, width, generator=generator)
    if n_ctx <= len(words):
        device = model.token_embedding.weight.device
        context = model.token_embedding(torch.tensor(words[:n_ctx], device=device)).clone()
    else:
        context = INIT_STD * torch.randn(n_ctx, width, generator=generator)
    return TextPrompts(context.to(backbone.device), deep.to(backbone.device))


def prompted_texts(
    backbone: Backbone, class_names: Sequence[str], *, n_ctx: int, context_init: str
) -> TokenizedTexts:
    """Tokenizes "<context> NAME." with room for `n_ctx` context tokens after the start token.

    Where `context_init` is longer than `n_ctx` tokens, the rest of it stays in the text as frozen
    words; where it is shorter, placeholders stand for all of the context.
    """
    fits = n_ctx <= len(backbone.tokenizer.encode(context_init))
    prefix = context_init if fits else " ".join(["X"] * n_ctx)
    texts = [f"{prefix} {readable(name)}." for name in class_names]
    tokenized = tokenize(backbone.tokenizer, texts, context_length=backbone.context_length)
    return TokenizedTexts(tokenized.tokens.to(backbone.device), tokenized.end.to(backbone.device))


def make_visual_prompts(
    backbone: Backbone,
    *,
    n_ctx: int,
    prompt_depth: int,
    generator: torch.Generator,
    setting: str = "prompt_depth",
) -> nn.Parameter:
    """Draws [prompt_depth, n_ctx, D_vision] from N(0, 0.02²).

    Args:
        backbone: gives the sizes.
        n_ctx: prompts a layer; 0 for none.
        prompt_depth: image layers that get prompts of their own, from the first.
        generator: on the CPU; draws all values.
        setting: what the method calls `prompt_depth`, for messages.

    Raises:
        RecipeError: the image tower has fewer layers than `prompt_depth`.
    """
    visual = backbone.model.visual
    _check_depth(prompt_depth, len(visual.transformer.resblocks), setting, "image")
    width = visual.class_embedding.shape[0]
    prompts = INIT_STD * torch.randn(prompt_depth, n_ctx, width, generator=generator)
    return nn.Parameter(prompts.to(backbone.device))


def readable(class_name: str) -> str:
    """A class name as it stands in a text: underscores are spaces, nothing else changes."""
    return class_name.replace("_", " ")


def _check_depth(prompt_depth: int, n_layers: int, key: str, tower: str) -> None:
    if prompt_depth > n_layers:
        raise RecipeError(
            f"{key} is {prompt_depth}, and the {tower} tower of this CLIP has {n_layers} layers.\n"
            f"  Set {key} to {n_layers} or less."
        )
