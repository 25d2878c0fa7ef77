"""A step's images through an image tower: in micro-batches, each process its share.

Gradients are those of the whole batch at once, up to rounding, whatever follows the tower: what
comes out is all images' rows, so batch norm in a projector and losses that compare images see the
whole batch. That is gradient caching (Gao et al. 2021, arXiv:2101.06983); adding up gradients of
losses of micro-batches, the usual accumulation, would give batch norm the statistics of few images.
Its price is a second forward pass of all micro-batches but the last.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kdedge.clip.text import in_chunks
from kdedge.data.batch import Batch


def encode_images(batch: Batch, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, D]: what an encoder says of all images of a step, with gradients.

    Args:
        batch: may hold a share of the images.
        encode: [b, 3, H, W] -> [b, D]; what it says of an image must not depend on the others.
    """
    images = batch.images
    rows = in_chunks(
        lambda chunk: encode(images[chunk]),
        len(images),
        chunk_size=batch.micro_batch or len(images),
    )
    return batch.group.gather(rows, batch.n_images)


def is_splittable(visual: nn.Module) -> bool:
    """Whether an image tower in training mode encodes each image by itself, always alike.

    Batch norm looks at all images of a batch, and dropout draws anew in a second pass.
    """
    return not any(
        isinstance(layer, _BatchNorm)
        or (isinstance(layer, _DropoutNd) and layer.p > 0)
        or getattr(layer, "drop_prob", None)  # timm's DropPath
        for layer in visual.modules()
    )
