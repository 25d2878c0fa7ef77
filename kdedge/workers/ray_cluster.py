"""Does pieces of work by Ray Data, on one machine or many.

The dataset has one block a piece. Each worker is an actor that loads a model once and keeps it. Ray
puts the pieces of a killed worker or node elsewhere, and gives results back in the order of pieces.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdedge import __version__
from kdedge.errors import KdedgeError, MissingPackage, ResourceError, SetupError
from kdedge.workers import DoPieces, Piece, Result, Work, WorkerResources

_N_ATTEMPTS = 4
"""Most attempts at one piece of work whose workers are killed."""
_CONNECT_S = 5
_LONGEST_PIECE_S = 7 * 24 * 3600


@dataclass(frozen=True)
class _Failed:
    """An error of a worker: Ray would add its own traceback to an exception."""

    kind: type[KdedgeError]
    message: str

    def error(self) -> KdedgeError:
        return self.kind.__new__(self.kind, self.message)


class _Attempts:
    """Counts how often each piece was begun."""

    def __init__(self) -> None:
        self._n: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._n[number] += 1
        return self._n[number]


class _Worker:
    """Does single pieces. Ray Data makes one in each process that it starts."""

    def __init__(self, work: Any, attempts: Any, resources: WorkerResources, version: str) -> None:
        self._work, self._attempts, self._resources = work, attempts, resources
        self._version = version
        self._do: DoPieces[Any, Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """`piece` -> `found`, both pickled: the list of its results, or `_Failed`."""
        try:
            self._check_begins(int(row["number"]))
            output: object = list(self._ready()([pickle.loads(row["piece"])]))  # noqa: S301 - of this command
        except KdedgeError as error:
            text = f"{error}\n  This is the message of a Ray worker on {socket.gethostname()}."
            output = _Failed(type(error), text)
        return {"found": pickle.dumps(output)}

    def _check_begins(self, number: int) -> None:
        """Gives up a piece that kills worker after worker, which Ray would begin forever."""
        if _ray().get(self._attempts.begin.remote(number)) > _N_ATTEMPTS:
            raise ResourceError(
                f"{_N_ATTEMPTS} Ray workers died at the same piece of work, or lost their node.\n"
                "  Mostly memory runs out: use smaller batches, or nodes with more memory."
            )

    def _ready(self) -> DoPieces[Any, Any]:
        """Loads what the work needs, once. Not in `__init__`, whose errors Ray repeats forever."""
        if self._do is None:
            if __version__ != self._version:
                raise SetupError(
                    f"The worker has kdedge {__version__}, and the command {self._version}.\n"
                    "  Install the same version on all nodes of the cluster."
                )
            work_bytes, paths = _ray().get(self._work)
            for path in paths:
                if not path.exists():
                    raise SetupError(
                        f"{path} does not exist on a node of the Ray cluster.\n"
                        "  Put images, runs, weights and recipes on a file system that all nodes"
                        " see under the same paths."
                    )
            self._do = pickle.loads(work_bytes)(self._resources)  # noqa: S301 - of this command
        return self._do


class RayWorkers:
    """The workers of a Ray cluster.

    Args:
        resources: what each of them gets of its node.
        n_workers: the largest number of them.
    """

    are_local = False

    def __init__(self, resources: WorkerResources, n_workers: int) -> None:
        self._resources, self._n_workers = resources, n_workers

    def run(self, pieces: Sequence[Piece], work: Work[Piece, Result]) -> Iterator[Result]:
        """See `kdedge.workers.Workers`."""
        if not pieces:
            return
        ray = _ray()
        n = min(self._n_workers, len(pieces))
        work_bytes = ray.cloudpickle.dumps(work.elsewhere)
        packed = ray.put((work_bytes, work.paths))  # sent once to each node
        attempts = ray.remote(num_cpus=0)(_Attempts).remote()
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = _LONGEST_PIECE_S
        with ray.data.DataContext.current(context):
            rows = ray.data.from_items(
                [
                    {"number": number, "piece": pickle.dumps(piece)}
                    for number, piece in enumerate(pieces)
                ],
                override_num_blocks=len(pieces),
            ).map(
                _Worker,
                fn_constructor_args=(packed, attempts, self._resources, __version__),
                compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=n, max_size=n),
                num_cpus=self._resources.n_cores,
                num_gpus=int(self._resources.device == "cuda"),
            )
            try:
                for row in rows.iter_rows():
                    output = pickle.loads(row["found"])  # noqa: S301 - of a worker of this command
                    if isinstance(output, _Failed):
                        raise output.error()
                    yield from output
            except ray.exceptions.RayError as error:
                if "No module named" not in str(error):
                    raise
                raise SetupError(
                    f"A Ray worker cannot start: {_last(error)}\n"
                    f"  Install kdedge {__version__} on all nodes of the cluster."
                ) from error


def _last(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


@contextlib.contextmanager
def connected(device: str | None) -> Iterator[RayWorkers]:
    """Context with the workers of the cluster of RAY_ADDRESS, or of one on this machine.

    Args:
        device: `cpu` or `cuda`; None: a GPU for each worker if the cluster has any.

    Raises:
        MissingPackage: Ray is not installed.
        SetupError: no cluster answers, or it lacks the device.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    with contextlib.redirect_stdout(sys.stderr):  # for what Ray prints
        if is_ours:
            _connect(ray)
        try:
            yield _workers(ray, device)
        finally:
            if is_ours:
                ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise MissingPackage("ray[data]", extra="ray", purpose="The engine ray") from error
    _keep_handler(before)
    return ray


def _keep_handler(handler: Any) -> None:
    """Takes SIGTERM back from Ray, which would end this process without its messages."""
    with contextlib.suppress(ValueError):  # not the main thread: Ray had to leave it alone, too
        signal.signal(signal.SIGTERM, handler)


def _connect(ray: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and "/" not in host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray raises plain ones, too, such as on a busy machine
        otherwise = (
            "or unset RAY_ADDRESS to start one for this command."
            if address
            else "or try again when the machine is less busy."
        )
        raise SetupError(
            f"No Ray cluster could be used at {address or 'this machine'}: {_last(error)}\n"
            f"  Start one with `ray start --head` and set RAY_ADDRESS to its HOST:PORT, {otherwise}"
        ) from error
    _keep_handler(before)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _workers(ray: Any, device: str | None) -> RayWorkers:
    """As many workers as the cluster has GPUs, with an equal share of the cores; or as cores."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device is not None and device.startswith("cuda") and not with_gpu:
        raise SetupError(
            "The Ray cluster has no GPU, and one is needed.\n"
            "  Add nodes with GPUs, or compute on CPUs: --device cpu."
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
