"""A teacher store small enough to be filled, killed and shared often.

As a script: `fill_run.py ROOT PASS_S` fills one whose teacher takes so many seconds a forward pass,
and prints how many passes it took.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kdedge.data.sources import Item
from kdedge.loading.decoding import Preparation
from kdedge.loading.views import Augmentation
from kdedge.runtime.preprocess import Preprocess
from kdedge.training.output_store.fill import StoreFiller
from kdedge.training.output_store.store import OutputStore

N_IMAGES, DIM = 290, 24
"""Three files a view: 128, 128 and 34 images, or 16, 16 and 5 forward passes."""
N_PASSES = 37
PREPROCESS = Preprocess(8, (0.5,) * 3, (0.5,) * 3)
AUGMENT = Augmentation(1, 0.5, flip=True)


class Drawn:
    """Small images that are drawn when they are read."""

    def __init__(self, n_images: int = N_IMAGES) -> None:
        self.items: Sequence[Item] = [Item(f"image-{i}", None) for i in range(n_images)]

    def read(self, i: int) -> bytes:
        return draw(i)


@functools.cache
def draw(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class SlowTeacher:
    """Takes some pixels for features, an image by itself; notes the images of each pass."""

    device = torch.device("cpu")

    def __init__(self, pass_s: float = 0.0) -> None:
        self.seen: list[int] = []
        self._pass_s = pass_s

    @property
    def n_passes(self) -> int:
        return len(self.seen)

    @property
    def n_computed(self) -> int:
        """Images in all passes."""
        return sum(self.seen)

    def teacher_features(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        assert preprocess == PREPROCESS
        self.seen.append(len(images))
        time.sleep(self._pass_s)
        return F.normalize(images.flatten(1)[:, :DIM], dim=-1)


def make_filler(
    root: Path,
    *,
    teacher: Any = None,
    n_views: int = 2,
    n_images: int = N_IMAGES,
    digests: Mapping[int, str] | None = None,
    augment: Augmentation | None = AUGMENT,
    **of: Any,
) -> StoreFiller:
    """A filler with everything that is not given filled in."""
    store = OutputStore(
        root,
        Preparation(of.pop("preprocess", PREPROCESS), augment),
        **{"features_hash": "t", "precision": "fp32", **of},
        digests=digests or {i: digest(i) for i in range(n_images)},
        dim=DIM,
        n_views=n_views,
    )
    return StoreFiller(
        store,
        teacher or SlowTeacher(),
        lambda model, images: model.teacher_features(images, PREPROCESS),
        Drawn(n_images),
        n_workers=0,
    )


def digest(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def fill(root: Path, **changes: Any) -> tuple[OutputStore, SlowTeacher]:
    """Fills a store; gives it, and its teacher."""
    teacher = SlowTeacher()
    filler = make_filler(root, teacher=teacher, **changes)
    filler.fill()
    return filler.store, teacher


def features_of(store: OutputStore) -> Tensor:
    """[views, images, D]: all features that were loaded."""
    return torch.stack([store.read(store.indices, v + 1) for v in range(store.n_views)])


def files_of(store: OutputStore) -> dict[str, bytes]:
    """Name -> bytes of all files that hold features or parts of them."""
    paths = [path for path in store.path.glob("view-*/*") if path.is_file()]
    return {str(path.relative_to(store.path)): path.read_bytes() for path in paths}


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    filler = make_filler(Path(sys.argv[1]), teacher=SlowTeacher(float(sys.argv[2])))
    filler.fill()
    print(filler.model.n_passes)
