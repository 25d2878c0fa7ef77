"""A run's log: what kdedge says while the run goes on, and what ended it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from kdedge.files import explain_os_error


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Context in which kdedge's messages, and the traceback of what ends it, go to a file too."""
    logger = logging.getLogger("kdedge")
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise explain_os_error(error, path) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = logger.level
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        # To the file alone: who calls decides what is shown
        record = logger.makeRecord(
            logger.name, logging.ERROR, __file__, 0, "%s", (type(error).__name__,),
            (type(error), error, error.__traceback__),
        )  # fmt: skip
        handler.handle(record)
        vars(error)["run_log"] = path  # where who reports the error finds its traceback
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, without tracebacks of its own on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
