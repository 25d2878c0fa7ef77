"""Runs that version 0.1 left unfinished: query, key and value were one trained tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.data.batch import Batch
from kdedge.methods import promptkd, zeroshot
from kdedge.training.loop.checkpoint import load_newest, save_checkpoint

N_STEPS = 3


def build(student: Backbone, teacher: Backbone) -> promptkd.Method:
    common: dict[str, Any] = {"template": "a {}.", "train_classes": range(3)}
    names = ["cat", "dog", "red fox"]
    taught_by = zeroshot.Method.build(
        teacher,
        names,
        zeroshot.Settings(),
        teacher=None,
        generator=torch.Generator(),
        **common,
    )
    return promptkd.Method.build(
        student,
        names,
        promptkd.Settings(tune="full"),
        teacher=taught_by,
        generator=torch.Generator().manual_seed(1),
        **common,
    )


def batches(epoch: int, first_step: int) -> Iterator[Batch]:
    for step in range(first_step, N_STEPS):
        generator = torch.Generator().manual_seed(100 * epoch + step)
        yield Batch(torch.randn(4, 3, 32, 32, generator=generator), None)


def as_version_0_1(optimizer: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The state as version 0.1 wrote it: one entry where query, key and value have three."""
    entries: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        head, _, kind = name.rpartition(".")
        block, _, part = head.rpartition(".")
        is_fused = block.endswith(".attn") and part in {"q", "k", "v"}
        entry = entries.setdefault(f"{block}.in_proj_{kind}" if is_fused else name, {})
        for key, value in optimizer["state"][index].items():
            entry.setdefault(key, []).append(value)

    def join(values: list[Any]) -> Any:
        is_tensor = isinstance(values[0], Tensor) and values[0].ndim > 0
        return torch.cat(values) if is_tensor and len(values) > 1 else values[0]

    (group,) = optimizer["param_groups"]
    return {
        "state": {
            index: {key: join(values) for key, values in entry.items()}
            for index, entry in enumerate(entries.values())
        },
        "param_groups": [{**group, "params": list(range(len(entries)))}],
    }


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_a_checkpoint_of_version_0_1_goes_on_to_the_bit(
    toy: ModuleType,
    tiny_backbone: Backbone,
    tiny_teacher_backbone: Backbone,
    tmp_path: Path,
    algorithm: str,
) -> None:
    settings = toy.make_settings(
        algorithm=algorithm, epochs=2, lr=1e-3, weight_decay=0.01, checkpoint_every_s=1e-9
    )

    def run(folder: Any, source: Any = batches) -> dict[str, Tensor]:
        method = build(tiny_backbone, tiny_teacher_backbone)
        toy.train_toy(folder, method, batches=source, n_steps=N_STEPS, settings=settings)
        return toy.weights_of(method)

    def stopping(epoch: int, first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(epoch, first_step), first_step):
            if (epoch, step) == (2, 1):
                raise InterruptedError
            yield batch

    expected = run(toy.make_run(tmp_path))
    folder = toy.make_run(tmp_path)
    with contextlib.suppress(InterruptedError):
        run(folder, stopping)
    state = load_newest(folder.checkpoints)
    assert state is not None
    names = list(build(tiny_backbone, tiny_teacher_backbone).trainable_parameters())
    fused = as_version_0_1(state.optimizer, names)
    assert len(fused["state"]) == len(state.optimizer["state"]) - 4 * 3
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in state.module
    save_checkpoint(folder.checkpoints, replace(state, optimizer=fused))

    actual = run(folder)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
