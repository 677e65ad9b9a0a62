"""`sparsedet compare`: two models over the same images."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import NAMES, PRECISIONS
from ..errors import InputError
from .evaluate import add_dataset
from .messages import Progress, warn
from .options import (
    FILE_OR_NAME,
    RUNNING,
    Command,
    add,
    add_running,
    check_outputs,
    group,
    load_detector,
)

if TYPE_CHECKING:
    from ..detector import Detector


def register(command: Command) -> None:
    """Add the parser."""
    parser = command(
        "compare",
        run_compare,
        "Compare two models: accuracy with intervals, speed, size.",
        usage="A B --annotations FILE --images FOLDER [OPTIONS]",
        details="The flags of running apply to both models, unless one for B alone is given.",
        examples=(
            "sparsedet compare dense.safetensors pruned.safetensors --annotations val.json "
            "--images val",
            "sparsedet compare picodet-s picodet-s --backend-b openvino --annotations val.json "
            "--images val",
        ),
    )
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help=FILE_OR_NAME)
    add_dataset(parser)
    add(parser, "--json", "--overwrite")
    add_running(parser, model=False)
    running = group(parser, RUNNING)
    running.add_argument(
        "--precision-b", choices=PRECISIONS, help="precision of B alone (default: as --precision)"
    )
    running.add_argument(
        "--backend-b", choices=NAMES, help="backend of B alone (default: as --backend)"
    )


def run_compare(arguments: argparse.Namespace) -> int:
    from ..evaluation.coco import load_coco
    from ..evaluation.compare import compare
    from ..files import write_atomic

    check_outputs(arguments.overwrite, arguments.json)
    a = _load(arguments.a, arguments, arguments.precision, arguments.backend)
    b = _load(
        arguments.b,
        arguments,
        arguments.precision_b or arguments.precision,
        arguments.backend_b or arguments.backend,
    )
    common = [name for name in a.config.class_names if name in b.config.class_names]
    if not common:
        raise InputError(f"{arguments.a} and {arguments.b} have no class in common")
    dataset = load_coco(arguments.annotations, arguments.images, common)
    told = dataset.warnings()
    warn(told)
    dataset = dataset.first(arguments.limit)
    outcome = compare(
        a,
        b,
        dataset,
        names=(_name(arguments.a, a), _name(arguments.b, b)),
        facts=(_facts(arguments.a, a), _facts(arguments.b, b)),
        bad_images=arguments.bad_images,
        progress=Progress("compare"),
    )
    warn(line for line in outcome.warnings if line not in told)
    if arguments.json is not None:
        text = json.dumps(outcome.to_json())
        write_atomic(arguments.json, text.encode(), overwrite=arguments.overwrite)
    print(outcome.text())
    return 0


def _load(given: str, arguments: argparse.Namespace, precision: Any, backend: Any) -> Detector:
    # The instruction set and the tuning file are for the native engine, if one of the two runs it.
    other = {} if backend == "native" else {"isa": "", "tuning": None}
    return load_detector(arguments, path=Path(given), precision=precision, backend=backend, **other)


def _name(given: str, detector: Detector) -> str:
    return f"{given}: {detector.config.name}, {detector.runtime}"


def _facts(given: str, detector: Detector) -> dict[str, Any]:
    from ..detector import model_path

    return {
        "size_mb": os.stat(model_path(given)).st_size / 1e6,
        "zeros_percent": 100 * detector.sparsity,
        "precision": detector.engine.precision,
        "precision_reason": detector.precision_reason,
        "threads": detector.engine.threads,
    }
