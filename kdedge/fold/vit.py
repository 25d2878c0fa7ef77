"""The exact folds of CLIP's ViT with prompts.

- The class token, the positional embeddings, and `ln_pre` of constant tokens become constants.
- Prompts whose outputs the next block replaces become constant keys and values.
- The last block computes the class token only.
- With token merging, constant keys and values have size 1 (`clip/token_merging.py`).
- The factor `1 / sqrt(d)` of attention moves into the query weights.
- Adapters and parametrizations of a linear layer move into its weight and bias.
- The affine part of `ln_post` and `proj` move into the linear layer after them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from kdedge.clip.blocks import AttentionBlock, weight_and_bias
from kdedge.clip.token_merging import log_sizes, merge
from kdedge.fold.head import FoldedModel, FoldRequest
from kdedge.fold.linear import fold_pixels, make_linear, with_layer_scale
from kdedge.methods.base import ImageModules


class FoldedBlock(nn.Module):
    """One residual attention block with constant tokens among its keys and values.

    Args:
        block: frozen; its linear layers may be wrapped or parametrized.
        memory: [M, D], constant tokens that are attended to but have no output, or None.
        merge_tokens: r, number of tokens that are merged away between attention and MLP.

    Raises:
        RecipeError: a wrapped layer is not linear.
    """

    memory_key: Tensor
    memory_value: Tensor

    def __init__(
        self, block: AttentionBlock, memory: Tensor | None, *, merge_tokens: int = 0
    ) -> None:
        super().__init__()
        self.merge_tokens = merge_tokens
        attention = block.attn
        width = len(block.ln_1.weight)
        self.n_heads = attention.num_heads
        self.ln_1 = block.ln_1
        self.ln_2 = block.ln_2
        weight, bias = weight_and_bias(attention.q, width)
        factor = (width // self.n_heads) ** -0.5
        self.query = make_linear(factor * weight, factor * bias)
        self.key = make_linear(*weight_and_bias(attention.k, width))
        self.value = make_linear(*weight_and_bias(attention.v, width))
        self.out = with_layer_scale(*weight_and_bias(attention.out, width), block.ls_1)
        c_fc, gelu, c_proj = block.mlp
        first = make_linear(*weight_and_bias(c_fc, width))
        last = make_linear(*weight_and_bias(c_proj, first.out_features))
        self.mlp = nn.Sequential(OrderedDict(c_fc=first, gelu=gelu, c_proj=last))
        self.ls_2 = block.ls_2
        self.has_memory = memory is not None and len(memory) > 0
        if self.has_memory:
            normed = block.ln_1(memory)
            self.register_buffer("memory_key", self._heads(self.key(normed)[None]))
            self.register_buffer("memory_value", self._heads(self.value(normed)[None]))

    def _heads(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, heads, N, D / heads]."""
        n_images, n_tokens, _ = tokens.shape
        if n_tokens == 1:  # no axes are swapped, which saves a node in the graph
            return tokens.reshape(n_images, self.n_heads, 1, -1)
        return tokens.reshape(n_images, n_tokens, self.n_heads, -1).transpose(1, 2)

    def divide_values(self, factor: Tensor) -> None:
        """Divides the values by a factor [D] for each channel.

        This also divides the input of `out`, since attention averages the values of one channel.
        """
        self.value.weight.div_(factor[:, None])
        self.value.bias.div_(factor)
        if self.has_memory:
            self.memory_value.div_(self._heads(factor[None, None]))

    def subtract_from_values(self, center: Tensor) -> None:
        """Subtracts a constant [D] from the values.

        This also subtracts it from the input of `out`, since attention weights sum to one.
        """
        self.value.bias.sub_(center)
        if self.has_memory:
            self.memory_value.sub_(self._heads(center[None, None]))

    def forward(
        self, tokens: Tensor, sizes: Tensor | None, *, n_patches: int, n_queries: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the block for the first `n_queries` tokens, or for all, and merges tokens.

        Args:
            tokens: [B, N, D].
            sizes: [B, P], patches in each patch token; None if each is one patch.
            n_patches: P.
            n_queries: Q; None for N. Must be None if tokens are merged.

        Returns:
            Tokens [B, Q - r, D] and their new sizes, [B, P - r] or None.
        """
        normed = self.ln_1(tokens)
        queries = tokens if n_queries is None else tokens[:, :n_queries]
        query = self._heads(self.query(normed if n_queries is None else normed[:, :n_queries]))
        keys = self._heads(self.key(normed))
        value = self._heads(self.value(normed))
        key = keys
        if self.has_memory:
            n_images = tokens.shape[0]
            key = torch.cat([key, self.memory_key.expand(n_images, -1, -1, -1)], dim=2)
            value = torch.cat([value, self.memory_value.expand(n_images, -1, -1, -1)], dim=2)
        products = query @ key.transpose(-1, -2)
        if sizes is not None:
            products = products + log_sizes(sizes, key.shape[2])
        attended = products.softmax(dim=-1) @ value
        if queries.shape[1] > 1:  # as in `_heads`
            attended = attended.transpose(1, 2)
        residual = queries + self.out(attended.reshape(queries.shape))
        if self.merge_tokens > 0:
            residual, sizes = merge(residual, sizes, keys, n_patches=n_patches, r=self.merge_tokens)
        return residual + self.ls_2(self.mlp(self.ln_2(residual))), sizes


class FoldedViT(FoldedModel):
    """CLIP's ViT, from pixels to logits.

    Args:
        modules: CLIP's ViT, its prompts and number of merged tokens; frozen, float32, on the CPU.
        request: class vectors, preprocessing and form of the graph.

    Raises:
        RecipeError: a wrapped layer is not linear.
    """

    positions: Tensor
    class_token: Tensor
    appended: Tensor

    def __init__(self, modules: ImageModules, request: FoldRequest) -> None:
        visual = modules.visual
        assert isinstance(visual, VisionTransformer)
        proj = visual.proj.double().T  # [D_student, D_vision]
        gamma, beta = visual.ln_post.weight.double(), visual.ln_post.bias.double()
        super().__init__(modules, request, (proj * gamma, proj @ beta))
        self.patch_conv, patch_bias = fold_pixels(visual.conv1, request.preprocess, request.pixels)
        positions = visual.positional_embedding.double()
        self.register_buffer("positions", (positions[1:] + patch_bias).float()[None])
        first = (visual.class_embedding.double() + positions[0]).float()
        self.register_buffer("class_token", visual.ln_pre(first)[None, None])
        self.ln_pre = visual.ln_pre
        prompts = _place_prompts(visual, modules.visual_prompts)
        self.appended_at = prompts.appended_at
        self.register_buffer("appended", prompts.appended)
        blocks = visual.transformer.resblocks
        self.blocks = nn.ModuleList()
        for index, (block, memory) in enumerate(zip(blocks, prompts.memories, strict=True)):
            is_last = index == len(blocks) - 1
            merge_tokens = 0 if is_last else modules.merge_tokens
            self.blocks.append(FoldedBlock(block, memory, merge_tokens=merge_tokens))
        width = len(visual.class_embedding)
        self.ln_post = nn.LayerNorm(width, eps=visual.ln_post.eps, elementwise_affine=False)

    def encode(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], uint8 or float 0-1 depending on `pixels`, -> [B, D_vision]."""
        patches = self.patch_conv(images.to(self.positions.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([class_token, self.ln_pre(patches + self.positions)], dim=1)
        n_patches = self.positions.shape[1]
        sizes: Tensor | None = None
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            assert isinstance(block, FoldedBlock)
            if index == self.appended_at:
                appended = self.appended.expand(images.shape[0], -1, -1)
                tokens = torch.cat([tokens, appended], dim=1)
            n_queries = 1 if index == last else None
            tokens, sizes = block(tokens, sizes, n_patches=n_patches, n_queries=n_queries)
            n_patches -= block.merge_tokens
        encoded: Tensor = self.ln_post(tokens[:, 0])
        return encoded


@dataclass(frozen=True)
class _PlacedPrompts:
    """Where the prompts of an encoder go.

    Attributes:
        memories: for each block its constant tokens [M, D], or None.
        appended_at: index of the block before which the last prompts become ordinary tokens; None
            if they do not.
        appended: [1, n_ctx_vision, D], the last prompts; without tokens if none are appended.
    """

    memories: list[Tensor | None]
    appended_at: int | None
    appended: Tensor


def _place_prompts(visual: VisionTransformer, prompts: Tensor | None) -> _PlacedPrompts:
    """Places each block's prompts as `clip.vision.encode_image` does."""
    n_blocks = len(visual.transformer.resblocks)
    memories: list[Tensor | None] = [None] * n_blocks
    nothing = torch.zeros(1, 0, len(visual.class_embedding))
    if prompts is None or prompts.numel() == 0:
        return _PlacedPrompts(memories, None, nothing)
    depth = len(prompts)
    layers = [visual.ln_pre(prompts[0]), *prompts[1:]]
    memories[: depth - 1] = layers[:-1]
    if depth == n_blocks:
        memories[-1] = layers[-1]
        return _PlacedPrompts(memories, None, nothing)
    return _PlacedPrompts(memories, depth - 1, layers[-1][None])
