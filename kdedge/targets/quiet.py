"""Other packages' loggers and warnings, kept from the user."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager without warnings and logs, of which converters have many.

    They call their interfaces experimental, use deprecated ones, and look for GPU libraries. A
    handler that one gives the root logger would print kdedge's own lines a second time.
    """
    root = logging.root
    before, handlers, level = root.manager.disable, root.handlers[:], root.level
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers
        root.setLevel(level)
