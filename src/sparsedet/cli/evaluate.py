"""`sparsedet eval`: COCO average precision of a model, and its errors."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import DEFAULT_MODEL
from ..errors import InputError, UsageError
from .messages import Progress, warn
from .options import (
    Command,
    add,
    add_bad_images,
    add_running,
    check_outputs,
    check_score_threshold,
    load_detector,
)

if TYPE_CHECKING:
    from ..detector import Detector
    from ..evaluation.coco import CocoDataset

DETAILS = """\
Prints the 12 COCO figures, AP as Open Model Zoo counts it, and an analysis of errors.
--score-threshold applies to the analysis alone: AP has no threshold.
--calibrated learns from these images what the scores of each class are worth, and writes a model
whose score is the share of detections that are right. Use images that it was not trained on."""


def register(command: Command) -> None:
    """Add the parser."""
    evaluate = command(
        "eval",
        run_eval,
        "Measure the COCO average precision of a model.",
        usage="--annotations FILE --images FOLDER [OPTIONS]",
        details=DETAILS,
        examples=(
            "sparsedet eval --annotations val.json --images val",
            "sparsedet eval --annotations val.json --images val --model mine.safetensors "
            "--report page.html",
        ),
    )
    add_dataset(evaluate)
    add(evaluate, "--json", "--results", "--report", "--calibrated", "--overwrite")
    add(evaluate, "--score-threshold", default=0.25)
    add_running(evaluate)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """The flags of the data set that `eval` and `compare` run over."""
    add(parser, "--annotations", "--images", required=True)
    add(parser, "--limit")
    add_bad_images(parser)


def run_eval(arguments: argparse.Namespace) -> int:
    from ..evaluation import evaluate
    from ..evaluation.analysis import analyse
    from ..evaluation.coco import load_coco
    from ..files import write_atomic

    check_outputs(
        arguments.overwrite,
        arguments.json,
        arguments.results,
        arguments.report,
        arguments.calibrated,
    )
    check_score_threshold(arguments)
    detector = load_detector(arguments)
    if arguments.calibrated:
        _check_calibratable(detector, arguments.backend)
    dataset = load_coco(arguments.annotations, arguments.images, detector.config.class_names)
    told = dataset.warnings()
    warn(told)
    dataset = dataset.first(arguments.limit)
    start = time.perf_counter()
    scores, results = evaluate(
        detector, dataset, bad_images=arguments.bad_images, progress=Progress("eval")
    )
    seconds = (time.perf_counter() - start) / scores.images
    warn(line for line in scores.warnings if line not in told)
    analysis = analyse(dataset, results, score=arguments.score_threshold)
    outputs: dict[Path | None, str] = {
        arguments.json: json.dumps(
            {
                **scores.to_json(),
                "runtime": detector.runtime,
                "precision_reason": detector.precision_reason,
                "analysis": analysis.to_json(),
            }
        ),
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
    calibrated, failed = "", None
    if arguments.calibrated:
        try:
            calibrated = _calibrate(detector, dataset, results, scores.images, arguments)
        except InputError as error:  # after an evaluation of hours its figures are printed first
            failed = error
    print(scores.table())
    print(f"\n{analysis.text()}")
    if failed:
        raise failed
    if calibrated:
        print(f"\n{calibrated}")
    for path in (arguments.report, arguments.calibrated):
        if path is not None:
            print(f"-> {path}")
    return 0


def _check_calibratable(detector: Detector, backend: str) -> None:
    """Refuse before the evaluation what cannot be calibrated after it."""
    import numpy as np

    from ..evaluation.score_calibration import ScoreCalibration, with_calibrated_scores

    if backend != "native":
        raise UsageError("--calibrated needs the native backend: it changes a model file")
    unchanged = ScoreCalibration(1.0, np.zeros(len(detector.config.class_names)))
    with_calibrated_scores(detector.model, unchanged)


def _calibrate(
    detector: Detector,
    dataset: CocoDataset,
    results: list[dict[str, Any]],
    images: int,
    arguments: argparse.Namespace,
) -> str:
    """Write the model with calibrated scores; what to say of it."""
    import numpy as np

    from ..evaluation import coco_matches
    from ..evaluation.score_calibration import fit_scores, with_calibrated_scores
    from ..model.file import save_model

    calibration = fit_scores(coco_matches(dataset, results), detector.config.class_names)
    model = with_calibrated_scores(detector.model, calibration)
    learnt = {"annotations": arguments.annotations.name, "images": images}
    save_model(
        arguments.calibrated,
        model.config,
        model.tensors,
        {**model.provenance, "scores_calibrated": learnt},
        dtype=model.storage_dtype,
        overwrite=arguments.overwrite,
    )
    low, high = np.percentile(calibration.offsets, (0, 100))
    return (
        f"Scores calibrated on {images} images: logits times {calibration.slope:.2f}, "
        f"plus {low:+.2f} to {high:+.2f} by class"
    )


def _facts(
    detector: Detector, arguments: argparse.Namespace, images: int, seconds: float
) -> dict[str, str]:
    from ..version import VERSION

    return {
        "Model": DEFAULT_MODEL if arguments.model is None else arguments.model.name,
        "Zeros of all parameters": f"{100 * detector.sparsity:.1f} %"
        if detector.model.tensors
        else "not counted in a graph",
        "Annotations": arguments.annotations.name,
        "Images": f"{images:,}",
        "Engine": f"sparsedet {VERSION}, {detector.runtime}",
        **({"Precision": detector.precision_reason} if detector.precision_reason else {}),
        "Time per image, with reading it": f"{1000 * seconds:.0f} ms",
    }
