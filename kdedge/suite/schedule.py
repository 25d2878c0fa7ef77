"""Which cell may start beside those that run: none that would make what another is making."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kdedge.suite.plan import Cell


def next_cell(
    queue: Sequence[Cell], running: Collection[Cell], *, is_finished: Callable[[str], bool]
) -> Cell | None:
    """The first cell of a queue that need not wait for another; None where all must.

    A cell waits for one that trains the same model, its teacher for instance, unless a finished run
    has it already. Zero-shot CLIP waits for all before it whose runs measure it, and a cell that
    measures another's run for that one.

    Args:
        queue: what is left, in the plan's order.
        running: cells whose processes run.
        is_finished: whether a finished run has a model.
    """
    for number, cell in enumerate(queue):
        others = [*running, *queue[:number]] if cell.is_zero_shot else []
        if not (
            any(_train_the_same(cell, other, is_finished) for other in running)
            or any(other.zero_shot == cell.zero_shot for other in others)
            or cell.source in (*running, *queue)
        ):
            return cell
    return None


def _train_the_same(cell: Cell, other: Cell, is_finished: Callable[[str], bool]) -> bool:
    shared = set(cell.models).intersection(other.models)
    return not all(map(is_finished, shared))
