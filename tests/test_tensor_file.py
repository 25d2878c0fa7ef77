"""Files of tensors: read as they were written, equal bytes for equal contents, no damage unseen."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kdedge.errors import DataError
from kdedge.tensor_file import read_tensors, write_tensors

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}
FACTS = {key: f"{key} Käfer" for key in ("one", "two", "three", "four", "five")}


def test_what_was_written_is_read_here_and_by_the_library(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, FACTS)
    tensors, facts = read_tensors(path)
    assert facts == FACTS
    with safe_open(path, framework="pt") as file:
        assert file.metadata().items() > FACTS.items()
        assert set(file.keys()) == set(TENSORS) == set(tensors)
        for name, tensor in TENSORS.items():
            torch.testing.assert_close(file.get_tensor(name), tensor, rtol=0, atol=0)
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_equal_contents_have_equal_bytes_whatever_their_order(tmp_path):
    paths = [tmp_path / f"{number}" for number in range(20)]
    for number, path in enumerate(paths):
        turn = reversed if number % 2 else iter
        write_tensors(path, dict(turn(list(TENSORS.items()))), dict(turn(list(FACTS.items()))))
    assert len({path.read_bytes() for path in paths}) == 1


def test_a_missing_or_a_changed_file_and_one_without_a_hash_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(DataError, match="cannot be read"):
        read_tensors(path)
    save_file(TENSORS, path, FACTS)
    with pytest.raises(DataError, match="do not match their SHA-256"):
        read_tensors(path)
    write_tensors(path, TENSORS, FACTS)
    data = path.read_bytes()
    for changed in (data.replace(b"one K", b"one k"), data[:-1] + b"x"):
        path.write_bytes(changed)
        with pytest.raises(DataError, match="do not match their SHA-256"):
            read_tensors(path)
