"""Hostile and damaged files of weights: nothing in them runs, and every one ends in a DataError.

Each way of running code is first shown to work where a file is loaded unsafely, so that the tests
of the readers cannot pass with an attack that does nothing.
"""

from __future__ import annotations

import builtins
import collections
import functools
import io
import json
import operator
import os
import pickle
import struct
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdedge.clip.weights import read_weights
from kdedge.errors import DataError
from kdedge.paper.checkpoints.layout import read_public_checkpoint


class Call:
    """Pickles as a call, which runs when the file is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Gadget:
    """Pickles as an object whose items and state are set by calls."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


def attacks(marker: Path) -> dict[str, Any]:
    """Name -> an object that makes the marker file when it is unpickled."""
    touch = f"touch '{marker}'"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Call(os.system, touch),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "mknod": Call(os.mknod, str(marker)),
        "method": Call(operator.methodcaller("touch"), marker),
        "partial": Call(functools.partial(os.system, touch)),
        "torch.save": Call(torch.save, 1, str(marker)),
        "state": Gadget(collections.OrderedDict, (), {"a": Call(os.system, touch)}),
        "items": Gadget(list, (), None, iter([Call(os.system, touch)])),
        "pairs": Gadget(dict, (), None, None, iter([("a", Call(os.system, touch))])),
        "nested pickle": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "torch.load": Call(functools.partial(torch.load, weights_only=False), nested(touch)),
    }


def nested(command: str) -> io.BytesIO:
    """A torch file in a stream, which runs a command when it is loaded."""
    stream = io.BytesIO()
    torch.save(Call(os.system, command), stream)
    stream.seek(0)
    return stream


NAMES = sorted(attacks(Path("marker")))


def write(path: Path, evil: Any, *, is_zip: bool) -> Path:
    """A checkpoint that is sound but for one entry."""
    saved = {"state_dict": {"a": torch.ones(2)}, "epoch": 1, "scheduler": evil}
    torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    return path


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_code_beside_the_weights_does_not_run(tmp_path: Path, name: str, is_zip: bool) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path / "model.pth.tar-1", attacks(marker)[name], is_zip=is_zip)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the attack itself does not work"
    marker.unlink()

    if is_zip:
        assert torch.equal(torch.ones(2), read_public_checkpoint(path).state_dict["a"])
    else:  # of torch before 1.6, which no public checkpoint is
        with pytest.raises(DataError):
            read_public_checkpoint(path)
    assert not marker.exists()
    with pytest.raises(DataError, match="is not loaded: it names "):
        read_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", NAMES)
def test_code_among_the_weights_does_not_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    for saved in ({"state_dict": {"a": attacks(marker)[name]}}, attacks(marker)[name]):
        torch.save(saved, tmp_path / "w.pt")
        marker.unlink(missing_ok=True)
        for read in (read_weights, read_public_checkpoint):
            with pytest.raises(DataError):
                read(tmp_path / "w.pt")
            assert not marker.exists()


def torchscript(path: Path) -> Path:
    """A TorchScript archive whose code writes a file when torch.jit.load restores its state."""

    class Restoring(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.marker = str(path.parent / "marker")

        @torch.jit.export
        def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
            return self.weight, self.marker, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
            self.weight = state[0]
            self.marker = state[1]
            self.training = state[2]
            torch.save(state[0], state[1])

        def forward(self) -> torch.Tensor:
            return self.weight

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Restoring()), path)
    return path


def test_code_of_a_torchscript_archive_does_not_run(tmp_path: Path) -> None:
    path, marker = torchscript(tmp_path / "w.pt"), tmp_path / "marker"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(path)
    assert marker.exists(), "the attack itself does not work"
    marker.unlink()
    with pytest.raises(DataError, match="holds no tensors"):
        read_weights(path)
    assert not marker.exists()


def rewrite(source: Path, target: Path, changes: dict[str, bytes], **how: Any) -> Path:
    """Copies a torch zip with some records changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **how) as new:
        for name in old.namelist():
            short = name.partition("/")[2]
            new.writestr(name, changes.get(short, old.read(name)))
    return target


def with_pickle(tmp_path: Path, program: bytes) -> Path:
    """A torch zip whose data.pkl is this program."""
    torch.save({"state_dict": {"a": torch.ones(4)}}, tmp_path / "sound.pt")
    return rewrite(tmp_path / "sound.pt", tmp_path / "w.pt", {"data.pkl": program})


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
MARK = b"("


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def classes_of_the_readers() -> dict[str, dict[str, Any]]:
    """The attributes of every class that the readers of weights define."""
    return {
        f"{module}.{name}": dict(vars(value))
        for module in list(sys.modules)
        if module.startswith("kdedge.clip.")
        for name, value in vars(sys.modules[module]).items()
        if isinstance(value, type) and value.__module__ == module
    }


@pytest.mark.parametrize(
    "target",
    [
        TENSOR,
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"cos\nsystem\n",
        b"ccollections\nOrderedDict\n)R",
        b"cbuiltins\ngetattr\n)R",
    ],
)
@pytest.mark.parametrize("as_slots", [True, False])
def test_no_state_from_a_file_reaches_the_readers_own_objects(
    tmp_path: Path, target: bytes, as_slots: bool
) -> None:
    before = classes_of_the_readers()
    names = ("__call__", "__defaults__", "__init__", "__setstate__", "get", "name", "items")
    pairs = b"".join(text(name) + b"cos\nsystem\n" for name in names)
    state = b"}" + MARK + pairs + b"u"
    state = b"N" + state + b"\x86" if as_slots else state
    # The second file is a plain one, read after the first had its chance.
    path = with_pickle(tmp_path, b"\x80\x02" + target + state + b"b.")
    with pytest.raises(DataError):
        read_public_checkpoint(path)
    assert torch.equal(torch.ones(4), read_public_checkpoint(tmp_path / "sound.pt").state_dict["a"])
    assert before == classes_of_the_readers()


def tensor_program(*, size: str, stride: str, offset: str = "K\x00", n: str = "K\x04") -> bytes:
    """A checkpoint's data.pkl with one tensor over the sound file's four values."""
    storage = MARK + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += n.encode("latin-1") + b"tQ"
    arguments = offset.encode("latin-1") + size.encode("latin-1") + stride.encode("latin-1")
    tensor = TENSOR + MARK + storage + arguments + b"\x89}tR"
    return b"\x80\x02}" + text("state_dict") + b"}" + text("a") + tensor + b"ss."


def test_the_hand_made_program_is_sound_where_its_sizes_are(tmp_path: Path) -> None:
    path = with_pickle(tmp_path, tensor_program(size="K\x02K\x02\x86", stride="K\x02K\x01\x86"))
    assert torch.equal(torch.ones(2, 2), read_public_checkpoint(path).state_dict["a"])


HUGE = "\x8a\x06\x00\x00\x00\x00\x00\x01"  # 2 ** 40


@pytest.mark.parametrize(
    "sizes",
    [
        {"size": HUGE + "\x85", "stride": "K\x00\x85"},
        {"size": HUGE + HUGE + "\x86", "stride": "K\x00K\x00\x86"},
        {"size": HUGE + "\x85", "stride": "K\x01\x85", "n": HUGE},
        {"size": "K\x04\x85", "stride": "K\x02\x85"},
        {"size": "K\x04\x85", "stride": "K\x01\x85", "offset": "K\x01"},
        {"size": "K\x04\x85", "stride": "J\xff\xff\xff\xff\x85"},
        {"size": "K\x01\x85", "stride": "K\x01\x85", "offset": "J\xff\xff\xff\xff"},
        {"size": "J\xff\xff\xff\xff\x85", "stride": "K\x01\x85"},
        {"size": "K\x04\x85", "stride": "K\x01\x85", "n": "J\xff\xff\xff\xff"},
        {"size": "K\x04\x85", "stride": "K\x01\x85", "n": "K\x08"},
        {"size": "K\x02K\x02\x86", "stride": "K\x01\x85"},
        {"size": "X\x01\x00\x00\x004\x85", "stride": "K\x01\x85"},
        {"size": "G@\x10\x00\x00\x00\x00\x00\x00\x85", "stride": "K\x01\x85"},
        {"size": "N", "stride": "K\x01\x85"},
        {"size": HUGE, "stride": HUGE},
    ],
    ids=range(15),
)
def test_a_tensor_that_is_not_within_its_file_is_an_error(
    tmp_path: Path, sizes: dict[str, str]
) -> None:
    path = with_pickle(tmp_path, tensor_program(**sizes))
    tracemalloc.start()
    with pytest.raises(DataError):
        read_public_checkpoint(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02r\xff\xff\xff\xff.",  # a place in the memo that would take 32 GB
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 2 ** 63 - 1
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02(K\x01K\x02tQ.",  # a reference to no storage
        b"\x80\x02}h\x00.",
        b"\x80\xff.",
        b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R" + text("x") + b"\x85R.",
        b"\x80\x02(ios\nsystem\n.",
        b"\x80\x02(cos\nsystem\n" + text("true") + b"o.",
        text("os") + text("system") + b"\x93" + text("true") + b"\x85R.",
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.",  # a state dict that holds itself
    ],
    ids=range(16),
)
def test_a_hostile_pickle_program_is_an_error(tmp_path: Path, program: bytes) -> None:
    path = with_pickle(tmp_path, program)
    for read in (read_weights, read_public_checkpoint):
        with pytest.raises(DataError):
            read(path)


def test_a_torchscript_module_that_holds_itself_ends(tmp_path: Path) -> None:
    program = b"\x80\x02c__torch__\nM\n)\x81q\x00}" + text("child") + b"h\x00sb."
    path = with_pickle(tmp_path, program)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("sound/constants.pkl", b"\x80\x02).")
    with pytest.raises(DataError, match="holds no tensors"):
        read_weights(path)


def test_a_compressed_bomb_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(4 << 20)}}, tmp_path / "sound.pt")
    path = rewrite(tmp_path / "sound.pt", tmp_path / "w.pt", {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="is compressed, which torch never does"):
        read_public_checkpoint(path)


def test_code_that_expands_without_end_is_refused_unread(tmp_path: Path) -> None:
    path = torchscript(tmp_path / "w.pt")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/code/more.py", b" " * (17 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"code/more\.py is larger than 16777216 bytes"):
        read_weights(path)


@pytest.mark.parametrize("n_names", [3, 1000])
def test_many_names_for_one_block_cannot_fill_the_memory(tmp_path: Path, n_names: int) -> None:
    block = torch.zeros(1 << 18)
    saved = {"state_dict": {f"k{index}": block for index in range(n_names)}}
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(DataError, match="more values than the file holds"):
        read_public_checkpoint(tmp_path / "w.pt")


def test_two_names_for_one_block_are_read(tmp_path: Path) -> None:
    block = torch.arange(1 << 10)
    torch.save({"state_dict": {"a": block, "tied": block}}, tmp_path / "w.pt")
    state = read_public_checkpoint(tmp_path / "w.pt").state_dict
    assert torch.equal(state["a"], block)
    assert torch.equal(state["tied"], block)


def test_big_endian_files_are_refused_rather_than_misread(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(4)}}, tmp_path / "sound.pt")
    path = rewrite(tmp_path / "sound.pt", tmp_path / "w.pt", {"byteorder": b"big"})
    with pytest.raises(DataError, match="big-endian"):
        read_public_checkpoint(path)


def sound_files(folder: Path) -> dict[str, Path]:
    """One small file of each kind."""
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    save_file(state, folder / "safetensors")
    torch.save({"state_dict": state}, folder / "zip")
    torch.save({"state_dict": state}, folder / "legacy", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3))
        torch.jit.save(traced, folder / "torchscript")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "torchscript"])
def test_a_file_cut_off_anywhere_is_an_error(tmp_path: Path, kind: str) -> None:
    content = sound_files(tmp_path)[kind].read_bytes()
    path = tmp_path / "cut"
    n_cuts = 60
    for index in range(n_cuts):
        path.write_bytes(content[: len(content) * index // n_cuts])
        for read in (read_weights, read_public_checkpoint):
            with pytest.raises(DataError, match="cut"):
                read(path)


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64"])
def test_a_type_that_cannot_be_computed_with_is_an_error(tmp_path: Path, kind: str) -> None:
    n_bytes = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}.get(kind, 8)
    entry = {"dtype": kind, "shape": [8], "data_offsets": [0, n_bytes]}
    header = json.dumps({"weight": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(n_bytes))
    with pytest.raises(DataError, match=r"w\.safetensors"):
        read_weights(path)
