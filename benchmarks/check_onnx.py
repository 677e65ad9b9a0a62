"""Networks from ONNX files against ONNX Runtime, at full size, on two photographs.

    python benchmarks/check_onnx.py --json docs/results/check_onnx.json

Weights are random by a seed (lib/onnx_models.py). Of each part of the output, boxes, scores or
logits, two shares of its largest value are printed: how far the photographs are apart, and how far
ours is from ONNX Runtime's. Exit code 1: two photographs change a part by less than 10 %, which
proves nothing; ours differs by more than 1e-4; or its bits depend on the number of threads.

yolox_s is that of pixeltable-yolox, a package with a permissive licence, if it is installed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from lib import records
from lib.onnx_models import F32, SUBJECTS, OnnxSubject, lively_module, photographs, write_onnx

from sparsedet import Model
from sparsedet.importers.onnx import load_onnx
from sparsedet.importers.tensor_source import Imported

LEAST, MOST = 0.1, 1e-4
"""Shares of the largest value: between the photographs at least, from ONNX Runtime at most."""


def by_onnxruntime(path: Path, batch: F32) -> F32:
    """The one output, image after image."""
    session = onnxruntime.InferenceSession(str(path))
    (given,) = session.get_inputs()
    return np.concatenate([session.run(None, {given.name: one[None]})[0] for one in batch])


def difference(a: F32, b: F32) -> float:
    """Largest difference, as a share of the largest value of the second."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def check(name: str, subject: OnnxSubject, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare one network; the result is JSON-ready."""
    batch = photographs(subject)
    module = lively_module(subject, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(
            module,
            subject,
            Path(folder, f"{name}.onnx"),
            dynamo=arguments.dynamo,
            opset_version=arguments.opset,
        )
        want = by_onnxruntime(path, batch)
        runs = []
        for threads in (1, 2):
            model = Model.load(path, threads=threads)
            (got,) = model(batch).values()
            runs.append(got)
        loaded = load_onnx(path)
        said = loaded.notes[0].split(":")[0] if isinstance(loaded, Imported) else ""
    parts: dict[str, dict[str, Any]] = {}
    good = bool((runs[0] == runs[1]).all())
    for part, where in subject.parts.items():
        apart = difference(want[0][None][where], want[1][None][where])
        ours = difference(runs[0][where], want[where])
        entry: dict[str, Any] = {"apart": apart, "from_onnxruntime": ours}
        entry["good"] = ours <= MOST and apart >= LEAST
        good &= entry["good"]
        parts[part] = entry
    return {"parts": parts, "same_bits": bool((runs[0] == runs[1]).all()), "good": good, "as": said}


def show(name: str, result: dict[str, Any]) -> None:
    for part, entry in result["parts"].items():
        verdict = "equal" if entry["good"] else "void" if entry["apart"] < LEAST else "NOT EQUAL"
        print(
            f"{name:20} {part:8} photographs {entry['apart']:.2f} apart, "
            f"from ONNX Runtime {entry['from_onnxruntime']:.1e}: {verdict}"
        )
    bits = "" if result["same_bits"] else ": BITS DEPEND ON THREADS"
    print(f"{'':20} {result['as'] or 'outputs as they are'}{bits}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--dynamo", action="store_true", help="torch's newer exporter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="result file; an older one is replaced")
    arguments = parser.parse_args(argv)
    content: dict[str, Any] = {"machine": records.describe("", 2), "results": {}}
    kinds = list(arguments.kinds)
    if "yolox_s" in kinds and find_spec("yolox") is None:
        print("yolox_s is left out: it needs pixeltable-yolox")
        kinds.remove("yolox_s")
    for name in kinds:
        content["results"][name] = check(name, SUBJECTS[name], arguments)
        show(name, content["results"][name])
        gc.collect()
        if arguments.json:
            records.save(arguments.json, content)
    failed = [name for name, result in content["results"].items() if not result["good"]]
    print(f"{len(kinds) - len(failed)} of {len(kinds)} networks are equal")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
