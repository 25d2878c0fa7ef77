"""A training small enough to be killed often: a module, its batches, and a process that runs them.

As a script: `toy_run.py ROOT '{"epochs": 3, ...}'` trains in ROOT/toy/01, goes on there where an
earlier process stopped, and writes the final weights.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdedge.config.optim_spec import OptimSettings
from kdedge.errors import KdedgeError
from kdedge.loading.batch import Batch
from kdedge.methods.base import BaseMethod, StepOutput
from kdedge.runs.folder import RunFolder, logged_to
from kdedge.runs.provenance import TrainingSummary
from kdedge.training.loop.optim import learning_rate
from kdedge.training.loop.train import train

N_STEPS = 7
N_CLASSES = 3
BATCH = 4


class ToyMethod(BaseMethod):
    """Linear regression with batch norm and dropout, and noise from every global generator."""

    can_split_batches = True

    def __init__(
        self, *, average: bool = False, step_s: float = 0.0, layers: dict[str, int] | None = None
    ) -> None:
        self.module = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)
        )
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        self._average, self._step_s, self._layers = average, step_s, layers or {}
        self.seen: list[tuple[str, ...]] = []

    def training_step(self, batch: Batch) -> StepOutput:
        assert self.module.training
        time.sleep(self._step_s)
        self.seen.append(batch.keys)
        noise = random.random() + float(np.random.rand())
        logits = self.module(batch.images).float()
        loss = nn.functional.cross_entropy(logits + 0.01 * noise, batch.labels)
        loss = loss + 0.1 * (logits * noise).square().mean()
        return StepOutput(loss, {"noise": torch.tensor(noise)})

    def class_vectors(self) -> Tensor:
        raise NotImplementedError

    def layers_above(self) -> dict[str, int]:
        return self._layers

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        total = n_epochs * (n_epochs + 1) / 2
        return [e / total for e in range(1, n_epochs + 1)] if self._average else None


def draw_batch(epoch: int, step: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 * epoch + step)
    images = torch.randn(BATCH, 3, 2, 2, generator=generator)
    labels = torch.randint(N_CLASSES, (BATCH,), generator=generator)
    return Batch(images, labels, tuple(f"e{epoch}s{step}i{i}.jpg" for i in range(BATCH)))


def batches(epoch: int, first_step: int) -> Iterator[Batch]:
    for step in range(first_step, N_STEPS):
        yield draw_batch(epoch, step)


def interrupted_at(place: tuple[int, int]) -> Callable[[int, int], Iterator[Batch]]:
    """Gives batches until a step of an epoch, both counted as `draw_batch` does."""

    def give(epoch: int, first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(epoch, first_step), first_step):
            if (epoch, step) == place:
                raise InterruptedError
            yield batch

    return give


def train_plainly(
    settings: OptimSettings, after_step: Callable[[ToyMethod, int, float], None]
) -> ToyMethod:
    """Trains in a slow, obvious loop; each step is told with its epoch and loss."""
    seed_everything(1)
    method = ToyMethod()
    method.module.train()
    parameters = list(method.module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(1, settings.epochs + 1):
        for step in range(N_STEPS):
            optimizer.param_groups[0]["lr"] = learning_rate(settings, epoch=epoch)
            loss = method.training_step(draw_batch(epoch, step)).loss
            optimizer.zero_grad()
            loss.backward()
            if settings.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameters, settings.clip_grad_norm)
            optimizer.step()
            after_step(method, epoch, float(loss.detach()))
    return method


def make_settings(**values: Any) -> OptimSettings:
    return OptimSettings(**{"epochs": 3, "batch_size": BATCH, "lr": 0.05, **values})


def make_run(root: Path, **provenance: Any) -> RunFolder:
    return RunFolder.create(
        root, "toy", role="student", recipe_text="name: toy\n", provenance=provenance
    )


def train_toy(run: RunFolder, method: ToyMethod, **others: Any) -> TrainingSummary:
    """Trains with what is not given filled in; `batches` gives those of one epoch."""
    of_epoch, settings = others.pop("batches", batches), others.pop("settings", make_settings())

    def remaining(epoch: int, first_step: int) -> Iterator[Batch]:
        for number in range(epoch, settings.epochs + 1):
            yield from of_epoch(number, first_step if number == epoch else 0)

    given = {
        "batches": remaining,
        "n_steps": N_STEPS,
        "settings": settings,
        "validate": None,
        "device": torch.device("cpu"),
        **others,
    }
    return train(method, run=run, **given)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def weights_of(method: ToyMethod) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.module.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Asserts that weights are equal to the bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def accuracy_of(method: ToyMethod) -> float:
    assert not method.module.training
    batch = draw_batch(99, 0)
    return 100 * float((method.module(batch.images).argmax(1) == batch.labels).float().mean())


def main(root: Path, options: dict[str, Any]) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    torch.set_num_threads(1)
    seed_everything(3)
    method = ToyMethod(average=options.pop("average", False), step_s=options.pop("step_s", 0.0))
    settings = make_settings(**options)
    try:
        path = root / "toy" / "01"
        run = RunFolder.open(path) if path.exists() else make_run(root)
        validate = None if settings.selection == "last" else lambda: accuracy_of(method)
        with run.lock(), logged_to(run.log):
            train_toy(run, method, settings=settings, validate=validate)
            save_file(weights_of(method), run.weights)
            run.finish()
    except KdedgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
