"""Pruning: which weights become zero, and when.

`Gradual` and `export` are for anybody's own training loop; they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .gradual import Gradual, export

__all__ = ["Gradual", "export"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from ..errors import InputError

    try:
        # By name: everything else in this package must not wait for torch.
        return getattr(import_module(f"{__name__}.gradual"), name)
    except ImportError as error:
        raise InputError(f"{name} needs: pip install 'sparsedet[train]' ({error})") from None
