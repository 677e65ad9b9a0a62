"""`sparsedet bulk`: many images to Parquet, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .messages import Progress, complain
from .options import (
    OUTPUT,
    RUNNING,
    Command,
    add,
    add_running,
    check_score_threshold,
    detector_settings,
    group,
    load_detector,
)

if TYPE_CHECKING:
    from ..bulk import Plan, Wanted

DETAILS = """\
--input is a folder (with its subfolders), a list (.txt, a path or address a line), or Parquet with
images or their names in it; each may be in S3, as s3://BUCKET/FOLDER. Writes into --output, a
folder here or in S3: detections/part-N.parquet, a row an object, and images/part-N.parquet, a row
an image, with the reason where there is no result. Each image is done once. Ctrl-C keeps all parts
that are whole; --resume goes on. With --ray workers of a Ray cluster share the parts; they must
reach input, output and model. Exit codes: 0 all images done, 1 some failed, 130 stopped."""


def register(command: Command) -> None:
    """Add the parser."""
    bulk = command(
        "bulk",
        run_bulk,
        "Detect in many images, into Parquet, on one machine or many.",
        usage="--input PLACE --output FOLDER [OPTIONS]",
        details=DETAILS,
        examples=(
            "sparsedet bulk --input photos --output found",
            "sparsedet bulk --input s3://bucket/photos --output s3://bucket/found --ray auto",
        ),
    )
    bulk.add_argument("--input", required=True, metavar="PLACE", help="the images, see above")
    add(bulk, "--output", type=str, required=True)
    written = group(bulk, OUTPUT)
    written.add_argument(
        "--part-images", type=int, metavar="N", default=1000, help="images of a part"
    )
    add(bulk, "--score-threshold", default=0.5)
    add(bulk, "--classes", "--top")
    add(bulk, "--resume", "--quiet")
    add_running(bulk)
    add(bulk, "--streams")
    running = group(bulk, RUNNING)
    running.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="the Ray cluster: auto (this machine belongs to it), local (one of its own), or an "
        "address",
    )
    running.add_argument(
        "--ray-workers",
        type=int,
        metavar="N",
        help="workers of the cluster (default: all its CPUs)",
    )


def run_bulk(arguments: argparse.Namespace) -> int:
    from ..bulk import Wanted, make_plan
    from ..detections import labels_of
    from ..detector import model_path
    from ..engine import default_threads
    from ..files import sha256_of

    check_score_threshold(arguments)
    for flag in ("part_images", "top", "ray_workers"):
        if (value := getattr(arguments, flag)) is not None and value < 1:
            raise UsageError(f"--{flag.replace('_', '-')} is {value}, expected at least 1")
    if arguments.ray_workers is not None and arguments.ray is None:
        raise UsageError(
            "--ray-workers are of a cluster: give --ray, or --streams and --threads here"
        )
    if arguments.ray is not None:
        from ..ray import require_ray

        require_ray()
    usual = default_threads() if arguments.ray is None else 1
    threads = usual if arguments.threads is None else arguments.threads
    streams = threads if arguments.streams is None else arguments.streams
    detector = load_detector(arguments, threads=threads, streams=streams)
    classes = None if arguments.classes is None else tuple(arguments.classes)
    if classes is not None:
        labels_of(classes, detector.config.class_names)  # before the work
    wanted = Wanted(arguments.score_threshold, classes, arguments.top)
    settings = {
        "--model": sha256_of(model_path(arguments.model)),
        "--score-threshold": arguments.score_threshold,
        "--classes": arguments.classes,
        "--top": arguments.top,
        "--precision": arguments.precision,
    }
    output = arguments.output if "://" in arguments.output else os.path.abspath(arguments.output)
    given = arguments.input if "://" in arguments.input else os.path.abspath(arguments.input)
    plan, repeated = make_plan(
        given, output, settings, arguments.part_images, resume=arguments.resume
    )
    if repeated:
        complain(f"warning: {repeated} images are named again, and done once")
    report = _BulkReport(plan, arguments.quiet)
    try:
        if arguments.ray is None:
            _here(plan, wanted.of(detector), detector.streams, report)
        else:
            loading = detector_settings(arguments, threads=threads, streams=streams)
            # Workers have working folders of their own, and embedded models elsewhere.
            if (path := loading["path"]) is not None and model_path(path) is path:
                loading["path"] = os.path.abspath(path)
            if loading["tuning"] is not None:
                loading["tuning"] = os.path.abspath(loading["tuning"])
            del detector
            _on_ray(arguments, output, loading, wanted, report)
    except KeyboardInterrupt:
        left = len(plan.missing())
        complain(
            f"stopped after {plan.parts - left} of {plan.parts} parts; the same command with "
            "--resume goes on"
        )
        return 130
    finally:
        report.progress.end()
    return report.end()


def _here(plan: Plan, detect: Any, streams: int, report: _BulkReport) -> None:
    from ..bulk import do_part

    for part in plan.missing():
        do_part(plan, part, detect, streams, report.more)


def _on_ray(
    arguments: argparse.Namespace,
    output: str,
    loading: dict[str, Any],
    wanted: Wanted,
    report: _BulkReport,
) -> None:
    from ..ray import run_on_ray

    run_on_ray(
        output,
        loading,
        wanted,
        workers=arguments.ray_workers,
        address=None if arguments.ray == "local" else arguments.ray,
        tell=lambda done: report.more(done.images),
    )


class _BulkReport:
    """How far the run is, and its last words."""

    def __init__(self, plan: Plan, quiet: bool) -> None:
        self.plan, self.quiet = plan, quiet
        self.progress = Progress("", "images")
        missing = sum(map(plan.images_of, plan.missing()))
        self.known = self.done = plan.images - missing

    def more(self, count: int) -> None:
        self.done += count
        if not self.quiet:
            self.progress(self.done, self.plan.images)

    def end(self) -> int:
        """Count what all runs did; the exit code."""
        from ..bulk.work import read_done

        parts = [read_done(self.plan, part) for part in range(self.plan.parts)]
        failed = sum(one.failed for one in parts)
        if not self.quiet:
            known = f" ({self.known} by an earlier run)" if self.known else ""
            objects = sum(one.detections for one in parts)
            print(f"{self.plan.images} images{known}, {objects} objects -> {self.plan.output}")
        if failed:
            complain(
                f"{failed} of {self.plan.images} images failed; the column error of "
                f"{Path('images') / '*.parquet'} says why"
            )
        return 1 if failed else 0
