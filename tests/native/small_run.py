"""Small detectors of several families, from file to rows: for sanitizers and valgrind.

.ci/sanitize asan; .ci/sanitize tsan
SPARSEDET_ISA=avx2 PYTHONMALLOC=malloc valgrind python tests/native/small_run.py avx2

Arguments are instruction sets; valgrind knows no AVX-512.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]

from helpers.exports import small_network  # noqa: E402
from helpers.small import SMALL, picture  # noqa: E402

from sparsedet import Detector, available_isas  # noqa: E402
from sparsedet.images.letterbox import to_network_input  # noqa: E402
from sparsedet.model.detector_config import Config  # noqa: E402
from sparsedet.model.file import save_model  # noqa: E402
from sparsedet.model.int8_ranges import int8_layers  # noqa: E402
from sparsedet.testing import calibrated_random_tensors  # noqa: E402


def run(config: Config, folder: Path, isa: str) -> int:
    """Rows of all precisions that this instruction set has, by one stream and by two."""
    image, _ = to_network_input(picture(), config.input_height, config.input_width)
    tensors = calibrated_random_tensors(config, 0.5, image)
    path = folder / f"{config.name}.safetensors"
    thresholds = dict.fromkeys(int8_layers(config), 4.0)
    save_model(path, config, tensors, {}, clipping_thresholds=thresholds, overwrite=True)
    found = 0
    for precision in ("f32", "bf16", "int8"):
        for streams in (1, 2):
            try:
                detector = Detector.load(
                    path,
                    isa=isa,
                    precision=precision,
                    threads=2,
                    streams=streams,
                )
            except ValueError:  # not on this CPU
                continue
            images = [picture(), np.ascontiguousarray(picture()[::-1]), picture()[:40]]
            found += sum(len(rows) for rows in detector.stream(iter(images)))
    detector = Detector.load(path, isa=isa, cache=folder, threads=1)
    again = Detector.load(path, isa=isa, cache=folder, threads=2)
    assert np.array_equal(detector(picture()).boxes, again(picture()).boxes)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        fpn = small_network("faster-rcnn", (96, 96)).config
        for isa in sys.argv[1:] or available_isas():
            for config in (replace(SMALL, proposals=9), fpn):
                print(isa, config.name, run(config, Path(name), isa), "detections", flush=True)


if __name__ == "__main__":
    main()
