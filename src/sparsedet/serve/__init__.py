"""Detectors as a service over HTTP: KServe's v2 protocol, and `POST /detect` for images.

Needs `pip install 'sparsedet[serve]'`, when a service is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .limits import ServiceLimits

if TYPE_CHECKING:
    from ..detector import Detector
    from .server import Service

__all__ = ["ServiceLimits", "open_service", "require_packages"]

PACKAGES = ("starlette", "uvicorn", "prometheus_client", "python_multipart")
"""What the extra `serve` installs."""


def open_service(detectors: Mapping[str, Detector], **settings: Any) -> Service:
    """A service that listens; its `run` serves.

    Args:
        detectors: by the names of their models; the first one is the default.
        settings: host, port, token and limits, as of `server.Service`.

    Raises:
        InputError: the packages are not installed, or the address cannot be listened on.
    """
    require_packages()
    from .server import Service

    return Service(detectors, **settings)


def require_packages() -> None:
    """Raise InputError unless the packages of a service are installed."""
    try:
        for name in PACKAGES:
            import_module(name)
    except ImportError as error:
        raise InputError(f"serving needs: pip install 'sparsedet[serve]' ({error})") from None
