"""Encodes the images of a step in micro-batches; each process encodes its share.

Gradients equal those of the whole batch at once, up to rounding. The result has the rows of all
images, so batch norm in a projector and losses that compare images see the whole batch. This is
gradient caching (Gao et al. 2021, arXiv:2101.06983). Plain gradient accumulation would compute
batch statistics from the few images of a micro-batch. The price is a second forward pass of all
micro-batches but the last.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kdedge.clip.text import in_chunks
from kdedge.data.batch import Batch


def encode_images(batch: Batch, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, D]: the image features of all images of a step, with gradients.

    Args:
        batch: may hold this rank's shard of the images.
        encode: [b, 3, H, W] -> [b, D]; an image's features must not depend on other images.
    """
    images = batch.images
    rows = in_chunks(
        lambda chunk: encode(images[chunk]),
        len(images),
        chunk_size=batch.micro_batch or len(images),
    )
    return batch.group.gather(rows, batch.n_images)


def is_splittable(visual: nn.Module) -> bool:
    """Whether an image encoder in training mode gives an image the same features in any batch.

    Batch norm uses statistics of the whole batch, and dropout differs in a second pass.
    """
    return not any(
        isinstance(layer, _BatchNorm)
        or (isinstance(layer, _DropoutNd) and layer.p > 0)
        or getattr(layer, "drop_prob", None)  # timm's DropPath
        for layer in visual.modules()
    )
