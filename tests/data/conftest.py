import atexit
import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdedge.data.sources import Item
from kdedge.runtime.preprocess import ImageError

# Before `datasets` is loaded: its copies of Parquet files do not belong into the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="datasets-")
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
atexit.register(_CACHE.cleanup)


@dataclass
class ListedImages:
    """A source in memory; None stands for an image that cannot be read."""

    files: list[bytes | None]
    labels: list[int | None]

    @property
    def items(self) -> list[Item]:
        """One an image."""
        return [Item(f"image-{i}", label) for i, label in enumerate(self.labels)]

    def read(self, i: int) -> bytes:
        """The bytes of image i."""
        data = self.files[i]
        if data is None:
            raise ImageError("cannot be read: no such file")
        return data


def png(i: int) -> bytes:
    generator = np.random.default_rng(i)
    width, height = generator.integers(20, 60, 2)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source() -> ListedImages:
    """23 images of different sizes in 3 classes."""
    return ListedImages([png(i) for i in range(23)], [i % 3 for i in range(23)])


@pytest.fixture(scope="session")
def write_shard() -> Callable[..., Path]:
    """Writes a tar of members, each a name and its bytes."""

    def write(path: Path, *members: tuple[str, bytes], **options: object) -> Path:
        with tarfile.open(path, "w", **options) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def listed() -> Callable[[list[int]], ListedImages]:
    """Makes a second source, with other images, from their labels."""
    return lambda labels: ListedImages([png(100 + i) for i in range(len(labels))], labels)
