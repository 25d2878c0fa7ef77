"""Divides work into pieces for the workers of a Ray cluster. Loads no torch.

Each worker is an actor that loads a model once and keeps it. Ray restarts a killed worker, on
another node if its own is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from kdedge import __version__
from kdedge.errors import KdedgeError, ResourceError, SetupError
from kdedge.packages import PACKAGES

Piece = TypeVar("Piece")
PieceResult = TypeVar("PieceResult")

DoPieces = Callable[[Iterable[Piece]], Iterator[PieceResult]]
"""Processes pieces and yields their results, in order. It may read pieces ahead of its results."""

_N_ATTEMPTS = 4  # most attempts at one piece of work, if its worker is killed each time
_CONNECT_S = 5


@dataclass(frozen=True)
class WorkerResources:
    """A worker's share of its machine.

    Attributes:
        device: `cpu` or `cuda`; the worker sees only its own GPU.
        n_cores: CPU cores.
    """

    device: str
    n_cores: int


@contextlib.contextmanager
def open_workers(device: str | None) -> Iterator[RayWorkers]:
    """Context with the workers of a Ray cluster; a cluster started for it ends with it.

    Args:
        device: `cpu` or `cuda`; None: a GPU for each worker if the cluster has any.

    Raises:
        SetupError: Ray is not installed, or the cluster does not answer or lacks the device.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints to stdout
        if is_ours:
            _connect(ray)
        try:
            yield _workers(ray, device)
        finally:
            if is_ours:
                ray.shutdown()


class RayWorkers:
    """The workers of a Ray cluster.

    Args:
        resources: each worker's share of its node.
        n_workers: the largest number of workers.
    """

    def __init__(self, resources: WorkerResources, n_workers: int) -> None:
        self._resources = resources
        self._n_workers = n_workers

    def run(
        self,
        pieces: Sequence[Piece],
        open_worker: Callable[[WorkerResources], DoPieces[Piece, PieceResult]],
        paths: Sequence[Path] = (),
    ) -> Iterator[PieceResult]:
        """Yields the results in the order of the pieces; a piece may have none or several.

        A piece whose worker is killed is repeated.

        Args:
            pieces: each can be processed alone, repeatedly, and in any process.
            open_worker: picklable; called once in each worker, it returns the function that
                processes the pieces.
            paths: files and folders that every worker must see.

        Raises:
            KdedgeError: a piece failed; the results before it are yielded first.
            SetupError: a worker lacks the package or does not see a path.
            ResourceError: workers die at the same piece again and again.
        """
        ray = _ray()
        with _explained_ray_errors(ray):
            workers = self._start(ray, open_worker, paths, n_pieces=len(pieces))
            for output in _in_order(ray, workers, pieces):
                failed, results = pickle.loads(output)  # noqa: S301 - of our worker
                if failed is not None:
                    error_type, message = failed
                    # Not by its `__init__`, which makes the message itself for some classes
                    raise error_type.__new__(error_type, message)
                yield from results

    def _start(
        self, ray: Any, open_worker: Callable[..., Any], paths: Sequence[Path], *, n_pieces: int
    ) -> list[Any]:
        """Starts as many workers as there are, but not more than pieces."""
        work = ray.put((ray.cloudpickle.dumps(open_worker), tuple(paths)))  # sent once to each node
        worker = ray.remote(_Worker).options(
            num_cpus=self._resources.n_cores,
            num_gpus=1 if self._resources.device == "cuda" else 0,
            max_restarts=-1,
            max_task_retries=_N_ATTEMPTS - 1,
        )
        return [
            worker.remote([work], self._resources, __version__)
            for _ in range(min(self._n_workers, n_pieces))
        ]


def _in_order(ray: Any, workers: Sequence[Any], pieces: Sequence[Piece]) -> Iterator[bytes]:
    """Yields what `_Worker.do` returns for each piece; a worker gets the next piece when free."""
    # A worker gets its first piece when it has started, which takes long on a busy cluster
    running = {worker.do.remote(None): (-1, worker) for worker in workers}
    remaining = iter(enumerate(pieces))
    outputs = dict[int, bytes]()
    for number in range(len(pieces)):
        while number not in outputs:
            (ready,), _ = ray.wait(list(running))
            done, worker = running.pop(ready)
            outputs[done] = ray.get(ready)
            for following, piece in islice(remaining, 1):
                running[worker.do.remote(pickle.dumps(piece))] = following, worker
        yield outputs.pop(number)


@contextlib.contextmanager
def _explained_ray_errors(ray: Any) -> Iterator[None]:
    """Context that explains workers that cannot start, or die again and again."""
    try:
        yield
    except ray.exceptions.RayError as error:
        if "No module named" in str(error):
            raise SetupError(
                f"A Ray worker cannot start: {_last_line(error)}\n"
                f"  Install kdedge {__version__} on all nodes of the cluster."
            ) from error
        if isinstance(error, ray.exceptions.RayActorError):
            raise ResourceError(
                f"{_N_ATTEMPTS} Ray workers died at the same piece of work, or lost their"
                " node.\n  Mostly memory runs out: use smaller batches, or nodes with more"
                " memory."
            ) from error
        raise


class _Worker:
    """Processes single pieces, in a process that Ray starts."""

    def __init__(self, work: Any, resources: WorkerResources, version: str) -> None:
        self._work = work
        self._resources = resources
        self._version = version
        self._do: DoPieces[Any, Any] | None = None

    def do(self, piece: bytes | None) -> bytes:
        """Processes a pickled piece; returns (error or None, results), pickled.

        The error is its class and message, since Ray would add a traceback to an exception.
        """
        failed = None
        results = list[Any]()
        try:
            if piece is not None:
                results += self._load()([pickle.loads(piece)])  # noqa: S301 - of this command
        except KdedgeError as error:
            # As it was written: the command decides whether it names flags or arguments
            text = (
                f"{error.args[0]}\n  This is the message of a Ray worker on {socket.gethostname()}."
            )
            failed = (type(error), text)
            results = []
        return pickle.dumps((failed, results))

    def _load(self) -> DoPieces[Any, Any]:
        """Loads the function once. Not in `__init__`, since Ray retries its errors forever."""
        if self._do is None:
            if __version__ != self._version:
                raise SetupError(
                    f"The worker has kdedge {__version__}, and this call {self._version}.\n"
                    "  Install the same version on all nodes of the cluster."
                )
            open_worker, paths = _ray().get(self._work[0])
            for path in paths:
                if not path.exists():
                    raise SetupError(
                        f"{path} does not exist on a node of the Ray cluster.\n"
                        "  Put images, runs, weights and recipes on a file system that all nodes"
                        " see under the same paths."
                    )
            self._do = pickle.loads(open_worker)(self._resources)  # noqa: S301 - of this command
        return self._do


def _last_line(error: BaseException) -> str:
    """The last line of an error's message."""
    return str(error).strip().rpartition("\n")[2]


def _ray() -> Any:
    """Imports Ray, without its usage statistics."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it at import
    return PACKAGES["ray"].load()


def _connect(ray: Any) -> None:
    """Connects to the cluster at RAY_ADDRESS, or starts one for this process."""
    before = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and "/" not in host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray also raises bare `Exception`s, such as on a busy machine
        otherwise = "or try again when the machine is less busy."
        if address:
            otherwise = "or unset RAY_ADDRESS to start one for this call."
        place = address or "this machine"
        raise SetupError(
            f"No Ray cluster could be used at {place}: {_last_line(error)}\n"
            f"  Start one with `ray start --head` and set RAY_ADDRESS to its HOST:PORT, {otherwise}"
        ) from error
    # Ray's handler of SIGTERM would end this process before it can log its messages
    with contextlib.suppress(ValueError):  # not the main thread, where Ray sets no handler either
        signal.signal(signal.SIGTERM, before)


def _workers(ray: Any, device: str | None) -> RayWorkers:
    """One worker per GPU with an equal share of its node's cores, or one worker per core."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device is not None and device.startswith("cuda") and not with_gpu:
        raise SetupError(
            "The Ray cluster has no GPU, and one is needed.\n"
            "  Add nodes with GPUs, or name the device cpu."
        )
    if with_gpu and device != "cpu":
        n_cores = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu)
        return RayWorkers(
            WorkerResources("cuda", max(1, n_cores)), sum(int(node["GPU"]) for node in with_gpu)
        )
    n_workers = sum(int(node.get("CPU", 0)) for node in nodes)
    if not n_workers:
        raise SetupError("The Ray cluster has no CPU core for a worker.\n  Add a node to it.")
    return RayWorkers(WorkerResources("cpu", 1), n_workers)
