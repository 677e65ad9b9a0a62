"""Copy a finished model into the package, with the essentials of its card in the file.

python recipes/embedded/ship.py RUN/pruned/model.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparsedet
from sparsedet.detector import embedded_model
from sparsedet.model.sparsity import sparsity_report

LARGEST_FILE = 12_000_000  # bytes

CARD = {
    "card": "docs/embedded.md of the sparsedet project",
    "data": "2,852 photographs of MS COCO, 2,213 of them from val2017: no score on val2017 counts",
    "licence": "research weights: 2,093 of the photographs are under non-commercial licences",
    "backbone": "started from Yahoo's open_nsfw, Copyright 2016, Yahoo Inc., BSD-2-Clause",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    source = parser.parse_args().model
    model = sparsedet.load_model(source)
    report = sparsity_report(model.config, model.tensors)
    target = embedded_model("r50half-c4")
    if report.sparsity < 0.6 or source.stat().st_size > LARGEST_FILE:
        raise SystemExit(f"{source}: {report.sparsity:.3f} zeros, {source.stat().st_size} bytes")
    keys = ("recipe", "pruned", "source", "init", "teacher", "step", "held_out_ap")
    history = {key: model.provenance[key] for key in keys if key in model.provenance}
    provenance = {**CARD, **history}
    sparsedet.save_model(target, model.config, model.tensors, provenance, overwrite=True)
    print(f"-> {target}: {target.stat().st_size} bytes, {100 * report.sparsity:.2f} % zeros")


if __name__ == "__main__":
    main()
