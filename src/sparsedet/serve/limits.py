"""The limits of a service: what one request, and all together, may take of this machine."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import UsageError
from ..images.read import MAX_PIXELS

MAX_BATCH = 16
"""Images of one inference request. Source: choice; more images are more requests, which wait in the
queue like all others."""

CONNECTIONS = 1000
"""Open connections; more get 503. Source: choice, below the usual 1024 open files of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What requests may take. Every limit is at least 1, seconds may be a part of one.

    Attributes:
        queue: requests that wait for the engine; another one gets 429.
        body: bytes of a request's body; a larger one gets 413.
        bodies: bytes of all bodies in memory together; a request beyond it gets 429.
        pixels: height x width of an image, checked before it is decoded; a larger one gets 400.
        seconds: from the whole request to its answer, waiting included; after it, 503.
        gflop: GFLOP of an image in a model (`Detector.gflop`); the service does not start with a
            larger one.
        receive: seconds for the headers of a request, and again for its body; after it, 408.

    Raises:
        UsageError: a limit is too small.
    """

    queue: int = 16
    body: int = 32_000_000
    bodies: int = 256_000_000
    pixels: int = MAX_PIXELS
    seconds: float = 30.0
    gflop: float = 10_000.0
    receive: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0.01 if isinstance(field.default, float) else 1
            if not value >= least:
                raise UsageError(f"the limit {field.name} is {value}, expected at least {least}")
