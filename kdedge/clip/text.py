"""The text encoder, with context tokens.

CLIP's text encoder is causal and its output is read at the end-of-text token. Positions after the
end of the longest text change nothing and are never computed. Texts are encoded in chunks. With
gradients on, each chunk is recomputed in the backward pass, so that peak memory grows with the
chunk and not with the number of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdedge.errors import DataError

CHUNK_SIZE = 64
"""Texts encoded at a time: memory holds the graph of one chunk, not of all classes."""


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids.

    Attributes:
        tokens: [C, T] int64, start and end tokens included, zeros after the end; T is the longest
            text's length.
        end: [C] int64, the position of the end-of-text token.
        context_at: [n_ctx] int64, positions of the context tokens; None if they follow the start
            token.
    """

    tokens: Tensor
    end: Tensor
    context_at: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> TokenizedTexts:
        """Selects texts; T stays the same."""
        return TokenizedTexts(self.tokens[rows], self.end[rows], self.context_at)


def tokenize(
    tokenizer: SimpleTokenizer, texts: Sequence[str], *, context_length: int
) -> TokenizedTexts:
    """Turns texts into token ids.

    Raises:
        DataError: a text needs more positions than the model has. Texts are never truncated: a
            truncated class name names another class.
    """
    rows = [
        [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id] for text in texts
    ]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > context_length:
            raise DataError(
                f"A text needs {len(row)} tokens, but this CLIP has only {context_length}"
                " positions:\n"
                f"  {text}\n"
                "  Shorten the class name, the template or the sentence."
            )
    tokens = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
    return TokenizedTexts(tokens, torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64))


def encode_text(
    model: CLIP,
    texts: TokenizedTexts,
    *,
    context: Tensor | None = None,
    deep_context: Tensor | None = None,
) -> Tensor:
    """Encodes tokenized texts, with learned context after the start token.

    The convention is IVLP's (PromptSRC, arXiv:2307.06948). The first block sees `context` plus
    positional embeddings at positions 1 to n_ctx. Each further prompted block sees its own vectors
    there, without positional embeddings.

    Args:
        model: a backbone's CLIP; only its text encoder is used.
        texts: on the model's device. With a context, tokens 1 to n_ctx of each text, or those at
            `context_at`, are placeholders.
        context: [n_ctx, D_text], or [C, n_ctx, D_text] for one context per text. Replaces the
            placeholders' embeddings in the first block.
        deep_context: [prompt_depth - 1, n_deep, D_text], for the second and later blocks. If n_deep
            is less than n_ctx, it has the last n_deep positions of `context_at`.

    Returns:
        [C, D], not normalized (`text_features_raw`).
    """
    length = texts.tokens.shape[1]
    tokens = model.token_embedding(texts.tokens)  # [C, T, D_text]
    if context is not None:
        tokens = _replace_context(tokens, context, texts.context_at)
    tokens = tokens + model.positional_embedding[:length]
    positions = torch.arange(length, device=tokens.device)
    causal = positions <= positions[:, None]  # [T, T]
    blocks = model.transformer.resblocks
    for index, block in enumerate(blocks):
        if deep_context is not None and 1 <= index <= len(deep_context):
            tokens = _replace_context(tokens, deep_context[index - 1], texts.context_at)
        if index < len(blocks) - 1:
            tokens = block(tokens, attn_mask=causal)
    rows = torch.arange(len(tokens), device=tokens.device)
    queries = tokens[rows, texts.end][:, None]  # [C, 1, D_text]
    visible = (positions <= texts.end[:, None])[:, None, None]  # [C, 1, 1, T]
    pooled = blocks[-1](tokens, queries=queries, attn_mask=visible)[:, 0]
    features: Tensor = model.ln_final(pooled) @ model.text_projection
    return features


def _replace_context(tokens: Tensor, context: Tensor, positions: Tensor | None) -> Tensor:
    """Replaces the placeholders of texts by a context.

    Args:
        tokens: [C, T, D_text].
        context: [n_ctx, D_text], shared by all texts, or [C, n_ctx, D_text].
        positions: [n], the last n_ctx of which get the context; None for positions 1 to n_ctx.

    Returns:
        [C, T, D_text].
    """
    context = context.expand(len(tokens), -1, -1)  # [C, n_ctx, D_text]
    if positions is not None:
        return tokens.index_copy(1, positions[-context.shape[1] :], context)
    return torch.cat([tokens[:, :1], context, tokens[:, 1 + context.shape[1] :]], dim=1)


def in_chunks(
    compute: Callable[[slice], Tensor], n_rows: int, *, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Computes rows chunk by chunk, with exact gradients and the peak memory of one chunk.

    With gradients on, all chunks but the last keep only their result in the forward pass and run
    again in the backward pass. Memory then does not grow with the number of rows, at the price of a
    second forward pass. The backward pass starts with the last chunk, whose activations are freed
    before another chunk runs again.

    Args:
        compute: rows `slice(first, last + 1)` -> their result [rows, ...], which must not depend on
            other rows.
        n_rows: number of rows in total.
        chunk_size: rows at a time.

    Returns:
        [n_rows, ...].
    """
    chunks = [slice(i, min(i + chunk_size, n_rows)) for i in range(0, n_rows, chunk_size)]
    if not torch.is_grad_enabled():
        return torch.cat([compute(rows) for rows in chunks])
    *others, last = chunks
    recomputed = [
        checkpoint(compute, rows, use_reentrant=False, preserve_rng_state=False) for rows in others
    ]
    return torch.cat([*recomputed, compute(last)])
