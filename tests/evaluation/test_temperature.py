"""The fitted temperature, against a search over many."""

from __future__ import annotations

import numpy as np
import pytest

from kdedge.evaluation.accuracy import temperature_of_labels, temperature_of_share

GRID = np.exp(np.linspace(np.log(0.2), np.log(15), 4001))
STEP = GRID[1] / GRID[0]


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of 200 images and 5 classes, of which about half are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 200)
    logits = rng.normal(0, 2, (200, 5))
    logits[np.arange(200), labels] += 1.5
    return logits.astype(np.float32), labels


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_labels_give_the_temperature_with_the_lowest_likelihood_loss(factor: float) -> None:
    logits, labels = draw()
    logits = np.float32(factor) * logits

    def loss(temperature: float) -> float:
        of_label = probabilities(logits, temperature)[np.arange(len(labels)), labels]
        return float(-np.log(of_label).mean())

    best = GRID[np.argmin([loss(one) for one in GRID])]
    found = temperature_of_labels(logits, labels)
    assert found is not None
    assert best / STEP <= found <= best * STEP


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_mean_confidence_becomes_the_share(share: float) -> None:
    logits, _ = draw()
    found = temperature_of_share(logits, share)
    assert found is not None
    confidence = probabilities(logits, found).max(axis=1).mean()
    assert confidence == pytest.approx(share, abs=1e-9)


def test_scaled_logits_have_a_scaled_temperature() -> None:
    logits, labels = draw()
    assert temperature_of_labels(4 * logits, labels) == pytest.approx(
        4 * temperature_of_labels(logits, labels), rel=1e-6
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_that_no_temperature_gives_has_none(share: float) -> None:
    """Five classes have a confidence of a fifth or more."""
    assert temperature_of_share(draw()[0], share) is None


def test_labels_that_are_all_right_or_useless_have_no_temperature() -> None:
    logits, _ = draw()
    assert temperature_of_labels(logits, logits.argmax(axis=1)) is None
    assert temperature_of_labels(logits, logits.argmin(axis=1)) is None
    assert temperature_of_labels(logits[:, :1], np.zeros(200, np.int64)) is None
