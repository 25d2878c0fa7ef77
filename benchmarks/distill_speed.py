"""Speed of distillation, ViT-L/14 to ViT-B/16 at real sizes, against the plain loop.

Three ways to take a student's step on the same images from the same parameters; all losses must
agree. Weights are random, sizes are real, float32.

* plain: the methods' public code, which runs the teacher's text encoder over all class texts and
  its image encoder in every step (benchmarks/plain_loop.py);
* live: kdedge with stored class vectors, the teacher's image encoder in every step;
* store: kdedge with the teacher's features from a warm teacher store.

And one pass of a student that is solved (`methods/ridge.py`), without gradients or epochs: `ridge`
runs the teacher, `ridge, store` reads its features. Its one solve at the end is timed apart.

Rounds are interleaved: each takes steps of all at every number of classes, and the machine's
fastest matrix product is measured in it again, so that ratios and shares are taken round by round
and drift of the machine hits all alike. Operations are counted by torch, two a multiply-add,
forward and backward pass.

    python benchmarks/distill_speed.py [--classes 10 102 397 1000] [--batch 8] [--rounds 3]
        [--plain-steps 1] [--steps 2] [--without-plain] [--device cpu]

The plain loop takes minutes a step at 1000 classes: its steps are counted apart. On a GPU the
steps alone are printed: no memory, and no projection.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from plain_loop import PlainLoop, random_backbone
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdedge.clip.backbone import Backbone
from kdedge.config.optim_spec import OptimSettings
from kdedge.data.images import Images
from kdedge.data.sources.webdataset import open_source
from kdedge.loading.batch import Batch
from kdedge.loading.decoding import Preparation
from kdedge.loading.loader import training_batches
from kdedge.loading.views import Augmentation
from kdedge.methods import promptkd, promptsrc, ridge
from kdedge.methods.base import MethodInputs
from kdedge.runtime.preprocess import Preprocess
from kdedge.runtime.process import keep_freed_memory, torch_as_before
from kdedge.training.output_store.store import OutputStore

LOOPS = ("plain", "live", "store", "ridge", "ridge, store")
N_IMAGES = 1_000_000
EPOCHS = 20
PASSES = dict.fromkeys(LOOPS, EPOCHS) | {"ridge": 1, "ridge, store": 1}
VIEWS = 4
GPU = "A100"
GPU_TFLOPS = 312.0
"""Its dense BF16 products (NVIDIA's data sheet), 1e12 operations a second."""
GPU_UTILIZATION = 0.4
"""Assumed, not measured: what well-kept ViT training reaches of that."""
JPEG_SIZE_PX = (500, 375)
PREPROCESS = Preprocess(
    size_px=224,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
AUGMENT = Augmentation(seed=1, scale_min=0.08, flip=False)


class OnceTeacher:
    """A teacher whose class vectors are computed once, as a stored teacher's are."""

    def __init__(self, method: promptsrc.Method) -> None:
        self.scale = method.scale
        self.teacher_features = lambda images, _: method.forward_features(images)
        self._vectors = method.class_vectors()

    def class_vectors(self) -> Tensor:
        """[C, D]."""
        return self._vectors


@dataclass
class Setting:
    """The three loops at one number of classes.

    Attributes:
        n_classes: how many.
        losses: loop -> the batch's loss, with gradients.
        parameters: what is trained.
        solve: the solve of the ridge regression.
        seconds: loop -> seconds a step, one a round.
        gflops: loop -> operations of a step, 1e9.
    """

    n_classes: int
    losses: dict[str, Callable[[], Tensor]]
    parameters: list[Tensor]
    solve: Callable[[], object]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in LOOPS})
    gflops: dict[str, float] = field(default_factory=dict)

    def step(self, loop: str) -> Tensor:
        """Takes a step but for the optimizer's part, which is nothing."""
        loss = self.losses[loop]()
        for parameter in self.parameters:
            parameter.grad = None
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def time(self, loop: str, n_steps: int) -> None:
        """Adds one figure: the mean of some steps in a row."""
        with heap_of(loop):
            float(self.step(loop))  # fills the heap
            began = time.perf_counter()
            for _ in range(n_steps):
                float(self.step(loop))  # waits for a GPU, as the training does
            self.seconds[loop].append((time.perf_counter() - began) / n_steps)

    def count(self, loop: str) -> float:
        """Operations of a step, 1e9, counted on tensors that have shapes and no values."""
        # Fused attention on a CPU and torch's fast path for frozen blocks are kernels that the
        # counter does not know; the same step in plain matrix products has the same operations.
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            loss = self.losses[loop]()
            if loss.requires_grad:
                torch.autograd.grad(loss, self.parameters)
        torch.backends.mha.set_fastpath_enabled(True)
        return counter.get_total_flops() / 1e9


@contextlib.contextmanager
def heap_of(loop: str) -> Iterator[None]:
    """Treats freed memory as the loop does: kdedge keeps it, the public code leaves it to glibc."""
    with torch_as_before():
        if loop != "plain":
            keep_freed_memory()
        yield


def make_setting(
    n_classes: int, teacher_clip: Backbone, student_clip: Backbone, images: Tensor, folder: Path
) -> Setting:
    """Builds teacher and student for so many classes, and a store of the images' features."""
    names = [f"place number {index}" for index in range(n_classes)]
    common = {"template": "{}", "train_classes": range(1), "generator": torch.Generator()}
    teacher = promptsrc.Method(teacher_clip, promptsrc.Settings(), MethodInputs(names, **common))
    teacher.module.requires_grad_(False)
    stored = OnceTeacher(teacher)
    student = promptkd.Method(
        student_clip, promptkd.Settings(), MethodInputs(names, teacher=stored, **common)
    )
    solved = ridge.Method(
        student_clip,
        ridge.Settings(outputs="features"),
        MethodInputs(names, teacher=stored, **common),
    )
    sums = ridge.NormalEquations(solved.module.out.in_features, 768, images.device)
    store = make_store(folder, teacher.forward_features(images))
    positions = list(range(len(images)))

    @torch.no_grad()
    def add(features: Tensor) -> Tensor:
        sums.add(solved.module.rows(solved._blocks(images)), features)
        return features.new_zeros(())

    def read() -> Tensor:
        return store.read(positions, 1).to(images.device)

    plain = PlainLoop(teacher, teacher_clip, student, student_clip, names)
    losses = {
        "plain": lambda: plain.loss(images),
        "live": lambda: student.training_step(Batch(images, None)).loss,
        "store": lambda: student.training_step(Batch(images, None, teacher_features=read())).loss,
        "ridge": lambda: add(teacher.forward_features(images)),
        "ridge, store": lambda: add(read()),
    }
    return Setting(
        n_classes, losses, list(student.trainable_parameters().values()), lambda: sums.solve(0.01)
    )


def make_store(folder: Path, features: Tensor) -> OutputStore:
    """A teacher store of some images' features in one view."""
    store = empty_store(folder, "random images", len(features))
    for chunk in store.load():
        store.create()
        store.write(chunk, features[chunk.positions].half().cpu())
    store.load()
    return store


def empty_store(folder: Path, images: str, n_images: int) -> OutputStore:
    """A teacher store of 768 features."""
    digests = {i: f"{i:064x}" for i in range(n_images)}
    return OutputStore(
        folder,
        Preparation(PREPROCESS),
        features_hash=images,
        precision="fp32",
        digests=digests,
        dim=768,
        n_views=1,
    )


def store_seconds(folder: Path, batch: int) -> float:
    """Seconds an image that a store adds to its first epoch: written, verified, read in batches."""
    features = torch.randn(4096, 768).half()
    store = empty_store(folder, "noise", len(features))
    began = time.perf_counter()
    store.create()
    for chunk in store.load():
        store.write(chunk, features[chunk.positions])
    store.load()
    for start in range(0, len(features), batch):
        store.read(range(start, min(start + batch, len(features))), 1)
    return (time.perf_counter() - began) / len(features)


def measure(settings: list[Setting], arguments: argparse.Namespace) -> list[float]:
    """Times all loops in rounds, and gives the fastest product's GFLOPS of each round."""
    loops = LOOPS[1:] if arguments.without_plain else LOOPS
    for setting in settings:
        losses = {loop: float(setting.step(loop)) for loop in loops}
        say(f"{setting.n_classes} classes, losses: {losses}")
        for loop in loops:
            setting.gflops[loop] = setting.count(loop)
            if PASSES[loop] == EPOCHS:
                torch.testing.assert_close(losses[loop], losses["live"], rtol=2e-3, atol=1e-3)
    peaks = []
    for number in range(arguments.rounds):
        peaks.append(fastest_product(arguments.device))
        say(f"round {number + 1}: fastest product {peaks[-1]:.0f} GFLOPS")
        for setting in settings:
            for loop in loops:
                setting.time(loop, arguments.plain_steps if loop == "plain" else arguments.steps)
                say(f"  {setting.n_classes} {loop}: {setting.seconds[loop][-1]:.2f} s a step")
    return peaks


def fastest_product(device: str, side: int = 2048, n_calls: int = 20) -> float:
    """GFLOPS of PyTorch's fastest of some float32 matrix products."""
    a = torch.randn(side, side, device=device)
    taken = []
    for _ in range(n_calls):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        taken.append(time.perf_counter() - began)
    return 2 * side**3 / min(taken) / 1e9


def say(text: str) -> None:
    """Tells how far it is."""
    print(text, file=sys.stderr, flush=True)


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and the lowest and highest of the rounds."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def print_steps(settings: list[Setting], peaks: list[float], batch: int) -> None:
    """Prints the table of steps."""
    print(
        "| classes | loop | images a second | times plain | times plain, all epochs | GFLOPs an"
        " image | % of peak |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|")
    for setting in settings:
        plain = setting.seconds["plain"]
        for loop, seconds in setting.seconds.items():
            if not seconds:
                continue
            ratios = [a / b for a, b in zip(plain, seconds, strict=True)] if plain else [0.0]
            in_all = [ratio * EPOCHS / PASSES[loop] for ratio in ratios]
            shares = [
                100 * setting.gflops[loop] / took / peak
                for took, peak in zip(seconds, peaks, strict=True)
            ]
            print(
                f"| {setting.n_classes} | {loop} | {spread([batch / s for s in seconds], 3)} |"
                f" {spread(ratios)} | {spread(in_all, 1)} | {setting.gflops[loop] / batch:.1f} |"
                f" {spread(shares, 1)} |"
            )


def duration(seconds: float) -> str:
    """Days or hours."""
    return f"{seconds / 86400:.1f} d" if seconds > 172800 else f"{seconds / 3600:.1f} h"


def write_shard(folder: Path, n_images: int) -> Path:
    """Writes a shard of JPEGs, about 90 kB each, and gives its file."""
    rng = np.random.default_rng(0)
    path = folder / "shard-000.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(n_images):
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            smooth = Image.fromarray(small).resize(JPEG_SIZE_PX, Image.Resampling.BICUBIC)
            pixels = np.asarray(smooth) + rng.normal(0, 12, (*JPEG_SIZE_PX[::-1], 3))
            file = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    return path


def loader_rate(shard: Path, *, batch_size: int = 64) -> float:
    """Images a second of kdedge's training loader alone, without workers."""
    source = open_source(str(shard), class_names=(), labeled=False)
    batches = training_batches(
        Images(source, tuple(range(len(source.items)))),
        Preparation(PREPROCESS, AUGMENT),
        OptimSettings(epochs=1, batch_size=batch_size, n_workers=0),
        seed=1,
    )
    next(iter(batches))
    began = time.perf_counter()
    n_images = sum(len(batch.images) for batch in batches)
    return n_images / (time.perf_counter() - began)


def print_projection(setting: Setting, batch: int, folder: Path, n_images: int) -> None:
    """Prints what a million images take: here, on one GPU and on eight."""
    shard = write_shard(folder, n_images)
    ceiling = loader_rate(shard)
    bytes_an_image = shard.stat().st_size / n_images
    store_gb = N_IMAGES * VIEWS * 768 * 2 / 1e9
    here = {
        loop: statistics.median(seconds) / batch
        for loop, seconds in setting.seconds.items()
        if seconds
    }
    gflops = {loop: work / batch for loop, work in setting.gflops.items()}
    gpu = {loop: work / 1e3 / (GPU_TFLOPS * GPU_UTILIZATION) for loop, work in gflops.items()}
    print(
        f"\n{N_IMAGES:,} images, {EPOCHS} epochs, {setting.n_classes} classes, batch {batch};"
        f" {bytes_an_image * N_IMAGES / 1e9:.0f} GB of JPEGs as measured here; the store of"
        f" {VIEWS} views takes {store_gb:.1f} GB and is filled once.\n"
    )
    print("| loop | this machine | one GPU | eight GPUs | cores that decode for one GPU |")
    print("|---|---:|---:|---:|---:|")
    for loop, seconds in here.items():
        times = [value * N_IMAGES * PASSES[loop] for value in (seconds, gpu[loop], gpu[loop] / 8)]
        cores = 1 / gpu[loop] / ceiling
        print(f"| {loop} | {' | '.join(map(duration, times))} | {cores:.0f} |")
    fill = [
        (per["live"] - per["store"]) * N_IMAGES * VIEWS / share
        for per, share in ((here, 1), (gpu, 1), (gpu, 8))
    ]
    cores = 1 / (gpu["live"] - gpu["store"]) / ceiling
    print(f"| filling the store | {' | '.join(map(duration, fill))} | {cores:.0f} |")
    added = store_seconds(folder, batch)
    began = time.perf_counter()
    setting.solve()
    print(f"\nThe solve of `ridge`, for one lambda of six: {time.perf_counter() - began:.0f} s.")
    print(
        f"\nTo write, verify and read a store takes {1e3 * added:.2f} ms an image,"
        f" {100 * added / here['live']:.2f} % of its first epoch."
    )
    print(
        f"\nThe loader alone: {ceiling:.0f} images a second and core. GPU columns are projections:"
        f" counted operations over {GPU_UTILIZATION:.0%} of an {GPU}'s {GPU_TFLOPS:.0f} TFLOPS"
        " (BF16, data sheet), which is assumed and not measured; decoding must keep up."
    )


def print_memory(arguments: argparse.Namespace) -> None:
    """Prints the peak of a step above the loaded models, each in a process of its own."""
    print("\n| classes | loop | MiB above the models |\n|---:|---|---:|")
    for n_classes in (min(arguments.classes), max(arguments.classes)):
        for loop in ("live", "store"):
            command = [sys.executable, __file__, "--memory-of", loop]
            command += ["--classes", str(n_classes), "--batch", str(arguments.batch)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"| {n_classes} | {loop} | {json.loads(done.stdout):.0f} |")


def peak_mib(loop: str, setting: Setting) -> float:
    """MiB that steps take at their peak above what is there before them."""
    with heap_of(loop):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = memory_kib("VmRSS")
        for _ in range(2):
            setting.step(loop)
        return (memory_kib("VmHWM") - before) / 1024


def memory_kib(name: str) -> int:
    """A figure of this process's memory: VmRSS now, VmHWM at its peak."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if name in x)
    return int(line.split()[1])


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 102, 397, 1000])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain-steps", type=int, default=1, help="in a round")
    parser.add_argument("--steps", type=int, default=2, help="of the others in a round")
    parser.add_argument("--without-plain", action="store_true", help="do not time the plain loop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=256, help="that the loader is timed on")
    parser.add_argument("--memory-of", choices=LOOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    on = arguments.device
    teacher_clip, student_clip = random_backbone("ViT-L-14", on), random_backbone("ViT-B-16", on)
    images = torch.randn(arguments.batch, 3, 224, 224, device=on)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [
            make_setting(n_classes, teacher_clip, student_clip, images, folder)
            for n_classes in arguments.classes
        ]
        if arguments.memory_of:
            print(json.dumps(peak_mib(arguments.memory_of, settings[0])))
            return
        peaks = measure(settings, arguments)
        print(
            f"batch {arguments.batch}, fp32, {on}, {torch.get_num_threads()} threads, torch"
            f" {torch.__version__}; median of {arguments.rounds} rounds (lowest-highest); fastest"
            f" product {spread(peaks, 0)} GFLOPS\n"
        )
        print_steps(settings, peaks, arguments.batch)
        if on != "cpu":
            return
        print_memory(arguments)
        if not arguments.without_plain:  # its costs are in turns of the plain loop
            print_projection(settings[-1], arguments.batch, folder, arguments.images)


if __name__ == "__main__":
    main()
