"""Context tokens and visual prompts: shapes, initial values, and the positions that texts need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from kdedge.clip.architecture import is_promptable_vit, why_no_prompts
from kdedge.clip.backbone import Backbone, ImageBackbone, unit_length
from kdedge.clip.text import TokenizedTexts, encode_text, in_chunks
from kdedge.errors import RecipeError

INIT_STD = 0.02
"""Standard deviation of a prompt's initial values (PromptSRC's and PromptKD's code)."""


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
    """[n_ctx, D_text]: the embeddings of `context_init`, or N(0, 0.02²) if it is too short.

    Args:
        backbone: has the embeddings and sizes.
        n_ctx: number of tokens.
        context_init: initial words; the first `n_ctx` tokens are used.
        generator: on the CPU; draws the random values.
    """
    words = backbone.tokenizer.encode(context_init)
    if n_ctx <= len(words):
        context: Tensor = backbone.model.token_embedding.weight[words[:n_ctx]]
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
) -> TextPrompts:
    """Makes context tokens: `first_context` for the first layer, N(0, 0.02²) for the others.

    Args:
        backbone: has the embeddings and sizes.
        n_ctx: tokens per layer.
        prompt_depth: number of text layers with tokens of their own, from the first.
        context_init: initial words; the first `n_ctx` tokens are used.
        generator: on the CPU; draws all random values.
    """
    width = text_width(backbone)
    deep = INIT_STD * torch.randn(prompt_depth - 1, n_ctx, width, generator=generator)
    context = first_context(backbone, n_ctx=n_ctx, context_init=context_init, generator=generator)
    return TextPrompts(context, deep.to(backbone.device))


def text_width(backbone: Backbone) -> int:
    """D_text, the width of the text encoder."""
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

    If `context_init` has more than `n_ctx` tokens, the rest stays in the text as frozen words. If
    it has fewer, the whole context consists of placeholders.

    Args:
        backbone: has the tokenizer and the number of positions.
        class_names: the C names.
        n_ctx: number of context tokens.
        context_init: initial words.
        setting: the method's name for `n_ctx`, for messages.

    Raises:
        RecipeError: the longest class name leaves too few positions for the context.
        DataError: a class name needs more positions than there are, or leaves none for a context.
    """
    if n_ctx <= len(backbone.tokenizer.encode(context_init)):
        prefix = context_init
    else:
        longest, room = room_for_context(backbone, class_names)
        if n_ctx > room >= 1:  # `tokenize` refuses a class name that leaves no position at all
            raise RecipeError(
                f'{setting} is {n_ctx}, but with the class name "{longest}" this CLIP\'s'
                f" {backbone.context_length} positions have room for only {room} context tokens.\n"
                f"  Set {setting} to {room} or less."
            )
        prefix = placeholders(n_ctx)
    return backbone.tokenize([f"{prefix} {readable(name)}." for name in class_names])


def placeholders(n_ctx: int) -> str:
    """A text of `n_ctx` tokens that a context replaces."""
    return " ".join(["X"] * n_ctx)


def room_for_context(backbone: Backbone, class_names: Sequence[str]) -> tuple[str, int]:
    """The longest class name, and the positions that it leaves for a context."""
    lengths = {name: len(backbone.tokenizer.encode(f"{readable(name)}.")) for name in class_names}
    longest = max(lengths, key=lengths.__getitem__)
    return longest, backbone.context_length - 2 - lengths[longest]  # start and end tokens


def prompted_text_features(
    backbone: Backbone, texts: TokenizedTexts, context: Tensor, deep_context: Tensor | None = None
) -> Tensor:
    """[C, D], unit length, with gradients; encoded in chunks of classes to save memory.

    `context` and `deep_context` are as in `encode_text`.
    """

    def encode(rows: slice) -> Tensor:
        part = context if context.ndim == 2 else context[rows]
        return encode_text(backbone.model, texts[rows], context=part, deep_context=deep_context)

    return unit_length(in_chunks(encode, len(texts.tokens)))


def make_visual_prompts(
    backbone: ImageBackbone, *, n_ctx: int, prompt_depth: int, generator: torch.Generator
) -> nn.Parameter:
    """Draws [prompt_depth, n_ctx, D_vision] from N(0, 0.02²).

    Args:
        backbone: has the sizes.
        n_ctx: prompts per layer; 0 for none.
        prompt_depth: number of image layers with prompts of their own, from the first.
        generator: on the CPU; draws all values.

    Raises:
        RecipeError: `n_ctx` is not 0 and the image encoder is not CLIP's ViT.
    """
    visual = backbone.visual
    if n_ctx == 0 and not is_promptable_vit(visual):
        return nn.Parameter(torch.zeros(prompt_depth, 0, 0, device=backbone.device))
    check_takes_prompts(backbone)
    assert isinstance(visual, VisionTransformer)
    width = visual.class_embedding.shape[0]
    prompts = INIT_STD * torch.randn(prompt_depth, n_ctx, width, generator=generator)
    return nn.Parameter(prompts.to(backbone.device))


def check_takes_prompts(backbone: ImageBackbone) -> None:
    """Checks that the image encoder is CLIP's ViT, which takes visual prompts.

    Raises:
        RecipeError: the image encoder takes no visual prompts.
    """
    why = why_no_prompts(backbone.visual)
    if why is not None:
        raise RecipeError(
            f"{backbone.name} takes no visual prompts: its image encoder {why}.\n"
            "  With promptkd, train a projector (tune: projector) or the whole image encoder"
            " (tune: full). ridge and zeroshot do not change image encoders. Visual prompts"
            " need CLIP's ViT, such as ViT-B-16."
        )


def random_linear(
    n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """A linear layer with PyTorch's default initialization: U(-1/√n_in, 1/√n_in).

    Args:
        n_in: size of the input.
        n_out: size of the output.
        generator: on the CPU; draws all values.
        bias: whether the layer has a bias.
    """
    linear = nn.Linear(n_in, n_out, bias=bias)
    for parameter in linear.parameters():
        with torch.no_grad():
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.copy_((2 * drawn - 1) * n_in**-0.5)
    return linear


def readable(class_name: str) -> str:
    """A class name as texts contain it: underscores become spaces."""
    return class_name.replace("_", " ")
