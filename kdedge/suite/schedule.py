"""Which cell may start beside those that run: none that would make what another is making."""

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

    A cell waits for one that trains the same model now, its teacher for example. A cell of which
    nobody knows what it trains, as its weights are not here yet, runs alone. Zero-shot CLIP
    waits for all cells before it whose runs measure it. A cell that measures another's run waits
    for that one.

    Args:
        queue: what is left, in the plan's order.
        running: cells whose processes run.
        trains: gives the keys of the jobs that a cell's command trains now; None if not known.
        zero_shot: gives what is equal for cells whose runs measure the same zero-shot CLIP; None
            for cells whose runs do not.
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
