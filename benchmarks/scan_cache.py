"""How long a scan of 9,000 small JPEGs takes, and how many it decodes: cold, warm, after a change.

The images have Caltech101's size, about 300 x 200 pixels, and lie in 100 class folders. Without a
cache, each role of a recipe that uses the folder decodes all of them.

    python benchmarks/scan_cache.py [--images 9000]
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from kdedge.data.images import Scan, scan
from kdedge.data.scan_cache import ScanCache
from kdedge.data.sources import FileSource
from kdedge.data.sources.folder import open_source

N_CLASSES = 100


def write_images(folder: Path, n_images: int) -> None:
    """Writes the JPEGs, about 20 kB each; each has bytes of its own."""
    rng = np.random.default_rng(0)
    for number in range(n_images):
        width, height = int(rng.integers(250, 350)), int(rng.integers(150, 250))
        small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((width, height)).save(file, "JPEG", quality=90)
        path = folder / f"class {number % N_CLASSES:03d}" / f"image_{number:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file.getvalue())


class Counted:
    """A folder of images that counts those that are read from it; each is decoded once."""

    def __init__(self, source: FileSource) -> None:
        self.items, self.location = source.items, source.location
        self._read = source.read
        self._count = itertools.count()

    def read(self, i: int) -> bytes:
        """Gives the bytes of image i's file."""
        next(self._count)
        return self._read(i)

    def n_read(self) -> int:
        """Images read so far; asked once, at the end."""
        return next(self._count)


def report(what: str, folder: Path, cache: ScanCache | None) -> Scan:
    """Scans the folder and prints a row."""
    source = Counted(open_source(folder, class_names=(), labeled=False))
    start = time.perf_counter()
    found = scan(source, cache=cache)
    seconds = time.perf_counter() - start
    print(f"{what:<44}{seconds:8.2f} s{source.n_read():8d} decoded", flush=True)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=9000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        images, kept = Path(name) / "images", Path(name) / "scans"
        images.mkdir()
        write_images(images, arguments.images)
        time.sleep(2.1)  # what has just been written is not kept
        expected = report("no cache", images, None)
        cache = ScanCache(kept)
        first = report("cold cache", images, cache)
        second = report("same command, second role", images, cache)
        third = report("next command", images, ScanCache(kept))
        assert expected == first == second == third
        (changed,) = images.glob("*/image_00007.jpg")
        changed.write_bytes(next(images.glob("*/image_00008.jpg")).read_bytes())
        report("next command, one image changed", images, ScanCache(kept))
        size = sum(file.stat().st_size for file in kept.glob("*.json"))
        print(f"The cache has {size / 2**20:.1f} MiB.")


if __name__ == "__main__":
    main()
