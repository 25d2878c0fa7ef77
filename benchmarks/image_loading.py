"""How fast images are read, decoded, cropped and normalized here, and two decoders for it.

Photo-like JPEGs of 500 x 375 pixels, made from a seed, lie in one WebDataset shard. The loader's
rows are kdedge's training loader alone, without any model; the decoders' rows are one thread that
takes the same crops by Pillow, as kdedge does, and by torchvision's decoder and resizing.

    python benchmarks/image_loading.py [--images 512] [--workers 0 1 2]
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import InterpolationMode, resized_crop

from kdedge.data.loader import EpochPart, ImageSet, Loading, Preparation, training_batches
from kdedge.data.sources import Source
from kdedge.data.sources.webdataset import open_source
from kdedge.data.views import Augmentation, crop_box, random_stream
from kdedge.runtime.preprocess import Preprocess, decode_image, normalize

SIZE_PX = (500, 375)
PREPROCESS = Preprocess(
    size_px=224,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
AUGMENT = Augmentation(seed=1, scale_min=0.08, flip=False)


def write_shard(folder: Path, n_images: int) -> Path:
    """Writes a shard of JPEGs, about 90 kB each, and gives its file."""
    rng = np.random.default_rng(0)
    path = folder / "shard-000.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(n_images):
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            smooth = Image.fromarray(small).resize(SIZE_PX, Image.Resampling.BICUBIC)
            pixels = np.asarray(smooth) + rng.normal(0, 12, (*SIZE_PX[::-1], 3))
            file = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    return path


def loader_rate(source: Source, n_workers: int, *, batch_size: int = 64) -> float:
    """Images a second of an epoch, the workers' start left out."""
    batches = training_batches(
        ImageSet(source, range(len(source.items))),
        Preparation(PREPROCESS, AUGMENT),
        EpochPart(seed=1, epoch=1, batch_size=batch_size),
        Loading(n_workers),
    )
    next(iter(batches))
    began = time.perf_counter()
    n_images = sum(len(batch.images) for batch in batches)
    return n_images / (time.perf_counter() - began)


def by_pillow(source: Source, position: int) -> torch.Tensor:
    """[3, H, W], as kdedge's loader has it."""
    image = decode_image(source.read(position))
    return torch.from_numpy(
        normalize(AUGMENT(image, PREPROCESS, position=position, view=1), PREPROCESS)
    )


def by_torchvision(source: Source, position: int) -> torch.Tensor:
    """[3, H, W], the same crop: libjpeg-turbo through torchvision, resized as a tensor."""
    data = torch.frombuffer(bytearray(source.read(position)), dtype=torch.uint8)
    image = decode_jpeg(data)
    left, top, width, height = crop_box(
        image.shape[2],
        image.shape[1],
        scale_min=AUGMENT.scale_min,
        generator=random_stream(AUGMENT.seed, 1, position + 1),
    )
    side = PREPROCESS.size_px
    crop = resized_crop(
        image, top, left, height, width, [side, side], InterpolationMode.BICUBIC, antialias=True
    )
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (PREPROCESS.mean, PREPROCESS.std))
    return (crop.float() / 255 - mean) / std


def decoder_rate(load: Callable[[Source, int], torch.Tensor], source: Source) -> float:
    """Images a second of one thread."""
    began = time.perf_counter()
    for position in range(len(source.items)):
        load(source, position)
    return len(source.items) / (time.perf_counter() - began)


def loader_ceiling(folder: Path, n_images: int, n_workers: Sequence[int]) -> dict[int, float]:
    """Images a second of the loader alone, by its number of workers."""
    source = open_source(str(write_shard(folder, n_images)), class_names=(), labeled=False)
    return {count: loader_rate(source, count) for count in n_workers}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        shard = write_shard(Path(name), arguments.images)
        source = open_source(str(shard), class_names=(), labeled=False)
        difference = (by_pillow(source, 0) - by_torchvision(source, 0)).abs().max()
        print(f"{shard.stat().st_size / arguments.images / 1e3:.0f} kB an image")
        print("| what | images a second |\n|---|---:|")
        rates = {"Pillow": [], "torchvision": []}
        for _ in range(3):  # in turns, so that drift of the machine hits both alike
            rates["Pillow"].append(decoder_rate(by_pillow, source))
            rates["torchvision"].append(decoder_rate(by_torchvision, source))
        for decoder, seen in rates.items():
            print(f"| {decoder}, one thread | {sorted(seen)[1]:.0f} |")
        for n_workers in arguments.workers:
            print(f"| loader, {n_workers} workers | {loader_rate(source, n_workers):.0f} |")
        print(f"\nLargest difference of one image's values: {float(difference):.3f}")


if __name__ == "__main__":
    main()
