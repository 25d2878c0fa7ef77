"""Limits of "none of these": who has which, and what they say of an image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kdedge.errors import DataError
from kdedge.runtime.artifact import Artifact, ModelFile, Temperature, load_artifact
from kdedge.runtime.none_of_these import (
    GAUSSIANS_FILE,
    Gaussians,
    NoneBelow,
    NoneOfThese,
    read_gaussians,
)

SHA = "0123456789abcdef" * 4
RECORD = NoneOfThese(
    "mahalanobis", GAUSSIANS_FILE, 95.0, "100 of 200 images of data.unlabeled", 100
)


def limits(limit: float) -> NoneBelow:
    """A known image's score is as likely as any other from 0 to 10."""
    return NoneBelow(limit, tuple(i / 10 for i in range(101)))


def with_none(artifact: Artifact, **changes: object) -> Artifact:
    """The artifact with "none of these", saved."""
    file = dataclasses.replace(artifact.files[0], none_below=limits(0.5))
    values = {"none_of_these": RECORD, "files": (file,), **changes}
    changed = dataclasses.replace(artifact, **values)
    changed.save()
    return changed


def test_an_image_is_none_below_the_limit() -> None:
    found = limits(0.5).similarities(np.array([4.0, 0.4, 0.5, -8.0, 99.0]))
    is_none, percents = zip(*found, strict=True)
    assert is_none == (False, True, False, True, False)
    # Of scores from 0 to 10, 40 % are below 4
    np.testing.assert_allclose(percents, [40, 4, 5, 0, 100], atol=1e-9)


def test_a_score_is_the_distance_to_the_nearest_mean() -> None:
    rng = np.random.default_rng(0)
    gaussians = Gaussians(rng.normal(0, 1, (3, 5)), rng.normal(0, 1, (4, 3)))
    outputs = rng.normal(0, 2, (20, 5)).astype(np.float32)
    expected = [
        -min(
            sum(
                (float(row @ one) - mean) ** 2
                for row, mean in zip(gaussians.whitening, means, strict=True)
            )
            for means in gaussians.means
        )
        for one in outputs.astype(np.float64)
    ]
    np.testing.assert_allclose(gaussians.scores(outputs), expected, rtol=1e-9)


def test_gaussians_are_read_back_equal(tmp_path: Path) -> None:
    gaussians = Gaussians(np.eye(3), np.ones((2, 3)))
    path = tmp_path / GAUSSIANS_FILE
    path.write_bytes(gaussians.to_bytes())
    found = read_gaussians(path)
    np.testing.assert_array_equal(found.whitening, gaussians.whitening)
    np.testing.assert_array_equal(found.means, gaussians.means)


def test_an_artifact_with_limits_is_read_back_equal(artifact: Artifact) -> None:
    temperature = Temperature(1.5, "teacher", "all", 12)
    saved = with_none(artifact, temperature=temperature)
    assert load_artifact(artifact.path) == saved
    record = json.loads((artifact.path / "artifact.json").read_text())
    assert record["temperature"]["value"] == 1.5
    assert record["none_of_these"]["share_percent"] == 95


def test_a_file_that_was_built_from_another_has_its_limits(artifact: Artifact) -> None:
    (float32,) = with_none(artifact).files
    half = ModelFile("b.onnx", "onnx", "fp16", "any", SHA, 9, none_below=limits(2))
    engine = ModelFile("c.engine", "tensorrt", "fp16", "gpu", SHA[::-1], 9, made_from=SHA)
    other = ModelFile("d.pte", "executorch", "fp16", "cpu", SHA[::-1], 9)
    both = with_none(artifact, files=(float32, half, engine, other))
    assert [both.none_below(file) for file in both.files] == [
        limits(0.5), limits(2), limits(2), limits(0.5)
    ]  # fmt: skip
    assert artifact.none_below(artifact.files[0]) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"percentiles": [0.0] * 100}, "101 scores in ascending order"),
        ({"percentiles": [1.0, *[0.0] * 100]}, "101 scores in ascending order"),
        ({"limit": None}, "files.0.none_below.limit: "),
    ],
)
def test_damaged_limits_are_named(artifact: Artifact, change: dict[str, object], said: str) -> None:
    with_none(artifact)
    path: Path = artifact.path / "artifact.json"
    record = json.loads(path.read_text())
    record["files"][0]["none_below"] |= change
    path.write_text(json.dumps(record))
    with pytest.raises(DataError) as caught:
        load_artifact(artifact.path)
    assert said in str(caught.value)
