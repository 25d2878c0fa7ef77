"""Damaged bytes for the readers, and a watch over what a reader does with them.

The damage is hypothesis's: what fails is made small, and the default examples are the same in each
test run. `KDEDGE_FUZZ=5000 python -m pytest tests/fuzz --timeout 0` draws 5,000 new ones a reader.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

N_EXAMPLES = int(os.environ.get("KDEDGE_FUZZ", "0"))
QUICK = 20
MAX_SECONDS = 20
MAX_BYTES = 1 << 29


def fuzzing(cost: float) -> settings:
    """The number of examples, and whether they are new ones."""
    return settings(
        max_examples=max(1, int((N_EXAMPLES or QUICK) / cost)),
        derandomize=not N_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


Draw = Callable[[Any], Any]

_DEEP = "deep" * 7
_ODD = [
    *(None, True, False, 0, 1, -1, -5, 2**31, 2**62, 2**64, 10**30, 10**400, -0.0, 1.5),
    *(float("nan"), float("inf"), 1e300),
    *("", "x", "0", "\ud800", "\0", "é\u202e", "../x", "a" * 9999),
    *("F4", "F8_E8M0", "U16", "C64"),  # types of safetensors
    *([], {}, [[]], [None], {"": None}, {"x": {"x": []}}, _DEEP),
]
_PIECES = [
    *(b"", b"\0", b"\xff", b"\x80", b"\n", b'"', b"[" * 5000, b"9" * 5000),
    *(b"\xff" * 8, b"-1", b","),
]
_LENGTHS = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**40, 2**62, 2**63, 2**64 - 1)]


def damage_bytes(draw: Draw, data: bytes) -> bytes:
    """Flips, cuts, doubles, inserts, and overwrites."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), place + draw(st.integers(1, 64)))
        match draw(st.integers(0, 6)):
            case 0:
                flipped = (data[place] if data else 0) ^ (1 << draw(st.integers(0, 7)))
                data = data[:place] + bytes([flipped]) + data[place + 1 :]
            case 1:
                data = data[:place]
            case 2:
                data = data[:place] + data[end:]
            case 3:
                data = data[:end] + data[place:]
            case 4:
                data = data[:place] + draw(st.sampled_from(_PIECES)) + data[place:]
            case 5:
                piece = draw(st.sampled_from(_LENGTHS))
                data = data[:place] + piece + data[place + len(piece) :]
            case 6:
                data = data[:place] + draw(st.binary(max_size=16)) + data[end:]
    return data


def damage_value(draw: Draw, value: Any) -> Any:
    """Replaces, drops or doubles parts of JSON's values."""
    n_children = len(value) if isinstance(value, list | dict) else 0
    if n_children == 0 or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(_ODD))
    if isinstance(value, dict):
        key = draw(st.sampled_from(list(value)))
        match draw(st.integers(0, 6)):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                odd = {"": 0, "x": 0, "\ud800": 0, "__class__": 0}
                return {**value, draw(st.sampled_from(list(odd))): draw(st.sampled_from(_ODD))}
            case 2:
                return {**value, key: value[draw(st.sampled_from(list(value)))]}
        return {**value, key: damage_value(draw, value[key])}
    place = draw(st.integers(0, n_children - 1))
    match draw(st.integers(0, 6)):
        case 0:
            return value[:place] + value[place + 1 :]
        case 1:
            return (
                value[:place] + value[place : place + 1] * draw(st.integers(2, 50)) + value[place:]
            )
    return [*value[:place], damage_value(draw, value[place]), *value[place + 1 :]]


def _json(value: Any) -> str:
    return json.dumps(value).replace(f'"{_DEEP}"', "[" * 3000 + "]" * 3000)


def damage_json(draw: Draw, data: bytes) -> bytes:
    """Changes values of a JSON file, which is also a YAML file."""
    value = json.loads(data)
    for _ in range(draw(st.integers(1, 2))):
        value = damage_value(draw, value)
    return _json(value).encode()


def damage_lines(draw: Draw, data: bytes) -> bytes:
    """Changes a line of JSON."""
    lines = data.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] = damage_json(draw, lines[place])
    return b"\n".join(lines) + b"\n"


def damage_safetensors(draw: Draw, data: bytes) -> bytes:
    """Changes the header, and keeps its length right."""
    (size,) = struct.unpack("<Q", data[:8])
    header = damage_json(draw, data[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def damage_zip(draw: Draw, data: bytes) -> bytes:
    """Changes a member of a zip, and keeps the checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    place = draw(st.integers(0, len(members) - 1))
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        for i, (info, content) in enumerate(members):
            archive.writestr(info, damage_bytes(draw, content) if i == place else content)
    return new.getvalue()


def damage_tar(draw: Draw, data: bytes) -> bytes:
    """Changes a member of a tar, and keeps the headers right."""
    new = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=new, mode="w") as tar:
        members = old.getmembers()
        place = draw(st.integers(0, len(members) - 1))
        for i, member in enumerate(members):
            file = old.extractfile(member)
            content = b"" if file is None else file.read()
            if i == place:
                content = damage_bytes(draw, content)
                member.name = draw(st.sampled_from([member.name, "../x", "a/b.c.jpg", "0.cls"]))
                member.type = draw(st.sampled_from([member.type, tarfile.SYMTYPE, tarfile.CHRTYPE]))
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return new.getvalue()


_FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open", "ctypes.dlopen"),
}
_seen: list[str] = []
_watched: list[bool] = []


def _note(event: str, arguments: Any) -> None:
    if _watched and event in _FORBIDDEN:
        _seen.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_note)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Context that fails where code was run, or a second or a byte too many was taken."""
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _watched.append(True)
    try:
        yield
    finally:
        _watched.clear()
    seen, _seen[:] = _seen[:], []
    assert seen == []
    assert time.process_time() - began < MAX_SECONDS
    n_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert n_bytes < MAX_BYTES
