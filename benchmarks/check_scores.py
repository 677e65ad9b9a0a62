"""How often a detector's scores are right, on annotated images: its calibration error and more.

    python benchmarks/check_scores.py before.safetensors after.safetensors \
        --annotations held_out.json --images held_out

Prints for each model the expected calibration error over ten bins of scores, and precision and
recall at --score, at an IoU of 0.5. The images must be others than those of `eval --calibrated`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsedet import Detector
from sparsedet.evaluation import coco_matches, evaluate
from sparsedet.evaluation.coco import load_coco
from sparsedet.evaluation.score_calibration import at_score, reliability


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="model files, or names of embedded models")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--score", type=float, default=0.5, help="of precision and recall")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    for name in arguments.models:
        detector = Detector.load(name, threads=arguments.threads)
        dataset = load_coco(arguments.annotations, arguments.images, detector.config.class_names)
        matches = coco_matches(dataset, evaluate(detector, dataset)[1])
        precision, recall = at_score(matches, arguments.score)
        print(
            f"{name}: calibration error {reliability(matches).error:.3f}; at {arguments.score:g} "
            f"precision {precision:.3f}, recall {recall:.3f}"
        )


if __name__ == "__main__":
    main()
