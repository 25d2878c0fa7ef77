"""Files of tensors: as the library reads its own, and equal bytes for equal contents."""

from __future__ import annotations

import torch
from safetensors import safe_open
from safetensors.torch import save

from kdedge.clip.tensor_file import encode_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3), "empty": torch.zeros(0, 4)}
METADATA = {key: f"{key} Käfer" for key in ("one", "two", "three", "four", "five")}


def test_the_library_reads_the_same_tensors_and_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_tensors(TENSORS, METADATA))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == METADATA
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_equal_contents_have_equal_bytes_whatever_their_order():
    expected = encode_tensors(TENSORS, METADATA)
    for _ in range(20):
        turned = dict(reversed(METADATA.items()))
        assert encode_tensors(dict(reversed(TENSORS.items())), turned) == expected


def test_one_entry_of_metadata_gives_the_librarys_own_bytes():
    one = {"classes": "Käfer"}
    assert encode_tensors(TENSORS, one) == save(TENSORS, one)
