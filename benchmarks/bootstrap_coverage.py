"""How often the bootstrap's 95 % intervals hold the truth, where the truth is known.

    python benchmarks/bootstrap_coverage.py --annotations J --results A.json B.json

The photographs given are taken for the whole world, so that its figures are the truth; from it,
data sets of the same size are drawn with replacement, and an interval is made of each as
`sparsedet.evaluation.bootstrap` makes it (percentiles for B - A, 1.96 standard deviations for B
alone, and for B alone percentiles beside them).
Results are what `sparsedet eval --results` wrote for two models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sparsedet.evaluation import coco_matches
from sparsedet.evaluation.average_precision import average_precision, mean_over_classes
from sparsedet.evaluation.bootstrap import FIGURES
from sparsedet.evaluation.coco import load_coco
from sparsedet.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--results", type=Path, nargs=2, required=True)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--resamples", type=int, default=250)
    arguments = parser.parse_args()
    dataset = load_coco(arguments.annotations, arguments.annotations.parent)
    both = [coco_matches(dataset, read_json(path)) for path in arguments.results]
    images = len(dataset.images)

    def figures(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, figures) of B - A, and of B alone."""
        a, b = (mean_over_classes(average_precision(m, counts)) for m in both)
        a, b = (np.stack([x.mean(axis=1), x[:, 0], x[:, 5]], axis=1) for x in (a, b))
        return b - a, b

    truth = figures(np.ones((1, images), dtype=np.int64))
    rng = np.random.default_rng(7)
    held = []
    for _ in range(arguments.draws):
        outer = rng.multinomial(images, np.full(images, 1 / images))
        _, alone = figures(outer[None])
        drawn = figures(rng.multinomial(images, outer / images, size=arguments.resamples))
        (low, high), (low_b, high_b) = (np.quantile(d, [0.025, 0.975], axis=0) for d in drawn)
        half = 1.96 * drawn[1].std(axis=0)
        held.append(
            [
                (low <= truth[0][0]) & (truth[0][0] <= high),
                np.abs(alone[0] - truth[1][0]) <= half,
                (low_b <= truth[1][0]) & (truth[1][0] <= high_b),
            ]
        )
    rows = zip(np.mean(held, axis=0), ("B - A", "B", "B, percentiles"), strict=True)
    for row, what in rows:
        for figure, share in zip(FIGURES, row, strict=True):
            print(f"{what:<15}{figure:<5} held in {100 * share:.0f} % of {arguments.draws}")


if __name__ == "__main__":
    main()
