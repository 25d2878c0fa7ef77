"""Torch files of others, read without running anything that they name.

A pickle is a program that may import and call whatever it likes, and a TorchScript archive carries
code that `torch.jit.load` may run. Here neither happens. No name in the file is ever imported:
tensors become descriptions of where their bytes lie, dictionaries stay dictionaries, and every
other name becomes an `Inert` stand-in that swallows what is done to it. Bytes are read only for the
tensors that the caller asks for, after their sizes were checked against the file.

Three containers are understood: the zip that `torch.save` writes, the same zip with TorchScript
code beside it, and the sequence of pickles that torch wrote before version 1.6.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from torch import Tensor

from kdedge.errors import DataError

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of `torch.save` from before 1.6 begins: torch/serialization.py's number, pickled."""

MALFORMED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)
"""What unpickling and unzipping raise on damaged bytes, or on bytes written to do harm."""

_MAX_PICKLE_BYTES = 256 << 20
_MAX_CODE_BYTES = 16 << 20
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class StoredTensor(NamedTuple):
    """A tensor that is still in the file.

    Attributes:
        storage: the block of values it lies in.
        offset: index of its first value in the block.
        size: its shape.
        stride: values to step over, for each dimension.
    """

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _StorageType(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    n_values: int


class Inert:
    """Stands for a class or function that a file names. Whatever is done to it, nothing happens.

    Attributes:
        name: the full name in the file.
        state: what the file would have put into the object's attributes.
    """

    # Slots, and a __setstate__ in every class that a file can reach: pickle's BUILD would otherwise
    # write into attribute dictionaries, those of this module's classes and functions included.
    __slots__ = ("state",)
    name: ClassVar[str] = ""
    state: Any

    def __new__(cls, *_args: object, **_keywords: object) -> Inert:
        self = super().__new__(cls)
        self.state = None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_args: object, **_keywords: object) -> Inert:
        return Inert()

    def __setitem__(self, key: object, value: object) -> None:
        """Drops an item."""

    def append(self, item: object) -> None:
        """Drops an item."""

    def extend(self, items: object) -> None:
        """Drops items."""

    def add(self, item: object) -> None:
        """Drops an item."""


class _Dictionary(dict[Any, Any]):
    """Stands for `collections.OrderedDict`, without attributes that a file could replace."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Drops `_metadata` and whatever else was set on the dictionary."""


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""

    __slots__ = ()

    def __call__(
        self, storage: _Storage, offset: int, size: Any, stride: Any, *_rest: object
    ) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return StoredTensor(storage, offset, tuple(size), tuple(stride))

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function with a state")


class _RebuildParameter:
    """Stands for `torch._utils._rebuild_parameter`: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, tensor: object, *_rest: object) -> object:
        return tensor

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function with a state")


# The Python unpickler, not the C one: its memo is a dictionary, where the C one allocates as many
# slots as the file says, and a file may say four billion.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        if module == "torch._utils":
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
                return _RebuildTensor()
            if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return _RebuildParameter()
        if (module, name) == ("collections", "OrderedDict"):
            return _Dictionary
        return type("Inert", (Inert,), {"__slots__": (), "name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case (
                "storage",
                _StorageType(dtype=dtype),
                str(key),
                _,
                int(n_values),
                *_,
            ) if n_values >= 0:
                return _Storage(dtype, key, n_values)
        raise pickle.UnpicklingError("a reference to something that is not a tensor's storage")


class ForeignArchive:
    """An open file of torch's.

    Attributes:
        path: the file.
        root: what was saved, with `StoredTensor` for tensors and `Inert` for everything that is
            neither a tensor nor a plain Python value.
    """

    def __init__(
        self, path: Path, root: object, read: Callable[[_Storage], bytes], code: dict[str, str]
    ) -> None:
        self.path = path
        self.root = root
        self._read = read
        self._code = code
        self._budget_bytes = 2 * path.stat().st_size

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Reads one tensor, contiguous, on the CPU, in its stored type.

        Raises:
            DataError: it does not lie within the file.
        """
        try:
            return self._tensor(stored)
        except MALFORMED as error:
            raise _damaged(self.path, error) from error

    def _tensor(self, stored: StoredTensor) -> Tensor:
        storage, offset, size, stride = stored
        if min(offset, storage.n_values, *size, *stride) < 0 or len(size) != len(stride):
            raise ValueError("a tensor with impossible sizes")
        # One value for each place: a stride of 0 would let a small file ask for all memory.
        n_bytes = math.prod(size) * storage.dtype.itemsize
        self._budget_bytes -= n_bytes
        if math.prod(size) > storage.n_values or self._budget_bytes < 0:
            raise ValueError("tensors with more values than the file holds")
        if n_bytes == 0:
            return torch.empty(size, dtype=storage.dtype)
        values = torch.frombuffer(bytearray(self._read(storage)), dtype=storage.dtype)
        if len(values) != storage.n_values:
            raise ValueError("a storage of another size than announced")
        return values.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)

    def module_tensors(self) -> dict[str, StoredTensor]:
        """Gives the parameters and buffers of a TorchScript archive, under their state-dict keys.

        Plain tensor attributes are left out, as `state_dict()` of the loaded module would: the
        archive's code lists parameters and buffers, and those lists are read as text.
        """
        tensors: dict[str, StoredTensor] = {}
        pending: list[tuple[str, object]] = [("", self.root)]
        seen: set[int] = set()
        while pending:
            prefix, module = pending.pop()
            if not isinstance(module, Inert) or not isinstance(module.state, dict):
                continue
            if id(module) in seen:
                continue
            seen.add(id(module))
            listed = self._listed_tensors(module.name)
            for name, value in module.state.items():
                if not isinstance(value, StoredTensor):
                    pending.append((f"{prefix}{name}.", value))
                elif listed is None or name in listed:
                    tensors[f"{prefix}{name}"] = value
        return tensors

    def _listed_tensors(self, class_name: str) -> set[str] | None:
        """Gives the names of a class's parameters and buffers; None where it has no list."""
        module, _, name = class_name.rpartition(".")
        source = self._code.get(f"code/{module.replace('.', '/')}.py", "")
        lists = re.search(
            rf"class {re.escape(name)}\(Module\):\s+"
            r"__parameters__ = \[(.*?)\]\s+__buffers__ = \[(.*?)\]",
            source,
            re.DOTALL,
        )
        return set(re.findall(r'"([^"]+)"', " ".join(lists.groups()))) if lists else None


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[ForeignArchive]:
    """Opens a file that `torch.save` or TorchScript wrote.

    Raises:
        DataError: it cannot be read or is damaged.
    """
    try:
        with path.open("rb") as file:
            is_legacy = file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
            file.seek(0)
            try:
                archive = _open_legacy(path, file) if is_legacy else _open_zip(path, file)
            except MALFORMED as error:
                raise _damaged(path, error) from error
            yield archive
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}."
        ) from error


def _open_zip(path: Path, file: BinaryIO) -> ForeignArchive:
    archive = zipfile.ZipFile(file)
    # Records lie in one folder, whose name is the file's own when it was written.
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}

    def read(name: str, *, limit: int | None = None, is_stored: bool = True) -> bytes:
        info = records[name]
        if is_stored and info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch never does")
        if limit is not None and info.file_size > limit:
            raise ValueError(f"{name} is larger than {limit} bytes")
        return archive.read(info)

    if "byteorder" in records and read("byteorder", limit=16) != b"little":
        raise ValueError("numbers in big-endian order")
    root = _Unpickler(io.BytesIO(read("data.pkl", limit=_MAX_PICKLE_BYTES))).load()
    code = {
        name: read(name, limit=_MAX_CODE_BYTES, is_stored=False).decode()
        for name in records
        if name.startswith("code/") and name.endswith(".py")
    }
    return ForeignArchive(path, root, lambda storage: read(f"data/{storage.key}"), code)


def _open_legacy(path: Path, file: BinaryIO) -> ForeignArchive:
    storages: dict[str, _Storage] = {}

    class Recording(_Unpickler):
        def persistent_load(self, pid: Any) -> _Storage:
            storage = super().persistent_load(pid)
            return storages.setdefault(storage.key, storage)

    for _ in range(3):  # the magic number, the version, facts about the writing machine
        _Unpickler(file).load()
    root = Recording(file).load()
    starts: dict[str, int] = {}
    for key in _Unpickler(file).load():
        (n_values,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if n_values != storage.n_values:
            raise ValueError("a storage of another size than announced")
        starts[key] = file.tell()
        file.seek(n_values * storage.dtype.itemsize, io.SEEK_CUR)

    def read(storage: _Storage) -> bytes:
        n_bytes = storage.n_values * storage.dtype.itemsize
        if starts[storage.key] + n_bytes > path.stat().st_size:
            raise EOFError("the file ends within a tensor")
        file.seek(starts[storage.key])
        return file.read(n_bytes)

    return ForeignArchive(path, root, read, {})


def _damaged(path: Path, error: Exception) -> DataError:
    lines = str(error).strip().splitlines()
    return DataError(
        f"{path} is damaged or was not written by torch"
        f" ({lines[0] if lines else type(error).__name__}).\n"
        "  Fetch it again, and compare its size or SHA-256 with the source's."
    )
