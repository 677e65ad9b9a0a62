"""How the positions of zeros change the speed: a pruned model against a shuffled copy of it.

    python benchmarks/bench_patterns.py [--model FILE]

Writes docs/results/bench_patterns.json, and the table between the marks of docs/engine.md.

Each pruned weight tensor is permuted at random: every layer keeps its shape and its number of
zeros, only their positions change. Both models run in turn, in memory.

Glossary: tile rows are the output channels that the kernel holds in registers. A column with a
weight in any of them costs a load of activations; a column without one costs nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lib import records
from lib.documents import insert
from numpy.typing import NDArray

import sparsedet
from sparsedet.detector import embedded_model
from sparsedet.engine import Engine
from sparsedet.images.letterbox import prepare

MARK = "<!-- pattern table: benchmarks/bench_patterns.py -->"
TILE_ROWS = 5
TIMED = ("res2", "res3", "res4", "rpn.conv")


def shuffled(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The same values of each convolution at random positions."""
    rng = np.random.default_rng(0)
    return {
        name: rng.permutation(value.reshape(-1)).reshape(value.shape) if value.ndim == 4 else value
        for name, value in tensors.items()
    }


def rows_a_load(tensors: Mapping[str, NDArray[np.float32]]) -> float:
    """Weights by which a loaded activation is multiplied, on average over all pruned layers."""
    weights = loads = 0
    for value in tensors.values():
        if value.ndim != 4 or np.count_nonzero(value) > 0.9 * value.size:
            continue
        nonzero = value.reshape(len(value), -1) != 0
        for first in range(0, len(nonzero), TILE_ROWS):
            loads += int(nonzero[first : first + TILE_ROWS].any(axis=0).sum())
        weights += int(nonzero.sum())
    return weights / loads


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=embedded_model("r50half-c4"), help="a pruned model"
    )
    parser.add_argument("--image", type=Path, default=records.ROOT / "examples" / "beach.jpg")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args(argv)
    conditions = records.describe("", arguments.threads)
    model = sparsedet.load_model(arguments.model)
    config, image = model.config, sparsedet.read_image(arguments.image)
    network_input, _ = prepare(image, config)
    variants = {"its own zeros": dict(model.tensors), "shuffled zeros": shuffled(model.tensors)}
    engines = {
        name: Engine(config, tensors, threads=arguments.threads)
        for name, tensors in variants.items()
    }
    # Only backbone and RPN are timed: other weights give other proposals, so other work in the
    # RoI head.
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.repeats):
        for name, engine in engines.items():
            engine.run(network_input)
            timed = engine.native.timings
            times[name].append(sum(s for layer, s in timed if layer.startswith(TIMED)))
    ratio = statistics.median(
        b / a for a, b in zip(times["its own zeros"], times["shuffled zeros"], strict=True)
    )
    rows: dict[str, Any] = {
        name: {
            "milliseconds": 1000 * statistics.median(times[name]),
            "rows_a_load": rows_a_load(tensors),
        }
        for name, tensors in variants.items()
    }
    records.save(
        records.RESULTS / "bench_patterns.json",
        {"machine": conditions, "model": config.name, "rows": rows, "ratio": ratio},
    )
    lines = [
        f"| `{config.name}` | Rows a loaded activation feeds | res2 to RPN |",
        "|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['rows_a_load']:.2f} | {row['milliseconds']:.1f} ms |")
    lines.append("")
    lines.append(f"With its zeros shuffled the same network takes {ratio:.2f} times as long.")
    insert(records.ROOT / "docs" / "engine.md", MARK, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
