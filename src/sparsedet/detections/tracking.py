"""Objects followed through a video, by the trackers of roboflow's package `trackers` (extra)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError
from . import Detections

TRACKERS = {
    "bytetrack": "ByteTrackTracker",
    "sort": "SORTTracker",
    "ocsort": "OCSORTTracker",
    "botsort": "BoTSORTTracker",
}
"""Name -> class of the package."""


class Tracker:
    """Gives the detections of a video's frames their track ids.

    Args:
        name: one of `TRACKERS`.
        rate: frames a second.

    Raises:
        InputError: the package is not installed, or has no such tracker.

    Call it with the detections of each frame in order; it returns the same detections, in the same
    order, with `track_ids`. -1 marks a detection that belongs to no track yet: trackers wait for
    an object to appear in two or three frames.
    """

    def __init__(self, name: str = "bytetrack", rate: float = 25.0) -> None:
        make = tracker_class(name)
        self._tracker = make(frame_rate=max(rate, 1.0))
        self._looks = name == "botsort"  # the others warn about an image

    def __call__(self, found: Detections, image: Any = None) -> Detections:
        given = found.to_supervision()
        given.mask = None  # no tracker here reads it
        given.data["row"] = np.arange(len(found))
        tracked = self._tracker.update(given, frame=image if self._looks else None)
        ids = np.full(len(found), -1, np.int64)
        if len(tracked):
            ids[np.asarray(tracked.data["row"], np.int64)] = tracked.tracker_id
        return replace(found, track_ids=ids)


def tracker_class(name: str) -> Callable[..., Any]:
    """The class of a tracker.

    Raises:
        InputError: the package is not installed, or has no such tracker.
    """
    if name not in TRACKERS:
        raise InputError(f"tracker is {name!r}, expected one of {', '.join(TRACKERS)}")
    try:
        import trackers
    except ImportError:
        raise InputError(
            "tracking needs the package trackers: pip install 'sparsedet[track]'"
        ) from None
    found: Callable[..., Any] = getattr(trackers, TRACKERS[name])
    return found
