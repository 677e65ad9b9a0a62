"""`sparsedet eval`: COCO average precision of a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import InputError
from . import Command, running_flags


def register(command: Command) -> None:
    """Add the parser."""
    evaluate = command("eval", run_eval, "COCO average precision of a model.")
    evaluate.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    evaluate.add_argument("--images", type=Path, required=True, help="folder of the photographs")
    evaluate.add_argument("--limit", type=int, help="only the first photographs")
    evaluate.add_argument("--json", type=Path, help="write the figures to this file")
    evaluate.add_argument("--results", type=Path, help="write COCO results to this file")
    evaluate.add_argument("--skip-bad", action="store_true",
                          help="count unreadable photographs as without detections")  # fmt: skip
    evaluate.add_argument("--overwrite", action="store_true", help="replace existing output files")
    running_flags(evaluate)


def run_eval(arguments: argparse.Namespace) -> int:
    from ..coco import load_coco
    from ..detector import Detector
    from ..evaluate import evaluate
    from ..files import write_atomic

    for path in (arguments.json, arguments.results):
        if path is not None and path.exists() and not arguments.overwrite:
            raise InputError(f"{path}: exists already; give --overwrite or another name")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written ({path.parent} is no folder)")
    detector = Detector.load(arguments.model, num_threads=arguments.threads, isa=arguments.isa,
                             precision=arguments.precision, plan=arguments.plan)  # fmt: skip
    dataset = load_coco(arguments.annotations, arguments.images, detector.config.class_names)
    for line in dataset.warnings():
        print(f"sparsedet: warning: {line}", file=sys.stderr)
    scores, results = evaluate(
        detector, dataset, limit=arguments.limit, skip_bad=arguments.skip_bad, progress=_progress
    )
    for line in scores.warnings:
        print(f"sparsedet: warning: {line}", file=sys.stderr)
    print(scores.table())
    for path, value in ((arguments.json, scores.to_json()), (arguments.results, results)):
        if path is not None:
            write_atomic(path, json.dumps(value).encode(), overwrite=arguments.overwrite)
    return 0


def _progress(done: int, total: int) -> None:
    """A counter on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
