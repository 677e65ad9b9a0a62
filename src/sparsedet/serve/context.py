"""What the endpoints of one service share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .body import Intake
from .limits import ServiceLimits
from .metrics import ServiceMetrics
from .models import ServedModel
from .work import WorkQueue


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What the endpoints of one service share.

    Attributes:
        models: by their names, the default one first.
        token: None: everybody may ask.
    """

    models: Mapping[str, ServedModel]
    limits: ServiceLimits
    token: str | None
    queue: WorkQueue
    intake: Intake
    metrics: ServiceMetrics
