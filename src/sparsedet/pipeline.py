"""From a source through a detector into sinks: what the command line, a service and bulk runs do.

Decoding (a thread), detection (the detector's streams) and writing (the caller) overlap; queues
between them are bounded, and results keep the order of the source.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .detections import Detections
from .errors import InputError
from .sinks import ResultFiles, Sink
from .sources import BadFrame, Frame, ImageSource, Part
from .sources.ahead import map_ahead

READ_AHEAD = 4
"""Decoded images that wait for the network."""


@dataclass
class Done:
    """What became of one frame, or of what stands in its place.

    Attributes:
        name, time, number: as of `Frame`.
        found: the detections; None where there are none to tell of.
        seconds: that detection took.
        paths: files that were finished.
        errors: what went wrong, one line each.
        known: an earlier run did it.
        count: frames that this stands for.
    """

    name: str
    time: float | None = None
    number: int | None = None
    found: Detections | None = None
    seconds: float = 0.0
    paths: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    known: bool = False
    count: int = 1


@dataclass
class _End:
    """Stands behind the last frame of a part."""

    part: Part


@dataclass
class _Skipped:
    """Stands for a part that an earlier run finished."""

    part: Part


Track = Callable[[Detections, Any], Detections]


class Pipeline:
    """One run. Iterating does it.

    Args:
        source: of the frames.
        detect: a detector, or what calls one: image -> detections.
        sinks: written to in this order, after the journal's other files.
        journal: the result files, whose journal knows what an earlier run finished.
        workers: images that are detected at once.
        tracker: makes a function for each video, (detections, image) -> detections with track
            ids, from its frames a second.
        guard: a context in which files are written, so that nobody stops it half way.
    """

    def __init__(
        self,
        source: ImageSource,
        detect: Callable[[Any], Detections],
        sinks: Sequence[Sink] = (),
        *,
        journal: ResultFiles | None = None,
        workers: int = 1,
        tracker: Callable[[float], Track] | None = None,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.source, self.detect, self.sinks = source, detect, list(sinks)
        self.journal, self.workers, self.guard = journal, workers, guard
        self.tracker = tracker
        self._track: Track | None = None
        self._tracked: str | None = None
        self._rates: dict[str, Callable[[], float]] = {}
        self._known = journal.journal.known.copy() if journal is not None else None
        self._resumed = bool(self._known)
        if journal is not None:
            begun = {name for name, number in journal.journal.known if number is not None}
            for sink in self.sinks:
                sink.go_on(begun)

    def __iter__(self) -> Iterator[Done]:
        ahead = READ_AHEAD + self.workers
        items = map_ahead(self._work, self._wanted(), self.workers, ahead)
        for item, (found, seconds) in items:
            if isinstance(item, _Skipped):
                yield self._skip(item.part)
            elif isinstance(item, _End):
                done = Done(item.part.name)
                with self.guard():
                    self._finish(item.part, done)
                if done.paths or done.errors:
                    yield done
            elif isinstance(item, BadFrame):
                yield Done(item.name, errors=[str(item.error)])
            else:
                yield self._write(item, found, seconds)

    def _wanted(self) -> Iterator[Frame | BadFrame | _End | _Skipped]:
        ended = self.journal.journal.ended.copy() if self.journal is not None else {}
        for part in self.source.parts:
            self._rates[part.name] = part.rate
            if self._known is not None and not part.moving and self._known[part.name, None]:
                self._known[part.name, None] -= 1
                yield _Skipped(part)
            elif ended.get(part.name, 0):
                ended[part.name] -= 1
                yield _Skipped(part)
            else:
                yield from part.read()
                yield _End(part)

    def _work(self, item: Any) -> tuple[Detections | str | None, float]:
        """Detect, in one of the workers; an error is one line."""
        if not isinstance(item, Frame) or self._is_known(item):
            return None, 0.0
        start = time.perf_counter()
        try:
            return self.detect(item.image), time.perf_counter() - start
        except (InputError, OSError) as error:
            text = str(error)
            return text if item.name in text else f"{item.name}: {text}", 0.0
        except MemoryError:
            return f"{item.name}: not enough memory", 0.0

    def _is_known(self, frame: Frame) -> bool:
        known = self._known is not None and frame.number is not None
        return known and bool(self._known and self._known[frame.name, frame.number])

    def _skip(self, part: Part) -> Done:
        for sink in self.sinks:
            sink.skip(part.name)
        return Done(part.name, known=True, count=part.count() or 1)

    def _write(self, frame: Frame, found: Detections | str | None, seconds: float) -> Done:
        done = Done(frame.name, frame.time, frame.number, seconds=seconds)
        if isinstance(found, str):
            done.errors.append(found)
            return done
        sinks = self.sinks
        if found is None:  # known: only what cannot be continued needs it again
            done.known = True
            sinks = [sink for sink in sinks if sink.replays]
            if self.journal is None or (not sinks and self.tracker is None):
                return done
            entry = self.journal.journal.find(frame.name, frame.number or 0)
            if entry is None:
                return done
            found = entry.found
        if self.tracker is not None and frame.number is not None:
            found = self._with_tracks(self.tracker, frame, found)
        done.found = found
        with self.guard():
            self._to_sinks(sinks, frame, found, done)
            if self.journal is not None and not done.known and not done.errors:
                self.journal.write(frame, found)
        return done

    def _to_sinks(self, sinks: Sequence[Sink], frame: Frame, found: Detections, done: Done) -> None:
        for sink in sinks:
            usual = sink.overwrite
            # An earlier run may have been stopped between the files of this image and its line in
            # the journal.
            sink.overwrite = usual or (self._resumed and not done.known)
            try:
                path = sink.write(frame, found)
                if path is not None:
                    done.paths.append(path)
            except (InputError, OSError) as error:
                done.errors.append(str(error))
            finally:
                sink.overwrite = usual
        if not done.known:
            self._resumed = False

    def _with_tracks(
        self, tracker: Callable[[float], Track], frame: Frame, found: Detections
    ) -> Detections:
        if self._track is None or self._tracked != frame.name:
            rate = self._rates.get(frame.name)
            self._track = tracker(rate() if rate is not None else 25.0)
            self._tracked = frame.name
        return self._track(found, frame.image)

    def _finish(self, part: Part, done: Done) -> None:
        for sink in self.sinks:
            try:
                done.paths += sink.end(part.name)
            except (InputError, OSError) as error:
                done.errors.append(str(error))
        self._track = None
        if self.journal is not None and part.moving and not done.errors:
            self.journal.journal.end(part.name)

    def close(self, complete: bool) -> Done:
        """Finish all sinks, also of a run that was stopped: what is done becomes whole."""
        done = Done("")
        if self.journal is not None:
            self.journal.complete = complete
        with self.guard():
            for sink in [*self.sinks, *([self.journal] if self.journal is not None else [])]:
                try:
                    done.paths += sink.close()
                except (InputError, OSError) as error:
                    done.errors.append(str(error))
        return done
