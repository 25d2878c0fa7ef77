"""Stored class vectors and text features: by name, with a hash, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from open_clip import CLIP
from safetensors import safe_open
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import ClassVectors, TextFeatureCache, load_class_vectors
from kdedge.clip.tensor_file import encode_tensors
from kdedge.errors import DataError, ShapeError
from kdedge.files import sha256_json

NAMES = ("cat", "dog, big", 'a "quoted" fox', "Käfer")


def vectors() -> ClassVectors:
    drawn = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    return ClassVectors(torch.nn.functional.normalize(drawn, dim=-1), NAMES, "abc")


def test_a_file_gives_back_the_same_vectors_names_and_hash(tmp_path: Path) -> None:
    vectors().save(tmp_path / "class_vectors.safetensors")
    loaded = load_class_vectors(tmp_path / "class_vectors.safetensors")
    assert loaded.class_names == NAMES
    assert loaded.provenance == "abc"
    assert torch.equal(loaded.vectors, vectors().vectors)


def test_another_order_of_names_gives_the_vectors_in_that_order() -> None:
    selected = vectors().select(("Käfer", "cat"))
    assert selected.class_names == ("Käfer", "cat")
    assert torch.equal(selected.vectors, vectors().vectors[[3, 0]])


def test_a_name_without_a_vector_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match="1 class names have no stored vector, for example 'wolf'"):
        vectors().select(("cat", "wolf"))


def test_vectors_and_names_of_different_counts_are_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"3 class names, but the class vectors have shape \[4, 8\]"
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
    with pytest.raises(DataError, match=r"class_vectors\.safetensors does not hold class vectors"):
        load_class_vectors(path)


def rewrite(path: Path, tensor: Tensor | None = None, **metadata: str) -> None:
    """Writes other metadata, or another tensor with its own hash, into a file of class vectors."""
    with safe_open(path, framework="pt") as file:
        before, kept = file.metadata(), file.get_tensor("class_vectors")
    if tensor is not None:
        metadata["sha256"] = hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest()
    new = kept if tensor is None else tensor
    path.write_bytes(encode_tensors({"class_vectors": new}, {**before, **metadata}))


def test_two_names_that_change_places_in_the_file_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "class_vectors.safetensors"
    vectors().save(path)
    rewrite(path, class_names=json.dumps([NAMES[1], NAMES[0], *NAMES[2:]]))
    with pytest.raises(DataError, match="its class names have changed since they were written"):
        load_class_vectors(path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("5", r"class_names of its metadata is 5 \(int\); expected a valid array"),
        ("null", "class_names of its metadata is null"),
        ("[" * 100_000 + "]" * 100_000, "is not valid JSON: recursion limit"),
        ('["a", "b", "c", 4]', r"\[3\] is 4 \(int\)"),
        ('["a", "b"]', "2 class names, but the class vectors have shape"),
    ],
)
def test_names_that_are_none_are_refused_with_the_files_name(
    tmp_path: Path, names: str, said: str
) -> None:
    path = tmp_path / "class_vectors.safetensors"
    vectors().save(path)
    rewrite(path, class_names=names, sha256_names=sha256_json(["a", "b"]))
    with pytest.raises(DataError, match=said) as caught:
        load_class_vectors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_vectors_of_another_type_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "class_vectors.safetensors"
    vectors().save(path)
    rewrite(path, torch.ones(4, 8, dtype=dtype))
    with pytest.raises(DataError, match=r"expected torch\.float32"):
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


def test_of_processes_on_one_folder_one_computes_and_the_others_read(tmp_path: Path) -> None:
    """Here threads, whose caches share nothing but the folder."""
    calls = []

    def compute() -> Tensor:
        calls.append(1)
        time.sleep(0.1)  # the others arrive meanwhile
        return torch.ones(1, 3)

    caches = [TextFeatureCache(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(len(caches)) as pool:
        found = list(pool.map(lambda cache: cache.get("weights", ["a"], compute), caches))
    assert all(torch.equal(features, torch.ones(1, 3)) for features in found)
    assert len(calls) == 1


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


def test_frozen_texts_of_a_backbone_are_those_of_open_clip(
    tiny_backbone: Backbone, tiny_open_clip: CLIP
) -> None:
    texts = [f"a photo of a {name}." for name in NAMES]
    expected = tiny_open_clip.encode_text(tiny_backbone.tokenizer(texts))
    torch.testing.assert_close(
        tiny_backbone.text_features_raw(texts), expected, atol=1e-5, rtol=1e-4
    )
