"""Context tokens and visual prompts: shapes, first values, and the room that texts make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from kdedge.clip.architecture import why_no_prompts
from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.text import TokenizedTexts, encode_in_chunks, encode_text, tokenize
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


def first_context(
    backbone: Backbone, *, n_ctx: int, context_init: str, generator: torch.Generator
) -> Tensor:
    """[n_ctx, D_text]: `context_init`'s embeddings, or N(0, 0.02²) where it is too short.

    Args:
        backbone: gives the embeddings and the sizes.
        n_ctx: tokens.
        context_init: words to begin with; its first `n_ctx` tokens are taken.
        generator: on the CPU; draws the random values.
    """
    model = backbone.model
    words = backbone.tokenizer.encode(context_init)
    if n_ctx <= len(words):
        device = model.token_embedding.weight.device
        context: Tensor = model.token_embedding(torch.tensor(words[:n_ctx], device=device)).clone()
    else:
        context = INIT_STD * torch.randn(n_ctx, text_width(backbone), generator=generator)
    return context.to(backbone.device)


def make_text_prompts(
    backbone: Backbone,
    *,
    n_ctx: int,
    prompt_depth: int,
    context_init: str,
    generator: torch.Generator,
    setting: str = "prompt_depth_text",
) -> TextPrompts:
    """Makes context tokens: the first layer's as `first_context`, the others' from N(0, 0.02²).

    Args:
        backbone: gives the embeddings and the sizes.
        n_ctx: tokens a layer.
        prompt_depth: text layers that get tokens of their own, from the first.
        context_init: words to begin with; its first `n_ctx` tokens are taken.
        generator: on the CPU; draws all random values.
        setting: what the method calls `prompt_depth`, for messages.

    Raises:
        RecipeError: the text tower has fewer layers than `prompt_depth`.
    """
    check_depth(prompt_depth, len(backbone.model.transformer.resblocks), setting, "text")
    width = text_width(backbone)
    deep = INIT_STD * torch.randn(prompt_depth - 1, n_ctx, width, generator=generator)
    context = first_context(backbone, n_ctx=n_ctx, context_init=context_init, generator=generator)
    return TextPrompts(context, deep.to(backbone.device))


def text_width(backbone: Backbone) -> int:
    """D_text, the width of the text tower."""
    return int(backbone.model.ln_final.weight.shape[0])


def prompted_texts(
    backbone: Backbone,
    class_names: Sequence[str],
    *,
    n_ctx: int,
    context_init: str,
    setting: str = "n_ctx_text",
) -> TokenizedTexts:
    """Tokenizes "<context> NAME." with room for `n_ctx` context tokens after the start token.

    Where `context_init` is longer than `n_ctx` tokens, the rest of it stays in the text as frozen
    words; where it is shorter, placeholders stand for all of the context.

    Args:
        backbone: gives the tokenizer and the number of positions.
        class_names: the C names.
        n_ctx: context tokens.
        context_init: words to begin with.
        setting: what the method calls `n_ctx`, for messages.

    Raises:
        RecipeError: the longest name leaves no room for so many context tokens.
        DataError: a name needs more positions than there are, or leaves none for any context.
    """
    if n_ctx <= len(backbone.tokenizer.encode(context_init)):
        prefix = context_init
    else:
        check_room(backbone, class_names, n_ctx, setting)
        prefix = placeholders(n_ctx)
    texts = [f"{prefix} {readable(name)}." for name in class_names]
    tokenized = tokenize(backbone.tokenizer, texts, context_length=backbone.context_length)
    return TokenizedTexts(tokenized.tokens.to(backbone.device), tokenized.end.to(backbone.device))


def placeholders(n_ctx: int) -> str:
    """Text of `n_ctx` tokens that a context takes the places of."""
    return " ".join(["X"] * n_ctx)


def check_room(backbone: Backbone, class_names: Sequence[str], n_ctx: int, setting: str) -> None:
    """Sees to it that a context fits beside the longest class name.

    Raises:
        RecipeError: it does not, and a shorter one would. A name that leaves no room at all is for
            `tokenize` to refuse.
    """
    lengths = {name: len(backbone.tokenizer.encode(f"{readable(name)}.")) for name in class_names}
    longest = max(lengths, key=lambda name: lengths[name])
    room = backbone.context_length - 2 - lengths[longest]  # start and end tokens
    if n_ctx > room >= 1:
        raise RecipeError(
            f'{setting} is {n_ctx}, and beside the class name "{longest}" this CLIP\'s'
            f" {backbone.context_length} positions have room for {room} context tokens.\n"
            f"  Set {setting} to {room} or less."
        )


def prompted_text_features(
    backbone: Backbone, texts: TokenizedTexts, prompts: TextPrompts
) -> Tensor:
    """[C, D], unit length, with gradients in the memory of one chunk of classes."""

    def encode(chunk: TokenizedTexts) -> Tensor:
        return encode_text(
            backbone.model, chunk, context=prompts.context, deep_context=prompts.deep_context
        )

    return unit_length(encode_in_chunks(encode, texts))


def make_visual_prompts(
    backbone: AnyBackbone,
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
        RecipeError: the image tower has fewer layers than `prompt_depth`, or is not CLIP's ViT and
            `n_ctx` is not 0.
    """
    visual = backbone.visual
    if n_ctx == 0 and why_no_prompts(visual) is not None:
        return nn.Parameter(torch.zeros(prompt_depth, 0, 0, device=backbone.device))
    check_takes_prompts(backbone)
    assert isinstance(visual, VisionTransformer)
    check_depth(prompt_depth, len(visual.transformer.resblocks), setting, "image")
    width = visual.class_embedding.shape[0]
    prompts = INIT_STD * torch.randn(prompt_depth, n_ctx, width, generator=generator)
    return nn.Parameter(prompts.to(backbone.device))


def check_takes_prompts(backbone: AnyBackbone) -> None:
    """Sees to it that the image tower is CLIP's ViT.

    Raises:
        RecipeError: it is not.
    """
    why = why_no_prompts(backbone.visual)
    if why is not None:
        raise RecipeError(
            f"{backbone.name} takes no visual prompts: its image tower {why}.\n"
            "  promptkd trains such a tower's projector with tune: projector, or all of it with"
            " tune: full; coop, cocoop and zeroshot leave image towers alone. Visual prompts want"
            " CLIP's ViT, such as ViT-B-16."
        )


def make_linear(
    n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """A linear layer with PyTorch's own first values: U(-1/√n_in, 1/√n_in), weight and bias.

    Args:
        n_in: size of the input.
        n_out: size of the output.
        generator: on the CPU; draws all values.
        bias: whether there is one.
    """
    linear = nn.Linear(n_in, n_out, bias=bias)
    for parameter in linear.parameters():
        with torch.no_grad():
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.copy_((2 * drawn - 1) * n_in**-0.5)
    return linear


def readable(class_name: str) -> str:
    """A class name as it stands in a text: underscores are spaces, nothing else changes."""
    return class_name.replace("_", " ")


def check_depth(prompt_depth: int, n_layers: int, setting: str, tower: str) -> None:
    """Sees to it that a tower has as many layers as get prompts.

    Raises:
        RecipeError: it has fewer.
    """
    if prompt_depth > n_layers:
        raise RecipeError(
            f"{setting} is {prompt_depth}, and the {tower} tower of this CLIP has {n_layers}"
            f" layers.\n  Set {setting} to {n_layers} or less."
        )
