"""FPL, IFPL and GRIP: how many images a round takes, which, and what they weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone
from kdedge.data.pseudo_labels import most_probable
from kdedge.loading.batch import Batch
from kdedge.methods import promptsrc
from kdedge.methods.base import MethodInputs
from kdedge.paper.methods import coop, pseudo_label

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
PROMPTSRC = {"prompt_depth_text": 2, "prompt_depth_vision": 2, "n_anchor_templates": 4}


def build(backbone: Backbone, **chosen: Any) -> Any:
    return pseudo_label.Method(
        backbone,
        pseudo_label.Settings(**chosen),
        MethodInputs(NAMES, "unused {}", range(4), torch.Generator().manual_seed(1)),
    )


def batch() -> tuple[Batch, torch.Tensor]:
    """Six images, four of them pseudo-labeled with novel classes, and which those are."""
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([2, 0, 3, 1, 3, 2])), torch.tensor([1, 0, 1, 0, 1, 1]) > 0


@pytest.mark.parametrize(
    ("chosen", "method_type"),
    [
        ({"promptsrc": PROMPTSRC}, promptsrc.Method),
        ({"coop": {"n_ctx": 3}}, coop.Method),
    ],
)
def test_the_cross_entropies_of_both_parts_are_added_with_the_ratio_of_their_images(
    tiny_backbone: Backbone, chosen: dict[str, Any], method_type: type
) -> None:
    method = build(tiny_backbone, **chosen)
    assert type(method) is method_type
    given, is_pseudo = batch()
    weights = pseudo_label.Settings().weigh(is_pseudo, n_labeled=40, n_pseudo=16)
    weighted = Batch(given.images, given.labels, weights=weights)
    ours, plain = (float(method.training_step(one).loss.detach()) for one in (weighted, given))
    features, vectors = method.forward_features(given.images), method.class_vectors()
    logits = method.scale * features @ vectors.T
    labels = given.labels
    expected = F.cross_entropy(logits[~is_pseudo], labels[~is_pseudo])
    expected = expected + 40 / 16 * F.cross_entropy(logits[is_pseudo], labels[is_pseudo])
    # The learner's other losses are the same in both
    assert ours - plain == pytest.approx(
        float(expected - F.cross_entropy(logits, labels)), rel=1e-3
    )


@pytest.mark.parametrize("is_pseudo", [[True] * 3, [False] * 3])
def test_a_batch_of_one_part_alone_has_that_parts_term(is_pseudo: list[bool]) -> None:
    weights = pseudo_label.Settings().weigh(torch.tensor(is_pseudo), n_labeled=40, n_pseudo=16)
    expected = (40 / 16 if is_pseudo[0] else 1) / 3
    torch.testing.assert_close(weights, torch.full((3,), expected))


def counts(variant: str, n_images: int, n_classes: int, rounds: int = 10) -> list[int]:
    settings = pseudo_label.Settings(variant=variant, rounds=rounds, per_class=16)
    return [
        pseudo_label.images_per_class(
            settings, round_number=t, n_images=n_images, n_classes=n_classes
        )
        for t in range(1, settings.n_rounds + 1)
    ]


def test_rounds_take_as_many_images_as_the_variant_says() -> None:
    assert counts("fpl", 5000, 100) == [16]
    assert counts("ifpl", 5000, 100) == [16] * 10
    assert counts("grip", 5000, 100) == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    # floor(4093 / 10) = 409 images more a round, over 102 classes
    assert counts("grip", 4093, 102) == [409 * t // 102 for t in range(1, 11)]
    assert counts("grip", 30, 20, rounds=3) == [1, 1, 1]
    assert max(counts("grip", 4093, 102)) <= 4093 // 102


def test_only_classes_without_labels_get_images() -> None:
    table = np.random.default_rng(0).dirichlet([1, 1, 1, 1], 40).astype(np.float32)
    settings = pseudo_label.Settings(variant="fpl", per_class=5)
    chosen = settings.choose_labels(table, round_number=1, classes=[2, 3])
    assert chosen == most_probable(table, 5, classes=[2, 3])
    grip = pseudo_label.Settings(variant="grip", rounds=2)
    last = grip.choose_labels(table, round_number=2, classes=[2, 3])
    assert [one.label for one in last] == [2] * 10 + [3] * 10


def test_one_class_without_labels_is_enough() -> None:
    table = np.random.default_rng(0).dirichlet([1, 1], 5).astype(np.float32)
    settings = pseudo_label.Settings(variant="fpl", per_class=2)
    chosen = settings.choose_labels(table, round_number=1, classes=[1])
    assert [one.row for one in chosen] == np.argsort(-table[:, 1])[:2].tolist()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"per_class": 0}, "greater than or equal to 1"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"variant": "GRIP"}, "'fpl', 'ifpl' or 'grip'"),
        ({"promptsrc": {}, "coop": {}}, "only one learner"),
        ({"coop": {"n_ctxx": 4}}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        pseudo_label.Settings(**chosen)


def test_class_specific_contexts_are_the_learners_to_have() -> None:
    assert pseudo_label.Settings(coop={"class_specific": True}).is_class_specific
    assert not pseudo_label.Settings().is_class_specific


def test_the_learners_layers_are_counted() -> None:
    depths = pseudo_label.Settings().layer_counts
    assert depths == {
        "promptsrc.prompt_depth_text": ("text",),
        "promptsrc.prompt_depth_vision": ("image",),
    }
    assert pseudo_label.Settings(coop={"n_ctx": 3}).layer_counts == {}
