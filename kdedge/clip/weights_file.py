"""Files of weights and their hashes, which are cached between commands.

A file's hash is cached on disk under the file's path, size and times of change. The shapes of its
tensors are cached, too, so that a model can be checked and described without reading any value.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from kdedge.clip.weights import Shapes, Weights, hash_weights, read_weights
from kdedge.errors import ResourceError
from kdedge.files import sha256_json, write_atomic

log = logging.getLogger(__name__)

RACY_S = 3.0
"""A file that changed less than this ago is not cached: it could change again within the resolution
of its times, unnoticed. FAT, the coarsest file system in use, rounds to 2 s."""

FileState = tuple[int, int, int]
"""Size, time of the last write and time of the last change of any kind, in ns. A program can set
the former time back, but not the latter."""


def _state_of(path: Path) -> FileState | None:
    try:
        found = path.stat()
    except OSError:  # reading the file will say why
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class KnownFile(BaseModel):
    """Cached facts about one file of weights.

    Attributes:
        format: version of the cached facts; raised when their meaning changes.
        path: absolute, without links.
        state: the file's state when it was read.
        quick_gelu: as in `Weights`.
        shapes: name -> shape of each tensor.
        hashes: which tensors -> their hash; see `WeightsFile.hash_of`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal[1] = 1
    path: str
    state: FileState
    quick_gelu: bool | None
    shapes: dict[str, tuple[int, ...]]
    hashes: dict[str, str]


class HashCache:
    """Cache of hashes of files of weights, with one small JSON file for each.

    Several processes may use one folder. Each cache file is replaced as a whole, so the last writer
    wins, and lost entries are computed again.

    A file whose size and times are all unchanged counts as unchanged.

    Args:
        folder: folder of the cache; created when needed.
        now: the time in seconds since 1970.
    """

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    def _file(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"

    def get(self, path: Path, state: FileState) -> KnownFile | None:
        """The cached facts about a file in this state; None if missing or damaged."""
        file = self._file(path)
        try:
            known = KnownFile.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = str(error).partition("\n")[0]
            log.warning("%s is damaged (%s). Making it again.", file, reason)
            return None
        return known if (known.path, known.state) == (str(path), state) else None

    def put(self, known: KnownFile) -> None:
        """Caches facts about a file, unless the file has only just changed."""
        _, written_ns, changed_ns = known.state
        if self._now() - max(written_ns, changed_ns) / 1e9 < RACY_S:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file(Path(known.path)), known.model_dump_json().encode())
        except (OSError, ResourceError) as error:
            log.warning("The hash of %s could not be cached: %s", known.path, error)


class WeightsFile:
    """A file of weights, whose tensors are read only when they are needed.

    Args:
        path: the file.
        cache: hashes from earlier commands; None reads the file.
        read: reads the file.

    Raises:
        DataError: as in `read_weights`.
    """

    def __init__(
        self,
        path: Path,
        cache: HashCache | None = None,
        *,
        read: Callable[[Path], Weights] = read_weights,
    ) -> None:
        self.path = path
        self._cache = cache
        self._read = read
        self._resolved = path.resolve()
        self._state = _state_of(path)
        self._tensors: dict[str, Tensor] | None = None
        known = None
        if cache is not None and self._state is not None:
            known = cache.get(self._resolved, self._state)
        if known is None:
            weights = read(path)
            self._tensors = weights.state_dict
            self.quick_gelu = weights.quick_gelu
            self.shapes: Shapes = {k: tuple(v.shape) for k, v in weights.state_dict.items()}
            self._hashes: dict[str, str] = {}
        else:
            self.quick_gelu, self.shapes = known.quick_gelu, known.shapes
            self._hashes = dict(known.hashes)

    def hash_of(self, keys: Mapping[str, str], types: Mapping[str, torch.dtype]) -> str:
        """The hash of a model's weights, as it will be once they are loaded from this file.

        Args:
            keys: name in the model -> key in the file.
            types: name in the model -> type of its tensor there.
        """
        which = sha256_json([dict(keys), {name: str(kind) for name, kind in types.items()}])
        if which not in self._hashes:
            stored = self._tensors = self._tensors or self._read(self.path).state_dict
            # Others are hashed as float32 whatever they are
            loaded = {
                name: stored[key] if types[name] == torch.float32 else stored[key].to(types[name])
                for name, key in keys.items()
            }
            self._hashes[which] = hash_weights(loaded)
            if self._cache is not None and self._state is not None:
                known = KnownFile(
                    path=str(self._resolved),
                    state=self._state,
                    quick_gelu=self.quick_gelu,
                    shapes={key: tuple(shape) for key, shape in self.shapes.items()},
                    hashes=self._hashes,
                )
                self._cache.put(known)
        return self._hashes[which]

    def take(self) -> dict[str, Tensor]:
        """Returns the tensors by their keys, without keeping a reference to them."""
        tensors = self._tensors or self._read(self.path).state_dict
        self.forget()
        return tensors

    def forget(self) -> None:
        """Frees the tensors; the file is read again when they are needed."""
        self._tensors = None
