"""What could make a student's step faster on this machine, each against the step as it is.

ViT-B/16 student, 397 classes, teacher's features from a store, random weights, float32:

* as it is;
* open_clip's MLP: QuickGELU as a module of its own, in place of `clip.blocks`' silu, as a hook on a
  linear layer has it;
* compiled: the image encoder by `torch.compile`, whose first step is left out and said;
* freed memory given back: glibc's default, which `training.heap` changes;
* channels last: images and patch convolution in that memory format;
* two micro-batches: the price of half the activations.

Steps are taken in turns, so that drift of the machine hits all alike; ratios are taken round by
round.

    python benchmarks/step_variants.py [--batch 8] [--rounds 5] [--without compiled]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from plain_loop import random_backbone
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone
from kdedge.data.batch import Batch
from kdedge.methods import promptkd
from kdedge.training.loop.heap import give_back_freed_memory, keep_freed_memory

N_CLASSES, DIM = 397, 768


class Vectors:
    """A teacher that only has class vectors: its features come with the batch."""

    scale = 100.0

    def class_vectors(self) -> Tensor:
        """[C, D]."""
        generator = torch.Generator().manual_seed(1)
        return F.normalize(torch.randn(N_CLASSES, DIM, generator=generator), dim=-1)


def make_student(backbone: Backbone) -> promptkd.Method:
    """A student of published settings."""
    return promptkd.Method.build(
        backbone,
        [f"place {number}" for number in range(N_CLASSES)],
        promptkd.Settings(),
        template="{}",
        train_classes=range(1),
        teacher=Vectors(),
        generator=torch.Generator().manual_seed(0),
    )


@dataclass
class Variant:
    """A way to take a step: a student, its batch, and what is in force meanwhile."""

    student: promptkd.Method
    batch: Batch
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def seconds(self) -> float:
        """Takes a step."""
        parameters = self.student.trainable_parameters().values()
        began = time.perf_counter()
        with self.context():
            loss = self.student.training_step(self.batch).loss
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
        return time.perf_counter() - began


@contextlib.contextmanager
def freed_memory_given_back() -> Iterator[None]:
    """Context in which glibc does as it does by default."""
    give_back_freed_memory()
    yield
    keep_freed_memory()


@contextlib.contextmanager
def hooked(backbone: Backbone) -> Iterator[None]:
    """Context in which a hook that does nothing is on each MLP's first layer."""
    blocks = backbone.visual.transformer.resblocks
    hooks = [block.mlp.c_fc.register_forward_hook(lambda *_: None) for block in blocks]
    yield
    for hook in hooks:
        hook.remove()


def variants(batch_size: int) -> Iterator[tuple[str, Variant]]:
    """All of them, by name; the first is the step as it is."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, 224, 224)
    features = F.normalize(torch.randn(batch_size, DIM), dim=-1)
    batch = Batch(images, None, teacher_features=features)
    backbone = random_backbone("ViT-B-16")
    student = make_student(backbone)
    yield "as it is", Variant(student, batch)
    yield "open_clip's MLP", Variant(student, batch, lambda: hooked(backbone))
    yield "freed memory given back", Variant(student, batch, freed_memory_given_back)
    compiled = make_student(backbone)
    compiled.image_features_raw = torch.compile(compiled.image_features_raw)
    yield "compiled", Variant(compiled, batch)
    last = random_backbone("ViT-B-16")
    last.visual.conv1.to(memory_format=torch.channels_last)
    images_last = images.contiguous(memory_format=torch.channels_last)
    yield (
        "channels last",
        Variant(make_student(last), Batch(images_last, None, teacher_features=features)),
    )
    halves = Batch(images, None, teacher_features=features, micro_batch=(batch_size + 1) // 2)
    yield "two micro-batches", Variant(student, halves)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="variants to leave out")
    arguments = parser.parse_args()
    keep_freed_memory()
    found = {
        name: variant
        for name, variant in variants(arguments.batch)
        if name not in arguments.without
    }
    first = {name: variant.seconds() for name, variant in found.items()}
    rounds = [
        {name: variant.seconds() for name, variant in found.items()}
        for _ in range(arguments.rounds)
    ]
    print(
        f"batch {arguments.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| step | first, s | s | times as fast as it is |\n|---|---:|---:|---:|")
    for name in found:
        ratios = [seen["as it is"] / seen[name] for seen in rounds]
        print(
            f"| {name} | {first[name]:.1f} | {statistics.median(s[name] for s in rounds):.2f} |"
            f" {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
