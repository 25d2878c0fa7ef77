"""The class list: the names whose order fixes labels, class vectors and the base/novel halves."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

from kdedge.config.fields import class_key
from kdedge.config.recipe import ClassesSpec, DataSpec
from kdedge.data.benchmarks import load_benchmark
from kdedge.errors import DataError
from kdedge.files import sha256_json

_MAX_FILE_BYTES = 1 << 24
_MAX_NAME_CHARACTERS = 200
_NO_LISTS = (".yaml", ".yml", ".json")  # their lines could pass as names


def load_class_names(spec: ClassesSpec, *, data: DataSpec) -> tuple[str, ...]:
    """Returns the class names in order.

    Args:
        spec: a file, a benchmark set, the built-in drawings, or the names themselves.
        data: says where the benchmark sets are.

    Raises:
        DataError: the file or set is missing or malformed, a name appears twice, or there are fewer
            than two.
    """
    if spec.file is not None:
        return read_class_file(spec.file)
    if spec.benchmark is not None:
        return load_benchmark(spec.benchmark).class_names(benchmark_root(data))
    if spec.synthetic is not None:
        from kdedge.data.sources import synthetic

        return synthetic.class_names(spec.synthetic)
    names = tuple(spec.names or ())
    check_class_names(names, "classes")
    return names


def read_class_file(path: Path) -> tuple[str, ...]:
    """Reads a class list: UTF-8, one name per line.

    Blank lines and blanks around names are ignored. There are no comments: a name may begin with
    `#`.

    Raises:
        DataError: no such file, YAML or JSON, not UTF-8, a name twice or too long, fewer than two
            names.
    """
    if path.suffix.lower() in _NO_LISTS:
        raise DataError(
            f"{path} is not a class list in plain text.\n"
            "  Name a text file with one class name per line."
        )
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"{path} cannot be read: {reason}.\n  Name a text file with one class name per line."
        ) from error
    if len(data) > _MAX_FILE_BYTES:
        raise DataError(
            f"{path} is larger than {_MAX_FILE_BYTES >> 20} MiB, too large for a class list.\n"
            "  Name a text file with one class name per line."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        what = "UTF-16, not UTF-8" if is_utf16 else f"not UTF-8 (byte {data[error.start]:#04x})"
        raise DataError(f"{path}:{line}: {what}.\n  Save the class list as UTF-8.") from error
    # Not str.splitlines, which also splits at characters that a name may contain.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    named = [(f"line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    _check_names(named, str(path))
    return tuple(name for _, name in named)


def check_class_names(names: Sequence[str], where: str) -> None:
    """Checks that these are the names of a class list.

    Args:
        names: the names.
        where: what they are, at the start of messages.

    Raises:
        DataError: a name twice, not printable or too long, or fewer than two names.
    """
    _check_names([(f"name {i}", name) for i, name in enumerate(names, 1)], where)


def _check_names(named: Sequence[tuple[str, str]], where: str) -> None:
    first: dict[str, tuple[str, str]] = {}
    for place, name in named:
        if len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
            raise DataError(
                f"{where}, {place}: {name[:40]!r} is not a class name: expected up to"
                f" {_MAX_NAME_CHARACTERS} printable characters."
            )
        before = first.setdefault(class_key(name), (place, name))
        if before != (place, name):
            raise DataError(
                f'{where}: "{before[1]}" ({before[0]}) and "{name}" ({place}) are one class name.\n'
                "  Names must differ in more than case, blanks and underscores: CLIP reads both"
                " alike. Remove or rename one."
            )
    if len(named) < 2:
        raise DataError(
            f"{where} has {len(named)} class name{'' if len(named) == 1 else 's'}, expected two or"
            " more.\n  Write one name per line."
        )


def class_list_hash(names: Sequence[str]) -> str:
    """Returns the SHA-256 of the names in order, in hex."""
    return sha256_json(list(names))


def benchmark_root(data: DataSpec) -> Path:
    """Returns the folder of the benchmark sets: `data.root`, else KDEDGE_DATA, else ./data."""
    return data.root or Path(os.environ.get("KDEDGE_DATA") or "data")
