"""`sparsedet detect`: find objects in images and videos, draw them, and write them down."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import DEFAULT_MODEL
from ..errors import UsageError
from .messages import Progress, complain
from .options import (
    INPUT,
    OUTPUT,
    RUNNING,
    Command,
    add,
    add_running,
    check_score_threshold,
    group,
    load_detector,
    output_file,
)

if TYPE_CHECKING:
    from ..detections import Detections
    from ..pipeline import Done, Pipeline
    from ..sinks import ResultFiles, Sink
    from ..sources import ImageSource

DETAILS = """\
INPUT is an image, a video, a folder, a pattern, a list (.txt, a path or address a line), an http
or https address, rtsp://..., a webcam's number, or - for standard input (an image, or JPEGs one
after the other). Prints the detections and writes an annotated copy of each input: beside it as
NAME_detected.EXT, or to --output, a file for one input and a folder for several (or FOLDER/).
Nothing is overwritten unasked. With --write, --yolo or --crops annotated copies are written only
to --output. Ctrl-C leaves finished work whole; --resume goes on.
Exit codes: 0 all images done, 1 some failed, 2 the command line is wrong, 130 stopped."""


def register(command: Command) -> None:
    """Add the parser."""
    detect = command(
        "detect",
        run_detect,
        "Find objects in images and videos.",
        usage="[OPTIONS] INPUT...",
        details=DETAILS,
        examples=(
            "sparsedet detect street.jpg",
            "sparsedet detect holiday/ traffic.mp4 -r -o found/ --write found.csv --classes person",
        ),
    )
    detect.add_argument("images", nargs="+", metavar="INPUT", help="what to look at, see above")
    given = group(detect, INPUT)
    given.add_argument(
        "-r", "--recursive", action="store_true", help="look into the subfolders of folders"
    )
    given.add_argument(
        "--every", type=int, metavar="N", default=1, help="take each Nth frame of videos"
    )
    add(detect, "--bad-images", default="skip")
    add(detect, "--resize")
    add(detect, "--output", type=str)  # a Path would lose the slash of FOLDER/
    add(detect, "--overwrite", "--no-save")
    written = group(detect, OUTPUT)
    written.add_argument(
        "--write",
        type=output_file,
        metavar="FILE",
        action="append",
        help="write the detections to FILE: .jsonl, .csv, .parquet, or .json (COCO results); may "
        "be given several times",
    )
    written.add_argument(
        "--yolo", type=Path, metavar="FOLDER", help="write a label file (YOLO) for each image"
    )
    written.add_argument(
        "--crops", type=Path, metavar="FOLDER", help="write what is inside each box as a picture"
    )
    add(detect, "--resume")
    add(detect, "--quality", default=90)
    add(detect, "--format", default="table")
    add(detect, "--score-threshold", default=0.5)
    add(detect, "--classes", "--top")
    add(detect, "--verbose", "--quiet")
    add_running(detect)
    add(detect, "--streams", default=1)
    running = group(detect, RUNNING)
    running.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="look at large images in tiles of this size, by supervision",
    )
    running.add_argument(
        "--track",
        choices=("bytetrack", "sort", "ocsort", "botsort"),
        help="follow objects through videos, by the package trackers",
    )
    add(detect, "--cache")


def run_detect(arguments: argparse.Namespace) -> int:
    from ..pipeline import Pipeline
    from ..sources import open_source

    _check(arguments)
    bad = arguments.bad_images
    source = open_source(
        arguments.images, recursive=arguments.recursive, every=arguments.every, bad_images=bad
    )
    if arguments.resume and source.once:
        raise UsageError("--resume goes on with files, not with cameras and streams")
    inputs = arguments.images
    several = len(inputs) > 1 or len(list(source.parts)) != 1 or os.path.isdir(inputs[0])
    journal, done = _results(arguments, several, source)
    if done:
        return 0
    sinks = _sinks(arguments, source, several, journal)
    tracker = _tracker(arguments)
    detect, streams = _detector(arguments)
    stop = _Stop()
    pipeline = Pipeline(
        source, detect, sinks, journal=journal, workers=streams, tracker=tracker, guard=stop.guard
    )
    report = _Report(arguments, source)
    with stop:
        stopped = _run(pipeline, report, bad)
    return report.end(stopped, journal)


def _run(pipeline: Pipeline, report: _Report, bad_images: str) -> BaseException | None:
    """Do the work; returns what stopped it, None: nothing."""
    stopped: BaseException | None = None
    complete = True
    frames = iter(pipeline)
    try:
        for done in frames:
            report.tell(done)
            if done.errors and bad_images == "stop":
                complete = False
                break
    except (KeyboardInterrupt, SystemExit) as signalled:
        stopped, complete = signalled, pipeline.source.once  # a camera ends no other way
    except BaseException:
        pipeline.close(complete=False)
        raise
    finally:
        frames.close()  # type: ignore[attr-defined]
    report.tell(pipeline.close(complete))
    return stopped


def _check(arguments: argparse.Namespace) -> None:
    check_score_threshold(arguments)
    if not 1 <= arguments.quality <= 100:
        raise UsageError(f"--quality is {arguments.quality}, expected 1..100")
    for flag in ("every", "top"):
        if (value := getattr(arguments, flag)) is not None and value < 1:
            raise UsageError(f"--{flag} is {value}, expected at least 1")


def _results(
    arguments: argparse.Namespace, several: bool, source: ImageSource
) -> tuple[ResultFiles | None, bool]:
    """The result files with the journal, and whether an earlier run did everything."""
    from ..sinks import ResultFiles
    from ..sinks.video import VIDEO_OUTPUTS

    files: list[Path] = arguments.write or []
    output: str | None = None if arguments.no_save else arguments.output
    folders = [folder for folder in (arguments.yolo, arguments.crops) if folder is not None]
    if output is not None and (several or output.endswith(os.sep) or os.path.isdir(output)):
        folders.append(Path(output))
    place: Path | None = None
    if files:
        place = files[0].with_name(f"{files[0].name}.part")
    elif folders:
        place = folders[0] / ".sparsedet.part"
    elif output is not None and output.lower().endswith(VIDEO_OUTPUTS):
        place = Path(f"{output}.part")
    still = not several and not any(part.moving for part in source.parts)
    if place is None or (still and not files):
        if arguments.resume:
            raise UsageError(
                "--resume needs --write FILE, --yolo or --crops FOLDER, or -o FOLDER/, which know "
                "what is done"
            )
        return None, False
    if arguments.resume and files and not place.exists() and all(p.exists() for p in files):
        complain(f"{files[0]} is complete, there is nothing to go on with")
        return None, True
    settings = {
        "--model": str(arguments.model or DEFAULT_MODEL),
        "--score-threshold": arguments.score_threshold,
        **{f"--{n}": getattr(arguments, n) for n in ("classes", "top", "every", "track", "tile")},
    }
    return (
        ResultFiles(
            files, place, settings=settings, resume=arguments.resume, overwrite=arguments.overwrite
        ),
        False,
    )


def _sinks(
    arguments: argparse.Namespace, source: ImageSource, several: bool, journal: ResultFiles | None
) -> list[Sink]:
    from ..sinks import Annotated, Crops, YoloLabels

    settings: dict[str, Any] = {"overwrite": arguments.overwrite}
    sinks: list[Sink] = []
    if arguments.yolo is not None:
        sinks.append(YoloLabels(arguments.yolo, **settings))
    settings["quality"] = arguments.quality
    if arguments.crops is not None:
        sinks.append(Crops(arguments.crops, **settings))
    other = bool(arguments.write) or bool(sinks)
    if not arguments.no_save and (arguments.output is not None or not other):
        annotated = Annotated(source, arguments.output, several=several, **settings)
        if journal is not None:
            annotated.go_on({name for name, _ in journal.journal.known})
        annotated.check()
        sinks.append(annotated)
    return sinks


def _detector(arguments: argparse.Namespace) -> tuple[Callable[[Any], Detections], int]:
    """What finds the detections of an image that the flags ask for, and its streams."""
    detector = load_detector(arguments, streams=arguments.streams)
    names: list[str] | None = arguments.classes
    if names is not None:
        from ..detections import labels_of

        labels_of(names, detector.config.class_names)  # before the work

    def plain(image: Any) -> Detections:
        found = detector(image, arguments.score_threshold)
        return found if names is None else found.only(names)

    detect: Callable[[Any], Detections] = plain
    if arguments.tile is not None:
        from ..detections.tiles import Tiled

        detect = Tiled(plain, arguments.tile, arguments.tile // 5)
    if (top := arguments.top) is None:
        return detect, detector.streams
    return (lambda image: detect(image).best(top)), detector.streams


def _tracker(arguments: argparse.Namespace) -> Callable[[float], Any] | None:
    if arguments.track is None:
        return None
    from ..detections.tracking import Tracker, tracker_class

    tracker_class(arguments.track)
    return lambda rate: Tracker(arguments.track, rate)


class _Stop:
    """Ctrl-C stops the run between two images, and at once while none is being written."""

    def __init__(self) -> None:
        self.busy = self.asked = False
        self.before: Any = None

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and callable(before := signal.getsignal(signal.SIGINT)):  # else ignored: nohup
            self.before = before
            signal.signal(signal.SIGINT, self._signalled)

    def _signalled(self, number: int, _: object) -> None:
        if self.asked or not self.busy:
            raise KeyboardInterrupt
        self.asked = True

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """The time in which an image's files are written."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False
        if self.asked:
            self.asked = False
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


class _Report:
    """What the user is told: detections on stdout, errors and progress on stderr."""

    def __init__(self, arguments: argparse.Namespace, source: ImageSource) -> None:
        from ..sinks.text import CsvWriter

        self.form, self.quiet = arguments.format, arguments.quiet
        self.verbose = arguments.verbose
        self.total, self.once = source.count(), source.once
        self.csv = CsvWriter(sys.stdout, any(part.moving for part in source.parts))
        self.done = self.known = self.failed = 0
        self.progress = None if self.quiet or self.total == 1 else Progress("", "images")

    def tell(self, done: Done) -> None:
        """One image's detections in one of the forms of --format, at once: a reader may wait."""
        if self.progress is not None and sys.stdout.isatty():
            self.progress.hide()
        if done.known:
            self.known += done.count
        elif done.found is not None and not self.quiet:
            self._print(done, done.found)
        if done.paths and self.form == "table" and not self.quiet and not done.known:
            print("\n".join(f"-> {path}" for path in done.paths))
        sys.stdout.flush()
        for error in done.errors:
            if self.progress is not None:
                self.progress.hide()
            complain(error)
        if done.errors:
            self.failed += 1
        elif done.found is not None and not done.known:
            self.done += 1
        if self.progress is not None and done.name:
            self.progress(self.done + self.known + self.failed, self.total)

    def _print(self, done: Done, found: Detections) -> None:
        where = done.name, done.time, done.number
        if self.form == "json":
            from ..sinks.text import json_line

            print(json_line(*where, found))
        elif self.form == "csv":
            self.csv.write(*where, found)
        else:
            print(_table(done, found, self.verbose))

    def end(self, stopped: BaseException | None, journal: ResultFiles | None) -> int:
        """The last words, and the exit code."""
        if self.progress is not None:
            self.progress.end()
        total = self.done + self.known + self.failed
        several = max(total, self.total or 0) > 1
        if self.failed and several:
            complain(f"{self.failed} of {max(total, self.total or 0)} images failed")
        if stopped is not None:
            if several:
                of = f" of {self.total}" if self.total else ""
                goes_on = journal is not None and not self.once
                way = "; the same command with --resume goes on" if goes_on else ""
                complain(f"stopped after {self.done + self.known}{of} images{way}")
            code = stopped.code if isinstance(stopped, SystemExit) else 130
            return code if isinstance(code, int) else 1
        return 1 if self.failed else 0


def _table(done: Done, found: Detections, verbose: bool) -> str:
    milliseconds = f"{done.seconds * 1000:.0f} ms"
    if done.number is not None and not verbose:  # of a video one line a frame
        time = f" at {done.time:.2f} s" if done.time is not None else ""
        return f"{done.name} frame {done.number}{time}: {found.summary() or 'nothing'}"
    where = done.name if done.number is None else f"{done.name} frame {done.number}"
    lines = [f"{where}: {len(found)} objects in {milliseconds}"]
    width = max((len(name) for name in found.names), default=0)
    for name, score, box in found:
        corners = "  ".join(f"{value:7.1f}" for value in box)
        lines.append(f"  {name:<{width}}  {score:.2f}  {corners}")
    return "\n".join(lines)
