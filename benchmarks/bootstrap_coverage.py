"""How often the bootstrap's 95 % intervals contain the true value.

    python benchmarks/bootstrap_coverage.py --annotations VAL.json --results A.json B.json

Prints the coverage of each interval; writes nothing. A.json and B.json are the results of two
models, from `sparsedet eval --results`.

The given images are the whole population, so its figures are the true values. From it, data sets of
the same size are drawn with replacement, and each gives intervals as in
`sparsedet.evaluation.bootstrap`: percentiles for B - A, 1.96 standard deviations for B alone, and
for comparison percentiles for B alone.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--results", type=Path, nargs=2, required=True, help="COCO results")
    parser.add_argument("--draws", type=int, default=60, help="data sets")
    parser.add_argument("--resamples", type=int, default=250, help="of each data set")
    arguments = parser.parse_args()
    dataset = load_coco(arguments.annotations, arguments.annotations.parent)
    both = [coco_matches(dataset, read_json(path)) for path in arguments.results]
    images = len(dataset.images)

    def figures(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Figures (resamples, figures) of B - A, and of B alone."""
        a, b = (mean_over_classes(average_precision(m, counts)) for m in both)
        a, b = (np.stack([x.mean(axis=1), x[:, 0], x[:, 5]], axis=1) for x in (a, b))
        return b - a, b

    true_difference, true_b = figures(np.ones((1, images), dtype=np.int64))
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(arguments.draws):
        draw = rng.multinomial(images, np.full(images, 1 / images))
        _, b = figures(draw[None])
        resampled = figures(rng.multinomial(images, draw / images, size=arguments.resamples))
        (low, high), (low_b, high_b) = (np.quantile(x, [0.025, 0.975], axis=0) for x in resampled)
        half_width = 1.96 * resampled[1].std(axis=0)
        covered.append(
            [
                (low <= true_difference[0]) & (true_difference[0] <= high),
                np.abs(b[0] - true_b[0]) <= half_width,
                (low_b <= true_b[0]) & (true_b[0] <= high_b),
            ]
        )
    rows = zip(np.mean(covered, axis=0), ("B - A", "B", "B, percentiles"), strict=True)
    for row, interval in rows:
        for figure, coverage in zip(FIGURES, row, strict=True):
            print(f"{interval:<15}{figure:<5} covers {100 * coverage:.0f} % of {arguments.draws}")


if __name__ == "__main__":
    main()
