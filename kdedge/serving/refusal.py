"""An answer that is no result: its status code and the reason, as `{"error": "..."}`."""

from __future__ import annotations

from starlette.responses import JSONResponse


class Refusal(Exception):  # noqa: N818 - an answer, and no error of the server
    """Ends a request with a status code and a reason.

    Args:
        status: the HTTP status code.
        reason: why, and what to do.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status, self._reason = status, reason
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse({"error": self._reason}, self.status, self._headers)


def too_busy(why: str) -> Refusal:
    """The refusal of what may be tried again in a second."""
    return Refusal(503, f"{why}; try again later", retry_after="1")
