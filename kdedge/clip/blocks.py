"""The residual attention block of CLIP, built from linear layers that can be wrapped.

Both encoders are stacks of `x + attention(ln_1(x))`, then `x + MLP(ln_2(x))` (CLIP,
arXiv:2103.00020). open_clip keeps the query, key and value weights in one tensor. Here `attn.q`,
`attn.k`, `attn.v`, `attn.out`, `mlp.c_fc` and `mlp.c_proj` are `nn.Linear` modules, so that
adapters, fake quantization, parametrizations and hooks apply to each. State dicts keep open_clip's
names, so weight hashes, students, checkpoints and weight files do not depend on how the layers are
built, and open_clip reads what kdedge writes.

The blocks skip outputs that are not used, for which open_clip's block has no argument. Tokens whose
outputs the next block replaces need keys and values only. The last block needs one query per image
or text.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.errors import RecipeError

_QUICK_GELU_SLOPE = 1.702  # QuickGELU(x) = x sigmoid(1.702 x) (OpenAI's CLIP)


class Attention(nn.Module):
    """Multi-head attention whose four projections are linear modules of their own.

    Args:
        source: open_clip's attention; its weights are copied.
    """

    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = source.num_heads
        weights = source.state_dict()
        _split_attention(weights)
        for name in ("q", "k", "v", "out"):
            self.add_module(name, linear_of(weights[f"{name}.weight"], weights[f"{name}.bias"]))
        self.requires_grad_(source.in_proj_weight.requires_grad)
        # torch 2.4 has these two under private names only
        self._register_state_dict_hook(_fuse_attention)  # type: ignore[no-untyped-call]
        self._register_load_state_dict_pre_hook(_split_attention)  # type: ignore[no-untyped-call]

    def forward(
        self, tokens: Tensor, *, queries: Tensor, memory: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attends from the queries to the tokens and the memory.

        Args:
            tokens: [B, N, D], normalized.
            queries: [B, Q, D], normalized.
            memory: [M, D], normalized, shared by the batch; its keys and values are computed once.
            attn_mask: broadcast to [B, heads, Q, N + M]; True where a query may attend, or numbers
                that are added to the products of queries and keys.

        Returns:
            [B, Q, D]; and the keys of the tokens without the memory, [B, heads, N, D / heads].
        """
        query = self._split_heads(self.q(queries))
        key = self.k(tokens)
        value = self.v(tokens)
        if memory is not None:
            n_images = len(tokens)
            key = torch.cat([key, self.k(memory).expand(n_images, -1, -1)], dim=1)  # [B, N + M, D]
            value = torch.cat([value, self.v(memory).expand(n_images, -1, -1)], dim=1)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(query.dtype)  # under autocast, products are rounded anyway
        keys = self._split_heads(key)
        attended = F.scaled_dot_product_attention(
            query, keys, self._split_heads(value), attn_mask=attn_mask
        )
        output: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return output, keys[:, :, : tokens.shape[1]]

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, heads, N, D / heads]."""
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class AttentionBlock(nn.Module):
    """One residual attention block: `attend`, then `feed_forward`.

    Token merging calls the two methods one by one, with a step of its own in between.

    Args:
        source: open_clip's block; its attention is copied, all other parts are shared.
    """

    def __init__(self, source: ResidualAttentionBlock) -> None:
        super().__init__()
        # In the order of open_clip's block, which is the order of parameters in optimizers
        self.ln_1 = source.ln_1
        self.attn = Attention(source.attn)
        self.ls_1 = source.ls_1
        self.ln_2 = source.ln_2
        self.mlp: nn.Sequential = source.mlp
        self.ls_2 = source.ls_2
        self.train(source.training)

    def attend(
        self, tokens: Tensor, *, queries: Tensor, memory: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns [B, Q, D], the query tokens plus the attention's output; and `Attention`'s keys.

        The arguments are the same as in `forward`; `queries` may be `tokens`.
        """
        normed = self.ln_1(tokens)
        output, keys = self.attn(
            normed,
            queries=normed if queries is tokens else self.ln_1(queries),
            memory=None if memory is None else self.ln_1(memory),
            attn_mask=attn_mask,
        )
        attended: Tensor = queries + self.ls_1(output)
        return attended, keys

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, D]: the tokens plus their MLP."""
        output: Tensor = tokens + self.ls_2(_run_mlp(self.mlp, self.ln_2(tokens)))
        return output

    def forward(
        self,
        tokens: Tensor,
        *,
        queries: Tensor | None = None,
        memory: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Runs the block and returns the outputs at the query tokens.

        Args:
            tokens: [B, N, D], attended to.
            queries: [B, Q, D], the tokens whose outputs are wanted; None for `tokens`.
            memory: [M, D], attended to after `tokens`, the same for the whole batch; has no output.
            attn_mask: broadcast to [B, heads, Q, N + M]; True where a query may attend, or numbers
                that are added to the products of queries and keys.

        Returns:
            [B, Q, D].
        """
        queries = tokens if queries is None else queries
        attended, _ = self.attend(tokens, queries=queries, memory=memory, attn_mask=attn_mask)
        return self.feed_forward(attended)


def make_wrappable(transformer: Transformer) -> None:
    """Replaces open_clip's blocks in a transformer, in place; blocks replaced before stay."""
    for index, block in enumerate(transformer.resblocks):
        if isinstance(block, ResidualAttentionBlock):
            transformer.resblocks[index] = AttentionBlock(block)


def is_plain(layer: nn.Module) -> bool:
    """Whether a call of this layer does nothing but `F.linear` with its `weight` and `bias`.

    True for `nn.Linear` with a bias, parametrized or not. False for wrappers, for subclasses with a
    `forward` of their own, and for layers with hooks.
    """
    return (
        type(layer).forward is nn.Linear.forward
        and layer.bias is not None
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
    )


@torch.no_grad()
def weight_and_bias(layer: nn.Module, n_in: int) -> tuple[Tensor, Tensor]:
    """Returns the weight [D_out, n_in] and bias [D_out] of a layer's linear map, in float64.

    A wrapped layer, such as a linear layer with a low-rank adapter, is read by its outputs for the
    columns of an identity matrix.

    Args:
        layer: a linear layer, plain, parametrized or wrapped; on the CPU, in evaluation mode.
        n_in: number of its inputs.

    Raises:
        RecipeError: the layer is not linear, for instance because it rounds its inputs.
    """
    if is_plain(layer):
        assert isinstance(layer, nn.Linear)
        return layer.weight.double(), layer.bias.double()
    double = copy.deepcopy(layer).double()
    bias = double(torch.zeros(n_in, dtype=torch.float64))
    weight = (double(torch.eye(n_in, dtype=torch.float64)) - bias).T
    probe = torch.linspace(-2, 2, n_in, dtype=torch.float64)
    if not torch.allclose(double(probe), weight @ probe + bias, rtol=1e-6, atol=1e-6):
        raise RecipeError(
            f"A {type(layer).__name__} inside the image encoder cannot be folded: its output is"
            " not linear in its input.\n"
            "  Replace it with a linear layer before the export."
        )
    return weight, bias


def _run_mlp(mlp: nn.Sequential, tokens: Tensor) -> Tensor:
    """[B, N, D] -> [B, N, D]: linear, activation, linear.

    QuickGELU is silu(a x) / a. If nothing wraps the two linear layers, both factors go into the
    matrix products at no cost. The hidden tokens, four times as wide as the others, are then read
    once instead of three times (backward: once instead of five times), and one copy is kept
    instead of two.
    """
    first, activation, last = mlp
    if not (isinstance(activation, QuickGELU) and is_plain(first) and is_plain(last)):
        result: Tensor = mlp(tokens)
        return result
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    rows = tokens.flatten(0, -2)
    slope = _QUICK_GELU_SLOPE
    hidden = torch.addmm(first.bias, rows, first.weight.T, beta=slope, alpha=slope)
    output = torch.addmm(last.bias, F.silu(hidden), last.weight.T, alpha=1 / slope)
    return output.view(tokens.shape)


def linear_of(weight: Tensor, bias: Tensor, layer_type: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A linear layer that holds copies of these values; it may have no inputs or outputs."""
    linear = layer_type(1, 1, device="meta")  # torch would warn of a layer without inputs
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.clone())
    linear.bias = nn.Parameter(bias.clone())
    return linear


_PARTS = ("q", "k", "v")
_KINDS = ("weight", "bias")


def _split_attention(state_dict: dict[str, Any], prefix: str = "", *_: object) -> None:
    """Replaces open_clip's keys of one attention by the keys of its linear layers, in place.

    Args:
        state_dict: the state dict; its other keys are kept, and the new tensors are views.
        prefix: prefix of the attention's keys, with the dot at its end.
        _: what torch passes to a hook besides.
    """
    for kind in _KINDS:
        fused = state_dict.pop(f"{prefix}in_proj_{kind}", None)
        if fused is not None:
            names = [f"{prefix}{part}.{kind}" for part in _PARTS]
            state_dict.update(zip(names, fused.chunk(3), strict=True))
        out = state_dict.pop(f"{prefix}out_proj.{kind}", None)
        if out is not None:
            state_dict[f"{prefix}out.{kind}"] = out


def _fuse_attention(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: object) -> None:
    """The reverse of `_split_attention`, as a hook of torch's.

    An attention with a wrapped or parametrized layer has other keys, for which open_clip has no
    names: it is left as it is.
    """
    keys = {f"{prefix}{part}.{kind}" for part in (*_PARTS, "out") for kind in _KINDS}
    if keys != {key for key in state_dict if key.startswith(prefix)}:
        return
    for kind in _KINDS:
        parts = [state_dict.pop(f"{prefix}{part}.{kind}") for part in _PARTS]
        state_dict[f"{prefix}in_proj_{kind}"] = torch.cat(parts)
    for kind in _KINDS:
        state_dict[f"{prefix}out_proj.{kind}"] = state_dict.pop(f"{prefix}out.{kind}")
