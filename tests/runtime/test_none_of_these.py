"""Limits of "none of these": who has which, and what they say of an image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kdedge.errors import DataError
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact
from kdedge.runtime.none_of_these import NoneBelow, NoneOfThese, known_scores
from kdedge.runtime.temperature import Temperature

SHA = "0123456789abcdef" * 4
RECORD = NoneOfThese("max logit", 95.0, "100 of 200 images of data.unlabeled", 100)


def limits(limit: float, **per_class: float) -> NoneBelow:
    """A known image's score is as likely as any other from 0 to 10."""
    return NoneBelow(limit, tuple(i / 10 for i in range(101)), per_class)


def with_none(artifact: Artifact, **changes: object) -> Artifact:
    """The artifact with "none of these", saved."""
    file = dataclasses.replace(artifact.files[0], none_below=limits(0.5))
    values = {"none_of_these": RECORD, "files": (file,), **changes}
    changed = dataclasses.replace(artifact, **values)
    changed.save()
    return changed


def test_an_image_is_none_below_the_limit_of_its_best_class() -> None:
    logits = np.array([[4.0, 1.0], [1.0, 4.0], [0.4, 0.3], [0.5, 0.2], [-9.0, -8.0]], np.float32)
    found = known_scores(logits, limits(0.5, dog=5.0), ("cat", "dog"))
    assert [one.is_none for one in found] == [False, True, True, False, True]
    # Of scores from 0 to 10, 40 % are below 4
    np.testing.assert_allclose([one.percent for one in found], [40, 40, 4, 5, 0], atol=1e-5)


def test_an_artifact_with_limits_is_read_back_equal_in_a_newer_format(artifact: Artifact) -> None:
    temperature = Temperature(1.5, "teacher", "all", 12)
    saved = with_none(artifact, temperature=temperature)
    assert load_artifact(artifact.path) == saved
    record = json.loads((artifact.path / "artifact.json").read_text())
    assert record["format"] == 4
    assert record["temperature"]["value"] == 1.5
    assert record["none_of_these"]["share_percent"] == 95


def test_an_artifact_without_both_stays_in_the_older_format(artifact: Artifact) -> None:
    record = json.loads((artifact.path / "artifact.json").read_text())
    assert record["format"] == 2
    assert not {"temperature", "none_of_these"} & record.keys()
    assert "none_below" not in record["files"][0]
    assert load_artifact(artifact.path).none_of_these is None


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
        ({"limit": None}, "files[0].none_below.limit is null"),
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
