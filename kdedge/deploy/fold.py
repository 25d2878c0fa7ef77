"""The exact folds of a student into one plain graph.

Every fold is exact up to rounding:

- `(pixels - mean) / std` moves into the weight and bias of the patch convolution;
- the class token, the positional embeddings, and `ln_pre` of constant tokens become constants;
- prompts whose outputs the next block replaces become constant keys and values;
- the last block computes the class token only;
- the attention's factor `1 / sqrt(d)` moves into the query weights;
- adapters and parametrizations of a linear layer move into its weight and bias;
- the affine part of `ln_post`, `proj`, and the projector's first linear layer and batch norm become
  one linear layer, and so does each further hidden layer of the projector;
- the projector's last linear layer, `scale` and the class vectors become one linear layer, the
  fused head. Unit length divides an image's logits by a positive number: the head `scores` keeps
  the division, the head `argmax` drops it. If the projector has only one linear layer, it is
  folded into the fused head together with `ln_post` and `proj`.

Sums are computed in float64 and stored in float32.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.architecture import why_no_prompts
from kdedge.clip.blocks import AttentionBlock, weight_and_bias
from kdedge.errors import RecipeError, ShapeError
from kdedge.methods.protocol import ImagePath
from kdedge.runtime.artifact import Head, Pixels
from kdedge.runtime.preprocess import Preprocess

_ModuleT = TypeVar("_ModuleT")


class FoldedBlock(nn.Module):
    """One residual attention block with constant tokens among its keys and values.

    Args:
        block: frozen; its linear layers may be wrapped or parametrized.
        memory: [M, D], constant tokens that are attended to but have no output; None for none.

    Raises:
        RecipeError: a wrapped layer is not linear.
    """

    memory_key: Tensor
    memory_value: Tensor

    def __init__(self, block: AttentionBlock, memory: Tensor | None) -> None:
        super().__init__()
        attention, width = block.attn, len(block.ln_1.weight)
        self.n_heads = attention.num_heads
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        weight, bias = weight_and_bias(attention.q, width)
        factor = (width // self.n_heads) ** -0.5
        self.query = _linear(factor * weight, factor * bias)
        self.key = _linear(*weight_and_bias(attention.k, width))
        self.value = _linear(*weight_and_bias(attention.v, width))
        self.out = _scaled(*weight_and_bias(attention.out, width), block.ls_1)
        c_fc, gelu, c_proj = block.mlp
        first = _linear(*weight_and_bias(c_fc, width))
        last = _linear(*weight_and_bias(c_proj, first.out_features))
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

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D], or the first `n_queries` tokens' outputs."""
        normed = self.ln_1(tokens)
        queries = tokens if n_queries is None else tokens[:, :n_queries]
        query = self._heads(self.query(normed if n_queries is None else normed[:, :n_queries]))
        key, value = self._heads(self.key(normed)), self._heads(self.value(normed))
        if self.has_memory:
            n_images = tokens.shape[0]
            key = torch.cat([key, self.memory_key.expand(n_images, -1, -1, -1)], dim=2)
            value = torch.cat([value, self.memory_value.expand(n_images, -1, -1, -1)], dim=2)
        attended = (query @ key.transpose(-1, -2)).softmax(dim=-1) @ value
        if queries.shape[1] > 1:  # as in `_heads`
            attended = attended.transpose(1, 2)
        residual = queries + self.out(attended.reshape(queries.shape))
        result: Tensor = residual + self.ls_2(self.mlp(self.ln_2(residual)))
        return result


class HiddenLayers(nn.Module):
    """Several hidden layers of a projector, with ReLU between them but not after the last.

    Args:
        linears: the layers in order, with batch norm folded in.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, D_hidden]."""
        for index, linear in enumerate(self.linears):
            assert isinstance(linear, nn.Linear)
            if index > 0:
                features = F.relu(features)
            # Its `forward` is not called, so that exported nodes get the head's name
            features = F.linear(features, linear.weight, linear.bias)
        return features


class FoldedModel(nn.Module):
    """The exported model: pixels to logits, with all constants computed.

    Attributes:
        fused_head: from the last hidden features to [C] logits; see the module's docstring.
        head: `scores` gives the unfused model's logits; `argmax` skips L2 normalization, which
            leaves the ranking unchanged.
    """

    positions: Tensor
    class_token: Tensor
    appended: Tensor

    def __init__(
        self,
        path: ImagePath,
        class_vectors: Tensor,
        *,
        scale: float,
        preprocess: Preprocess,
        head: Head,
        pixels: Pixels,
    ) -> None:
        super().__init__()
        visual: VisionTransformer = path.visual
        self.head, self.pixels = head, pixels
        self.patch_conv, patch_bias = _fold_pixels(visual, preprocess, pixels)
        positions = visual.positional_embedding.double()
        self.register_buffer("positions", (positions[1:] + patch_bias).float()[None])
        first = (visual.class_embedding.double() + positions[0]).float()
        self.register_buffer("class_token", visual.ln_pre(first)[None, None])
        self.ln_pre = visual.ln_pre
        memories, self.appended_at, appended = _place_prompts(visual, path.visual_prompts)
        self.register_buffer("appended", appended)
        self.blocks = nn.ModuleList(
            FoldedBlock(block, memory)
            for block, memory in zip(visual.transformer.resblocks, memories, strict=True)
        )
        width = len(visual.class_embedding)
        self.ln_post = nn.LayerNorm(width, eps=visual.ln_post.eps, elementwise_affine=False)
        self.hidden, features = _fold_projector(path)
        self.features = features if head == "scores" else None
        self.fused_head = _linear(
            scale * class_vectors.double() @ features.weight.double(),
            scale * class_vectors.double() @ features.bias.double(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], uint8 or float 0-1 depending on `pixels`, -> logits [B, C]."""
        patches = self.patch_conv(images.to(self.positions.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([class_token, self.ln_pre(patches + self.positions)], dim=1)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            if index == self.appended_at:
                appended = self.appended.expand(images.shape[0], -1, -1)
                tokens = torch.cat([tokens, appended], dim=1)
            tokens = block(tokens, n_queries=1 if index == last else None)
        hidden = self.ln_post(tokens[:, 0])
        if self.hidden is not None:
            hidden = F.relu(self.hidden(hidden))
        logits: Tensor = self.fused_head(hidden)
        if self.features is None:
            return logits
        features = self.features(hidden)
        lengths: Tensor = (features * features).sum(dim=-1, keepdim=True).sqrt()
        return logits / lengths


@torch.no_grad()
def fold(
    path: ImagePath,
    class_vectors: Tensor,
    *,
    scale: float,
    preprocess: Preprocess,
    head: Head = "scores",
    pixels: Pixels = "float",
) -> FoldedModel:
    """Folds a trained student into a plain module.

    Args:
        path: the modules of the student's image path.
        class_vectors: [C, D], unit length, in class-list order.
        scale: `logit_scale.exp()`.
        preprocess: its mean and std become part of the graph; resizing does not.
        head: `scores` keeps L2 normalization, `argmax` skips it.
        pixels: the graph takes 0-1 float or 0-255 uint8 pixels.

    Returns:
        A module in evaluation mode on the CPU; it shares no tensor with `path`.

    Raises:
        RecipeError: the image encoder is not CLIP's ViT, or a wrapped layer in it is not linear.
        ShapeError: the class vectors have another dimension than the student's features.
    """
    why = why_no_prompts(path.visual)
    if why is not None:
        raise RecipeError(
            f"This model cannot be folded: its image encoder {why}.\n"
            "  kdedge folds and exports CLIP's ViT, such as ViT-B-16 or ViT-B-32."
        )
    dim = _feature_dim(path)
    if class_vectors.ndim != 2 or class_vectors.shape[1] != dim:
        raise ShapeError(
            f"Class vectors of shape {list(class_vectors.shape)} do not fit image features of"
            f" dimension {dim}.\n"
            "  They belong to another teacher: export a run with its own class vectors."
        )
    model = FoldedModel(
        _frozen_copy(path),
        class_vectors.detach().cpu(),
        scale=scale,
        preprocess=preprocess,
        head=head,
        pixels=pixels,
    )
    return model.eval().requires_grad_(False)


def _frozen_copy(path: ImagePath) -> ImagePath:
    """A copy in float32 on the CPU."""
    prompts = path.visual_prompts
    return ImagePath(
        _on_cpu(path.visual),
        None if prompts is None else prompts.detach().clone().float().cpu(),
        None if path.projector is None else _on_cpu(path.projector),
    )


def _on_cpu(module: _ModuleT) -> _ModuleT:
    moved = copy.deepcopy(module)
    assert isinstance(moved, nn.Module)
    moved.float().cpu()
    return moved


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 linear layer with these values."""
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear


def _scaled(weight: Tensor, bias: Tensor, layer_scale: nn.Module) -> nn.Linear:
    """A linear layer and the layer scale after it."""
    gamma = getattr(layer_scale, "gamma", None)
    if gamma is None:
        return _linear(weight, bias)
    gamma = gamma.double()
    return _linear(gamma[:, None] * weight, gamma * bias)


def _fold_pixels(
    visual: VisionTransformer, preprocess: Preprocess, pixels: Pixels
) -> tuple[nn.Conv2d, Tensor]:
    """The patch convolution on raw pixels, and the bias [D], float64, that replaces the mean."""
    weight = visual.conv1.weight.double()  # [D, 3, P, P]
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
    unit = 255.0 if pixels == "uint8" else 1.0
    conv = nn.Conv2d(
        3, len(weight), visual.conv1.kernel_size, stride=visual.conv1.stride, bias=False
    )
    conv.weight.copy_(weight / (std * unit))
    return conv, -(weight * mean / std).sum(dim=(1, 2, 3))


def _place_prompts(
    visual: VisionTransformer, prompts: Tensor | None
) -> tuple[list[Tensor | None], int | None, Tensor]:
    """Places each block's prompts as `clip.vision.encode_image` does.

    Returns:
        The constant memory [M, D] of each block, or None; the index of the block before which the
        last prompts become ordinary tokens, or None; those tokens [1, n_ctx_vision, D].
    """
    n_blocks = len(visual.transformer.resblocks)
    memories: list[Tensor | None] = [None] * n_blocks
    width = len(visual.class_embedding)
    if prompts is None or prompts.numel() == 0:
        return memories, None, torch.zeros(1, 0, width)
    depth = len(prompts)
    own = [visual.ln_pre(prompts[0]), *prompts[1:]]
    memories[: depth - 1] = own[:-1]
    if depth == n_blocks:
        memories[-1] = own[-1]
        return memories, None, torch.zeros(1, 0, width)
    return memories, depth - 1, own[-1][None]


def _fold_projector(path: ImagePath) -> tuple[nn.Linear | HiddenLayers | None, nn.Linear]:
    """The hidden layers up to the last ReLU, or None, and the linear layer after them."""
    visual: VisionTransformer = path.visual
    projector = path.projector
    proj = visual.proj.double().T  # [D_student, D_vision]
    if projector is None:
        return None, _after_ln_post(visual, proj, torch.zeros(len(proj), dtype=torch.float64))
    first, *others = projector.linears
    weight, bias = first.weight.double() @ proj, first.bias.double()
    if not others:
        return None, _after_ln_post(visual, weight, bias)
    norm, *norms = projector.batch_norms
    hidden = [_after_ln_post(visual, *_with_batch_norm(weight, bias, norm))]
    hidden += [
        _linear(*_with_batch_norm(linear.weight.double(), linear.bias.double(), norm))
        for linear, norm in zip(others[:-1], norms, strict=True)
    ]
    return hidden[0] if len(hidden) == 1 else HiddenLayers(hidden), others[-1]


def _with_batch_norm(weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear and the batch norm after it, with its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = gain * (bias - norm.running_mean.double())
    return gain[:, None] * weight, shifted + norm.bias.double()


def _after_ln_post(visual: VisionTransformer, weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with the affine part of `ln_post` folded in."""
    gamma, beta = visual.ln_post.weight.double(), visual.ln_post.bias.double()
    return _linear(weight * gamma, bias + weight @ beta)


def _feature_dim(path: ImagePath) -> int:
    visual: VisionTransformer = path.visual
    if path.projector is None:
        return int(visual.proj.shape[1])
    return path.projector.linears[-1].out_features
