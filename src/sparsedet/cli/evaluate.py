"""`sparsedet eval`: COCO average precision of a model, and what it gets wrong."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .options import Command, running_flags

if TYPE_CHECKING:
    from ..detector import Detector


def register(command: Command) -> None:
    """Add the parser."""
    evaluate = command("eval", run_eval, "COCO average precision of a model.")
    data_flags(evaluate)
    evaluate.add_argument("--json", type=Path, help="write the figures to this file")
    evaluate.add_argument("--results", type=Path, help="write COCO results to this file")
    evaluate.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write an HTML page: curves, confusions, photographs",
    )
    evaluate.add_argument(
        "--score-threshold",
        type=float,
        default=0.25,
        metavar="S",
        help="of the confusion matrix, the counts and the photographs; AP has "
        "no threshold (default 0.25)",
    )
    running_flags(evaluate)


def data_flags(parser: argparse.ArgumentParser) -> None:
    """What is evaluated over, by `eval` and `compare` alike."""
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--limit", type=int, help="only the first photographs")
    parser.add_argument(
        "--skip-bad", action="store_true", help="count unreadable photographs as without detections"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output files")


def run_eval(arguments: argparse.Namespace) -> int:
    from ..detector import Detector
    from ..evaluation import evaluate
    from ..evaluation.analysis import analyse
    from ..evaluation.coco import load_coco
    from ..files import write_atomic

    check_outputs(arguments.overwrite, arguments.json, arguments.results, arguments.report)
    if not 0 <= arguments.score_threshold <= 1:
        raise InputError(f"--score-threshold is {arguments.score_threshold}, expected 0..1")
    detector = Detector.load(
        arguments.model,
        threads=arguments.threads,
        isa=arguments.isa,
        precision=arguments.precision,
        tuning=arguments.plan,
        backend=arguments.backend,
    )
    dataset = load_coco(arguments.annotations, arguments.images, detector.config.class_names)
    warn(dataset.warnings())
    dataset = dataset.first(arguments.limit)
    start = time.perf_counter()
    scores, results = evaluate(detector, dataset, skip_bad=arguments.skip_bad, progress=progress)
    seconds = (time.perf_counter() - start) / scores.images
    warn(scores.warnings)
    analysis = analyse(dataset, results, score=arguments.score_threshold)
    outputs: dict[Path | None, str] = {
        arguments.json: json.dumps({**scores.to_json(), "analysis": analysis.to_json()}),
        arguments.results: json.dumps(results),
    }
    if arguments.report is not None:
        from ..evaluation.report import render_report

        outputs[arguments.report] = render_report(
            scores,
            analysis,
            dataset,
            title=f"{detector.config.name}: evaluation",
            facts=_facts(detector, arguments, scores.images, seconds),
        )
    # Before anything is printed: whoever reads the pipe may close it.
    for path, text in outputs.items():
        if path is not None:
            write_atomic(path, text.encode(), overwrite=arguments.overwrite)
    print(scores.table())
    print(f"\n{analysis.text()}")
    if arguments.report is not None:
        print(f"-> {arguments.report}")
    return 0


def _facts(
    detector: Detector, arguments: argparse.Namespace, images: int, seconds: float
) -> dict[str, str]:
    from .. import __version__

    return {
        "Model": "embedded model" if arguments.model is None else arguments.model.name,
        "Zeros of all parameters": f"{100 * detector.sparsity:.1f} %"
        if detector.model.tensors
        else "not counted in a graph",
        "Annotations": arguments.annotations.name,
        "Photographs": f"{images:,}",
        "Engine": f"sparsedet {__version__}, {detector.runtime}",
        "A photograph, with reading it": f"{1000 * seconds:.0f} ms",
    }


def check_outputs(overwrite: bool, *paths: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    given = [path for path in paths if path is not None]
    for path in given:
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists already; give --overwrite or another name")
        if not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written ({path.parent} is no folder)")
    if len(set(given)) < len(given):
        raise InputError(f"{given[0]}: two outputs cannot have one name")


def warn(lines: list[str] | tuple[str, ...]) -> None:
    """Each as a warning on stderr."""
    for line in lines:
        print(f"sparsedet: warning: {line}", file=sys.stderr)


def progress(done: int, total: int) -> None:
    """A counter on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
