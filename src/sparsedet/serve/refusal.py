"""`Refusal`: a request that is not served, with its status code and one line that says why."""

from __future__ import annotations

from collections.abc import Mapping

CLIENT_GONE = 499
"""The client left before its answer. Source: nginx, which logs this number; nobody receives it."""


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: HTTP status code.
        message: one line for the client.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
