"""Work in pieces: in this process, or by workers of a Ray cluster. Loads no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, get_args

from kdedge.errors import RecipeError

EngineName = Literal["local", "ray"]
"""What executes pieces of work: this process, or the workers of a Ray cluster."""

ENGINES: tuple[EngineName, ...] = get_args(EngineName)

Piece = TypeVar("Piece")
Result = TypeVar("Result")

DoPieces = Callable[[Iterable[Piece]], Iterator[Result]]
"""Does pieces and yields their results, in order. It may take pieces ahead of its results."""


@dataclass(frozen=True)
class WorkerResources:
    """A worker's share of its machine.

    Attributes:
        device: `cpu` or `cuda`; the worker sees only its own GPU.
        n_cores: CPU cores.
    """

    device: str
    n_cores: int


@dataclass(frozen=True)
class Work(Generic[Piece, Result]):
    """Work whose pieces can be done by themselves, again, and in any process.

    Attributes:
        here: does pieces with what this process has loaded.
        elsewhere: loads in another process what `here` has loaded in this one. It can be pickled.
        paths: files and folders that another process must see.
    """

    here: DoPieces[Piece, Result]
    elsewhere: Callable[[WorkerResources], DoPieces[Piece, Result]]
    paths: tuple[Path, ...] = ()


class Workers(Protocol):
    """Executors of pieces of work."""

    @property
    def are_local(self) -> bool:
        """Whether this process executes the pieces, with what it has loaded."""
        ...

    def run(self, pieces: Sequence[Piece], work: Work[Piece, Result]) -> Iterator[Result]:
        """Yields the results in the order of the pieces; a piece may have none or several.

        A piece whose worker is killed is done again.

        Raises:
            KdedgeError: of a piece; results before it are yielded first.
            SetupError: another process lacks the package or does not see a path of the work.
            ResourceError: workers die at the same piece again and again.
        """
        ...


class LocalWorkers:
    """Executes pieces in this process, one after the other."""

    are_local = True

    def run(self, pieces: Sequence[Piece], work: Work[Piece, Result]) -> Iterator[Result]:
        """See `Workers`."""
        return work.here(pieces)


LOCAL: Workers = LocalWorkers()


@contextlib.contextmanager
def open_workers(engine: str, device: str | None = None) -> Iterator[Workers]:
    """Context with the workers of an engine; a Ray cluster started for it ends with it.

    Args:
        engine: one of `ENGINES`.
        device: `cpu` or `cuda`; None: workers get a GPU each if the cluster has any.

    Raises:
        RecipeError: there is no such engine.
        SetupError: Ray is not installed, or the cluster does not answer or lacks the device.
    """
    if engine == "local":
        yield LOCAL
        return
    if engine not in ENGINES:
        raise RecipeError(f"There is no engine {engine!r}.\n  Use {' or '.join(ENGINES)}.")
    from kdedge.workers.ray_cluster import connected

    with connected(device) as workers:
        yield workers
