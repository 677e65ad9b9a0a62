"""Copy the finished model `picodet-s` into the package, with its card in the file.

python recipes/picodet/ship.py FOLDER/model.safetensors
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import sparsedet
from sparsedet.detector import embedded_model
from sparsedet.model.sparsity import sparsity_report

LARGEST_FILE = 3_000_000  # bytes

CARD = {
    "card": "docs/picodet.md of the sparsedet project",
    "owner": "PicoDet-S 416 (2021), Copyright PaddlePaddle Authors, PaddleDetection",
    "licence": "Apache-2.0",
    "changes": "converted from ONNX; weights made zero and the others adapted, without labels; "
    "scores calibrated; stored in float16",
    "data": "by its owner: COCO train2017; for pruning photographs of COCO train2017; for the "
    "scores 900 annotated photographs of COCO val2017",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    source = parser.parse_args().model
    model = sparsedet.load_model(source)
    target = embedded_model("picodet-s")
    keys = ("pruned", "source", "tuned", "teacher", "scores_calibrated")
    history = {key: model.provenance[key] for key in keys if key in model.provenance}
    config = replace(model.config, name="picodet-s")
    sparsedet.save_model(target, config, model.tensors, {**CARD, **history}, overwrite=True)
    size = target.stat().st_size
    if size > LARGEST_FILE:
        target.unlink()
        raise SystemExit(f"{source}: would have {size} bytes, expected {LARGEST_FILE} at most")
    zeros = sparsity_report(config, model.tensors).sparsity
    print(f"-> {target}: {size} bytes, {100 * zeros:.2f} % zeros")


if __name__ == "__main__":
    main()
