"""A step's images through an image encoder: in micro-batches, each process its shard.

Gradients equal those of the full batch at once, up to rounding. The result has the features of all
images, so that batch norm in a projector and losses that compare images see the full batch. This is
gradient caching (Gao et al. 2021, arXiv:2101.06983). The usual accumulation adds up gradients of
micro-batches' losses, and would give batch norm the statistics of few images. The price is a second
forward pass of all micro-batches except the last.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kdedge.clip.text import in_chunks
from kdedge.data.batch import Batch


def encode_images(batch: Batch, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, D]: the features of all images of a step, with gradients.

    Args:
        batch: may hold this rank's shard of the images.
        encode: [b, 3, H, W] -> [b, D]; an image's features must not depend on the other images.
    """
    images = batch.images
    rows = in_chunks(
        lambda chunk: encode(images[chunk]),
        len(images),
        chunk_size=batch.micro_batch or len(images),
    )
    return batch.group.gather(rows, batch.n_images)


def is_splittable(visual: nn.Module) -> bool:
    """Whether an image encoder in training mode encodes each image by itself, the same each time.

    Batch norm depends on all images of a batch; dropout draws again in a second pass.
    """
    return not any(
        isinstance(layer, _BatchNorm)
        or (isinstance(layer, _DropoutNd) and layer.p > 0)
        or getattr(layer, "drop_prob", None)  # timm's DropPath
        for layer in visual.modules()
    )
