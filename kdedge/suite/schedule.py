"""Chooses the next cell to start, so that no two cells train the same model at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kdedge.suite.plan import Cell


def next_cell(
    queue: Sequence[Cell],
    running: Collection[Cell],
    *,
    trains: Callable[[Cell], set[str] | None],
    zero_shot: Callable[[Cell], object],
) -> Cell | None:
    """The first cell of a queue that need not wait for another; None if all must.

    A cell waits for one that trains the same model now, such as its teacher. If it is unknown what
    a cell trains, as its weights are missing, it runs alone. Zero-shot CLIP waits for all earlier
    cells whose runs measure it. A cell that measures another's run waits for that one.

    Args:
        queue: unfinished cells, in the plan's order.
        running: cells whose processes run.
        trains: returns the keys of the jobs that a cell's command would train now; None if unknown.
        zero_shot: returns a value that is equal for cells whose runs measure the same zero-shot
            CLIP; None for cells whose runs do not.
    """
    now = [trains(cell) for cell in running]
    if None in now:
        return None
    for number, cell in enumerate(queue):
        keys = trains(cell)
        if keys is None and running:
            continue
        others = [*running, *queue[:number]] if cell.is_zero_shot else []
        own = zero_shot(cell)
        if not (
            any(keys & others_keys for others_keys in now if keys and others_keys)
            or (own is not None and any(zero_shot(other) == own for other in others))
            or cell.source in (*running, *queue)
        ):
            return cell
    return None
