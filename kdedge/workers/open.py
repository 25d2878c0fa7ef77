"""Opens the workers of an engine by its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdedge.errors import RecipeError
from kdedge.workers.protocol import ENGINES, HERE, Workers


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
        yield HERE
        return
    if engine not in ENGINES:
        raise RecipeError(f"There is no engine {engine!r}.\n  Use {' or '.join(ENGINES)}.")
    from kdedge.workers.ray_cluster import connected

    with connected(device) as workers:
        yield workers
