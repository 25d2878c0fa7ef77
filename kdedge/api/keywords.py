"""Keywords that a call takes beside its parameters."""

from __future__ import annotations

from collections.abc import Iterable


def check_keywords(given: Iterable[str], known: Iterable[str], *, remedy: str = "") -> None:
    """Refuses keywords that a call does not take, as Python does for parameters.

    Args:
        given: the call's.
        known: those that it takes, in the order of the message.
        remedy: what to do instead, as a sentence.

    Raises:
        TypeError: some are not known.
    """
    known = list(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: no such keyword. Known keywords: {', '.join(known)}."
            + (f"\n  {remedy}" if remedy else "")
        )
