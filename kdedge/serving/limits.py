"""Limits of a server's requests; needs no package of the extra `kdedge[serve]`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdedge.errors import RecipeError, check_at_least
from kdedge.messages import option


@dataclass(frozen=True)
class RequestLimits:
    """Limits of a server, which answers requests that exceed them with an error.

    Attributes:
        max_megabytes: size of a request's body, 10^6 bytes. All bodies in memory together may have
            eight times this size.
        max_megapixels: size of an image, 10^6 pixels, up to 178. Larger images are refused by their
            header.
        max_requests: number of requests that wait for an answer.
        timeout: seconds from a request's headers to its answer.
    """

    max_megabytes: int = 32
    max_megapixels: int = 50
    max_requests: int = 64
    timeout: float = 30.0

    def __post_init__(self) -> None:
        names = ("max_megabytes", "max_megapixels", "max_requests")
        check_at_least(1, **{name: getattr(self, name) for name in names})
        if self.max_megapixels > 178:  # twice Pillow's `MAX_IMAGE_PIXELS` are 178,956,970
            what = option("--max-megapixels")
            raise RecipeError(f"{what} is {self.max_megapixels}; Pillow decodes 178 at most.")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            what = option("--timeout")
            raise RecipeError(f"{what} is {self.timeout}; it must be above 0 seconds.")

    @property
    def body_bytes(self) -> int:
        """Largest body of one request, bytes."""
        return self.max_megabytes * 1_000_000

    @property
    def pixels(self) -> int:
        """Largest image, pixels."""
        return self.max_megapixels * 1_000_000
