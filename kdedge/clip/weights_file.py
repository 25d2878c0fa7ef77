"""Files of weights and their SHA-256, which is cached between commands.

It is cached on disk under the file's path, size and times of change. The shapes of its tensors are
cached, too, so that a model can be checked and described without reading any value.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from torch import Tensor

from kdedge.clip.weights import Weights, read_weights, shapes_of
from kdedge.config.fields import Strict
from kdedge.errors import ResourceError
from kdedge.files import FileStamp, sha256_file, write_atomic
from kdedge.progress import working

log = logging.getLogger(__name__)


class KnownFile(Strict):
    """Cached facts about one file of weights.

    Attributes:
        format: version of the cached facts; raised when their meaning changes.
        path: absolute, without links.
        stamp: the file's stamp when it was read.
        quick_gelu: as in `Weights`.
        shapes: name -> shape of each tensor.
        sha256: hash of the file's bytes.
    """

    format: Literal[2] = 2
    path: str
    stamp: FileStamp
    quick_gelu: bool | None
    shapes: dict[str, tuple[int, ...]]
    sha256: str


class HashCache:
    """Cache of facts about files of weights, with one small JSON file for each.

    Several processes may use one folder. Each cache file is replaced as a whole, so the last writer
    wins, and lost entries are computed again.

    A file whose stamp is unchanged counts as unchanged.

    Args:
        folder: folder of the cache; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, path: Path) -> Path:
        digest = hashlib.sha256(str(path).encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"

    def get(self, path: Path, stamp: FileStamp) -> KnownFile | None:
        """The cached facts about a file with this stamp; None if there are none of this format."""
        try:
            known = KnownFile.model_validate_json(self._file(path).read_bytes())
        except (OSError, ValidationError):
            return None
        return known if (known.path, known.stamp) == (str(path), stamp) else None

    def put(self, known: KnownFile) -> None:
        """Caches facts about a file, unless the file has only just changed."""
        if not known.stamp.is_settled(time.time_ns()):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file(Path(known.path)), known.model_dump_json().encode())
        except (OSError, ResourceError) as error:
            log.warning(f"The hash of {known.path} could not be cached: {error}")


class WeightsFile:
    """A file of weights that is read when it is needed.

    Args:
        path: the file.
        cache: facts from earlier commands; None to always read the file.
        read: reads the file.
    """

    def __init__(
        self, path: Path, cache: HashCache | None, *, read: Callable[[Path], Weights] = read_weights
    ) -> None:
        self.path = path
        self._cache = cache
        self._read = read

    @cached_property
    def known(self) -> KnownFile:
        """The facts about the file, from the cache if it has them.

        Raises:
            DataError: as in `read_weights`.
        """
        path = self.path.resolve()
        known = stamp = None
        if path.exists():
            stamp = FileStamp.of(path.stat())
            known = None if self._cache is None else self._cache.get(path, stamp)
        if known is None:
            with working(f"reading {self.path.name}"):
                weights = self._read(self.path)
                digest = sha256_file(self.path)
            assert stamp is not None  # reading a missing file raises an error
            known = KnownFile(
                path=str(path),
                stamp=stamp,
                quick_gelu=weights.quick_gelu,
                shapes=shapes_of(weights.state_dict),
                sha256=digest,
            )
            if self._cache is not None:
                self._cache.put(known)
        return known

    def tensors(self) -> dict[str, Tensor]:
        """Reads the tensors by their keys; nothing keeps a reference to them."""
        return self._read(self.path).state_dict
