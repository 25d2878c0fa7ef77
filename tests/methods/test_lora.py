"""PromptKD under `tune: lora`: what is trained and kept, and what the device sees of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.evaluation.flops import count_gmacs
from kdedge.loading.batch import Batch
from kdedge.methods import promptkd

Student = Callable[..., promptkd.Method]
ALL = ["q", "k", "v", "out", "mlp"]


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trained(learn: Callable[..., Any]) -> Callable[[promptkd.Method], promptkd.Method]:
    """Takes a few steps, so that no part has its first values."""

    def train(method: promptkd.Method) -> promptkd.Method:
        learn(method, Batch(images(), None), n_steps=3, lr=0.05)
        return method

    return train


@pytest.mark.parametrize(
    ("tune", "parts"),
    [("lora", {"lora", "projector"}), ("prompts+lora", {"lora", "projector", "visual_prompts"})],
)
def test_the_changes_and_what_goes_with_them_are_trained_and_nothing_else(
    student: Student, trained: Any, tune: str, parts: set[str]
) -> None:
    method = student(tune=tune)
    before = {name: p.detach().clone() for name, p in method.trainable_parameters().items()}
    trained(method)
    after = method.trainable_parameters()
    assert {name.split(".")[0] for name in after} == parts
    assert all(not torch.equal(before[name], after[name]) for name in after)
    lora = {name: p for name, p in after.items() if name.startswith("lora.")}
    assert set(lora) == {f"lora.{i}.attn.{x}.{p}" for i in range(3) for x in "qkv" for p in "ab"}
    assert sum(p.numel() for p in lora.values()) == 3 * 3 * 2 * (64 + 64)


def test_a_student_starts_as_one_whose_projector_alone_is_trained(
    student: Student, tiny_backbone: Backbone
) -> None:
    method = student(tune="lora")
    raw = tiny_backbone.model.visual(images())
    torch.testing.assert_close(method.image_features_raw(images()), raw, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tune", ["lora", "prompts+lora"])
def test_merging_changes_no_answer(student: Student, trained: Any, tune: str) -> None:
    lora = {"rank": 5, "alpha": 3.0, "projections": ALL}
    method = trained(student(tune=tune, lora=lora))
    with torch.no_grad():
        unmerged = method.image_features_raw(images())  # in training mode
    plain = student(tune=tune, lora=lora)
    with torch.no_grad():
        untrained = plain.image_features_raw(images())
    method.module.eval()
    with torch.no_grad():
        merged = method.image_features_raw(images())
    assert float((unmerged - untrained).abs().max()) > 1e-3  # there is something to merge
    torch.testing.assert_close(merged, unmerged, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tune", ["lora", "prompts+lora"])
def test_the_folded_student_is_a_plain_one_with_the_same_answers_and_operations(
    student: Student, trained: Any, fold_and_unfolded: Any, tiny_backbone: Backbone, tune: str
) -> None:
    method = trained(student(tune=tune, lora={"projections": ALL}))
    plain = trained(student(tune="projector" if tune == "lora" else "prompts"))
    folded = []
    for one in (method, plain):
        one.module.eval()
        model, pixels, expected = fold_and_unfolded(one, tiny_backbone.preprocess)
        torch.testing.assert_close(model(pixels), expected, atol=1e-3, rtol=1e-4)
        folded.append(model)
    own, others = ([(name, type(m)) for name, m in one.named_modules()] for one in folded)
    assert own == others
    assert count_gmacs(folded[0], pixels) == count_gmacs(folded[1], pixels)
    for name, layer in method.image_modules().visual.named_modules():
        if name.rpartition(".")[2] in {"q", "k", "v", "out", "c_fc", "c_proj"}:
            assert type(layer) is nn.Linear


def test_a_measured_student_has_the_operations_of_a_plain_one(student: Student) -> None:
    found = []
    for tune in ("lora", "projector"):
        method = student(tune=tune)
        method.module.eval().requires_grad_(False)
        found.append(count_gmacs(method.forward_features, images(1)))
    assert found[0] == found[1]
    assert method.forward_features(images(1)).shape == (1, 40)  # no value of the count is left


def test_each_change_belongs_to_its_blocks_layer(student: Student) -> None:
    chosen = {"tune": "lora", "lora": {"blocks": [0, 2], "projections": ["mlp"]}}
    method = student(**chosen)
    assert method.layers_above() == {
        f"lora.{block}.mlp.{layer}.{part}": 3 - block
        for block in (0, 2)
        for layer in ("c_fc", "c_proj")
        for part in "ab"
    }
    full = student(tune="full").layers_above()
    assert (full["visual.conv1.weight"], full["visual.proj"]) == (4, 0)
    assert set(full) < set(student(tune="full").trainable_parameters())
    assert student().layers_above() == {}
