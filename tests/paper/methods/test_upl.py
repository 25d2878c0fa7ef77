"""UPL: several CoOps in one, each trained as alone, their logits averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kdedge.clip.class_vectors import ClassVectors
from kdedge.data.pseudo_labels import most_confident_predicted
from kdedge.loading.batch import Batch
from kdedge.paper.methods import upl

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
Build = Callable[..., Any]


def coop_runs(build: Build, method: upl.Method) -> list[Any]:
    """CoOps with the values of a method's contexts."""
    runs = []
    for context in method.module.contexts.detach():
        runs.append(build("coop", n_trained=4, n_ctx=len(context), context_init=""))
        runs[-1].module.context.data.copy_(context)
    return runs


def batch(step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return Batch(images, torch.randint(4, (4,), generator=generator))


def test_each_run_trains_as_a_coop_alone(build: Build) -> None:
    method = build("upl")
    alone = coop_runs(build, method)

    def train(trained: Any) -> None:
        parameters = trained.trainable_parameters().values()
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
        for step in range(3):
            optimizer.zero_grad()
            trained.training_step(batch(step)).loss.backward()
            optimizer.step()

    for trained in (method, *alone):
        train(trained)
    expected = torch.stack([run.module.context.detach() for run in alone])
    torch.testing.assert_close(method.module.contexts.detach(), expected, **FLOAT32)


def test_the_answer_is_the_average_of_the_runs_logits(build: Build) -> None:
    method = build("upl")
    images = batch().images
    runs = coop_runs(build, method)
    logits = [run.class_logits(run.training_features(images)) for run in runs]
    expected = torch.stack(logits).mean(dim=0)
    ours = method.scale * method.forward_features(images) @ method.class_vectors().T
    torch.testing.assert_close(ours, expected, **FLOAT32)
    torch.testing.assert_close(
        method.class_logits(method.training_features(images)), expected, **FLOAT32
    )
    vectors = method.class_vectors()
    assert float(vectors.norm(dim=-1).max()) < 1
    assert len(ClassVectors(vectors, tuple(NAMES), "x").vectors) == 4


def test_the_loss_is_the_sum_of_the_runs(build: Build) -> None:
    method = build("upl")
    runs = coop_runs(build, method)
    output = method.training_step(batch())
    expected = sum(float(run.training_step(batch()).loss.detach()) for run in runs)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(output.scalars["loss_of_a_run"]) == pytest.approx(expected / 3, rel=1e-5)


def test_pseudo_labeled_images_weigh_the_same(build: Build) -> None:
    method, plain = build("upl"), batch()
    weights = upl.Settings().weigh(torch.ones(4, dtype=torch.bool), n_labeled=0, n_pseudo=9)
    weighted = method.training_step(Batch(plain.images, plain.labels, weights=weights))
    torch.testing.assert_close(weighted.loss, method.training_step(plain).loss)


def test_the_contexts_are_drawn_each_by_itself(build: Build) -> None:
    contexts = build("upl", n_runs=4, n_ctx=16).module.contexts.detach()
    assert contexts.shape == (4, 16, 64)
    assert float(contexts.std()) == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(contexts[0], contexts[1])


def test_it_chooses_the_most_confident_of_the_images_predicted_as_a_class() -> None:
    rng = np.random.default_rng(0)
    table = rng.dirichlet([1, 1, 1, 1], 50).astype(np.float32)
    settings = upl.Settings(per_class=3)
    chosen = settings.choose_labels(table, round_number=1, classes=range(2, 4))
    assert chosen == most_confident_predicted(table, 3)
    assert settings.n_rounds == 1
