"""The log of a service: one JSON object a line, with the id of the request that it is about."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from datetime import datetime, timezone
from typing import Any, TextIO

LOG = logging.getLogger("sparsedet.serve")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class JsonLines(logging.Formatter):
    """`time`, `level` and `event`, then the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc)
        entry: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def tell(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields."""
    LOG.log(level, event, extra={"fields": fields})


def log_to(stream: TextIO | None = None) -> None:
    """Write the events of this service, and the warnings of the web server, to a stream.

    Args:
        stream: default: standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (
        ("sparsedet.serve", logging.INFO),
        ("uvicorn", logging.WARNING),
        ("python_multipart", logging.ERROR),  # a damaged form is its sender's affair
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def request_id(given: str) -> str:
    """The client's own id of a request (`X-Request-Id`), if it is a plain word; else a new one."""
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
