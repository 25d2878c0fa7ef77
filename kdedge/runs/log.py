"""Writes a run's log: kdedge's messages, and the traceback of an error."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from kdedge.files import explain_os_error


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Context that also writes kdedge's messages, and the traceback of an error, to a file."""
    logger = logging.getLogger("kdedge")
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise explain_os_error(error, path) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = logger.level
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        # Only to the file: the caller decides what to show
        record = logger.makeRecord(
            logger.name, logging.ERROR, __file__, 0, "%s", (type(error).__name__,),
            (type(error), error, error.__traceback__),
        )  # fmt: skip
        handler.handle(record)
        vars(error)["run_log"] = path  # the reporter of the error names this file
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log file that stays silent if it cannot be written, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
