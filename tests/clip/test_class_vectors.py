"""Stored class vectors and text features: by name, with a hash, refused when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdedge.clip.class_vectors import ClassVectors, TextFeatureCache, load_class_vectors
from kdedge.errors import DataError
from kdedge.tensor_file import write_tensors

NAMES = ("cat", "dog, big", 'a "quoted" fox', "Käfer")


def vectors() -> ClassVectors:
    drawn = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    return ClassVectors(torch.nn.functional.normalize(drawn, dim=-1), NAMES, "abc")


def test_a_file_gives_back_the_same_vectors_names_and_hash(tmp_path: Path) -> None:
    vectors().save(tmp_path / "class_vectors.safetensors")
    loaded = load_class_vectors(tmp_path / "class_vectors.safetensors")
    assert loaded.class_names == NAMES
    assert loaded.vectors_hash == "abc"
    assert torch.equal(loaded.vectors, vectors().vectors)


def test_vectors_and_names_of_different_counts_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"3 class names, but the class vectors have shape \[4, 8\]"
    ):
        ClassVectors(vectors().vectors, NAMES[:3], "abc")


@pytest.mark.parametrize("factor", [0.0, 1.01, 2.0, float("nan")])
def test_vectors_longer_than_unit_length_or_of_no_length_are_refused(factor: float) -> None:
    with pytest.raises(DataError, match="expected at most 1"):
        ClassVectors(factor * vectors().vectors, NAMES, "abc")


def test_averages_of_unit_vectors_may_be_shorter() -> None:
    average = (vectors().vectors + vectors().vectors.flip(0)) / 2
    assert ClassVectors(average, NAMES, "abc").vectors is average


@pytest.mark.parametrize("content", [b"", b"not a tensor file", b"\xff" * 64])
def test_a_damaged_file_is_an_error_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "class_vectors.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"class_vectors\.safetensors cannot be read"):
        load_class_vectors(path)


@pytest.mark.parametrize(
    ("rows", "facts", "said"),
    [
        (4, {"class_names": '["a", "b"]', "made_by": "x"}, "2 class names, but the class vectors"),
        (4, {"made_by": "x"}, "does not hold class vectors"),
    ],
)
def test_another_file_of_tensors_is_refused_with_its_name(
    tmp_path: Path, rows: int, facts: dict[str, str], said: str
) -> None:
    path = tmp_path / "class_vectors.safetensors"
    write_tensors(path, {"class_vectors": torch.ones(rows, 8) / 3}, facts)
    with pytest.raises(DataError, match=said):
        load_class_vectors(path)


def test_text_features_are_computed_once_for_weights_and_texts(tmp_path: Path) -> None:
    calls = []

    def compute() -> Tensor:
        calls.append(1)
        return torch.full((2, 3), float(len(calls)))

    first = TextFeatureCache(tmp_path).get("weights", ["a", "b"], compute)
    again = TextFeatureCache(tmp_path).get("weights", ["a", "b"], compute)
    assert torch.equal(first, again)
    assert len(calls) == 1
    TextFeatureCache(tmp_path).get("other weights", ["a", "b"], compute)
    TextFeatureCache(tmp_path).get("weights", ["b", "a"], compute)
    assert len(calls) == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:-1] + b"x"])
def test_a_damaged_cache_file_is_computed_again_and_said_so(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    TextFeatureCache(tmp_path).get("weights", ["a"], lambda: torch.zeros(1, 3))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    again = TextFeatureCache(tmp_path).get("weights", ["a"], lambda: torch.ones(1, 3))
    assert torch.equal(again, torch.ones(1, 3))
    assert "Computing it again" in caplog.text
