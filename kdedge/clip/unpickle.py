"""Reads torch files from untrusted sources, without running any code that they name.

A pickle is a program that may import and call anything, and `torch.jit.load` may run the code of a
TorchScript archive. This reader imports no name of the file. Tensors become descriptions of where
their bytes lie, dictionaries stay dictionaries, and every other name becomes an `Inert` stand-in.
Bytes are read only for the tensors that the caller asks for, after a check of their sizes.

It reads the zip of `torch.save`, and the same zip with TorchScript code.

`torch.load(weights_only=True)` refuses TorchScript archives and checkpoints with a pickled
scheduler; picklescan and fickling check a pickle, but do not read its tensors.

`kind_of` tells the kind of a file by its content and never by its name. Libraries that detect file
types know neither torch's formats nor git-lfs pointers and GGUF.
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
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from kdedge.errors import DataError, os_reason
from kdedge.files import open_regular
from kdedge.messages import first_line

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file of `torch.save` before 1.6 (torch/serialization.py, pickled)."""

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
    RuntimeError,
    MemoryError,
)
"""The errors of unpickling and unzipping on damaged or malicious bytes."""

_MAX_PICKLE_BYTES = 256 << 20
_MAX_CODE_BYTES = 16 << 20
DTYPES = {
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
"""Storage type in the file -> dtype of its values; files of weights have no other types."""


class StoredTensor(NamedTuple):
    """A tensor that is still in the file.

    Attributes:
        storage: the block of values that contains the tensor.
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
    """Stands for a class or function that a file names; no operation on it has an effect.

    Attributes:
        name: the full name in the file.
        state: the attributes that the file gives the object.
    """

    # Every class that a file can reach has slots and a __setstate__. Otherwise pickle's BUILD would
    # write into attribute dictionaries, even those of this module's classes and functions.
    __slots__ = ("state",)
    name: ClassVar[str] = ""
    state: Any

    def __new__(cls, *_args: object, **_keywords: object) -> Inert:
        """Makes one, whatever a pickle gives."""
        self = super().__new__(cls)
        self.state = None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_args: object, **_keywords: object) -> Inert:
        """Stands for a call's result, whatever a pickle calls."""
        return Inert()

    def _drop(self, *_items: object) -> None:
        """Ignores the items that the file adds to the object."""

    __setitem__ = append = extend = add = _drop


class _Dictionary(dict[Any, Any]):
    """Stands for `collections.OrderedDict`, without attributes that a file could set."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Drops `_metadata` and any other attribute of the dictionary."""


class _Rebuild:
    """Stands for torch's functions that rebuild a tensor or a parameter; both become the tensor.

    It has no attributes that a file could set.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function with a state")

    def __call__(self, storage: object, *rest: Any) -> object:
        if not isinstance(storage, _Storage):
            return storage
        offset, size, stride, *_ = rest
        return StoredTensor(storage, offset, tuple(size), tuple(stride))


_REBUILD = (
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state",
)  # fmt: skip


# The Python unpickler, whose memo is a dictionary: the C one allocates as many slots as the file
# says, and a file may say four billion
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in DTYPES:
            return _StorageType(DTYPES[name])
        if module == "torch._utils" and name in _REBUILD:
            return _Rebuild()
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
    """An open file that torch wrote.

    Attributes:
        path: the file.
        root: the saved object, with a `StoredTensor` in place of each tensor, and an `Inert` in
            place of each object that is not a plain Python value.
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
            DataError: the tensor does not lie within the file.
        """
        try:
            return self._read_tensor(stored)
        except MALFORMED as error:
            raise _damaged_error(self.path, error) from error

    def _read_tensor(self, stored: StoredTensor) -> Tensor:
        storage, offset, size, stride = stored
        if min(offset, storage.n_values, *size, *stride) < 0 or len(size) != len(stride):
            raise ValueError("a tensor with impossible sizes")
        # At most one value for each stored one: a stride of 0 could ask for all memory
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
        """Returns the parameters and buffers of a TorchScript archive by their state-dict keys.

        Plain tensor attributes are left out, as in the loaded module's `state_dict()`. The lists of
        parameters and buffers are read from the text of the archive's code.
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
        """Names of a class's parameters and buffers; None if its code does not list them."""
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
        DataError: the file cannot be read or is damaged.
    """
    try:
        with open_regular(path) as file:
            try:
                archive = _open_zip(path, file)
            except MALFORMED as error:
                raise _damaged_error(path, error) from error
            yield archive
    except OSError as error:
        raise DataError(f"{path} cannot be read: {os_reason(error)}.") from error


def _open_zip(path: Path, file: BinaryIO) -> ForeignArchive:
    archive = zipfile.ZipFile(file)
    # All records lie in one folder, named after the file at the time of writing
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
    code = {}
    for name in records:
        if name.startswith("code/") and name.endswith(".py"):
            code[name] = read(name, limit=_MAX_CODE_BYTES, is_stored=False).decode()
    return ForeignArchive(path, root, lambda storage: read(f"data/{storage.key}"), code)


def _damaged_error(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged or was not written by torch ({first_line(error)}).\n"
        "  Fetch it again, and compare its size or SHA-256 with what the source names."
    )


# Start of a file -> the kind of file that it probably is, for messages
_OTHER_KINDS = {
    rb"version https://git-lfs": "a git-lfs pointer, not the file it points to",
    rb"\s*(<!doctype|<html|<\?xml|<head)": "a web page, perhaps of a failed download",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd": "a compressed archive; unpack it first",
    rb"\x80[\x02-\x05]": "a Python pickle that torch.save did not write",
}
REMEDY = (
    "  Expected .safetensors, a state dict of torch.save or an archive of OpenAI's; fetch the file"
    " again or convert it."
)


def kind_of(path: Path) -> Literal["safetensors", "state dict", "OpenAI archive"]:
    """Tells a file's kind by its first bytes and, for a zip, by its list of records.

    Raises:
        DataError: the file cannot be read, or is not a file of weights.
    """
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(
            f"The weights {path} cannot be read: {os_reason(error)}.\n"
            "  If the folder was moved, correct the path in the run's recipe.yaml, too."
        ) from error
    if not head:
        raise DataError(f"{path} is empty.\n{REMEDY}")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return "state dict"
    if head[8:9] == b"{":
        if int.from_bytes(head[:8], "little") + 8 <= size:
            return "safetensors"
        if path.suffix == ".safetensors":
            raise DataError(f"{path} is a safetensors file that ends too early.\n{REMEDY}")
    for pattern, what in _OTHER_KINDS.items():
        if re.match(pattern, head, re.IGNORECASE):
            raise DataError(f"{path} looks like {what}.\n{REMEDY}")
    raise DataError(f"{path} is not a file of weights, or is damaged at its start.\n{REMEDY}")


def _kind_of_zip(path: Path) -> Literal["state dict", "OpenAI archive"]:
    try:
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2] for name in archive.namelist()}
    except MALFORMED as error:
        raise DataError(
            f"{path} begins like a torch file but has no end: it is truncated.\n{REMEDY}"
        ) from error
    if "data.pkl" not in records:
        raise DataError(f"{path} is a zip archive that torch did not write.\n{REMEDY}")
    return "OpenAI archive" if "constants.pkl" in records else "state dict"
