"""Whether results change between two commits, be it by a single bit.

    python benchmarks/fingerprint.py --images PHOTOS --annotations J --output before.json
    python benchmarks/fingerprint.py --images PHOTOS --annotations J --output after.json
    python benchmarks/fingerprint.py --compare before.json after.json

The Python of the first line has one commit installed, that of the second line the other commit.
Machine, dependencies, data, `--checkout` (for the dense model) and this file stay the same. A run
takes four minutes on two cores. Results come from the command line and the public names of
`sparsedet` alone, in the spellings of 0.1.0. Detections, tensors and figures are compared, without
dates, durations and paths; exported files, and what `save_model` and `quantize` write, byte by
byte. What cannot be had here, as a precision or a runtime, is skipped, and the reason noted.
`--compare` names what differs, and exits with 1 if any result does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from subprocess import run
from typing import Any

import cv2
import numpy as np

import sparsedet

DETECT = "detect --no-picture --format json --score-threshold 0"
ONCE = """prune --images IMAGES --init dense.safetensors --output OUT --sparsity 0.6
    --calibration-photos 8 --threads 1 --method"""
# One thread adds in one order. The rest makes a step take a second.
DATA = """--images TRAIN --annotations train.json --output OUT --threads 1 --batch 2 --log-every 1
    --warmup-steps 0 --scale-low 0.5 --scale-high 0.7 --rpn-pre-nms 400 --rpn-post-nms 100
    --roi-batch 32"""
GRADUAL = f"""prune {DATA} --init dense.safetensors --steps 3 --prune-end 2 --prune-every 1
    --sparsity 0.6 --freeze-at 0"""
SCORED = "--annotations ANNOTATIONS --images IMAGES --json OUT/scores.json"
COMMANDS = {
    "quantize": "quantize --images IMAGES --photos 8 --output OUT/int8.safetensors",
    "detect/drawn": "detect FEW -o OUT",
    "detect/fit": f"{DETECT} FEW --resize fit --threads 1",
    "detect/cache": f"{DETECT} FEW --cache && {DETECT} FEW --cache",
    "export/onnx": "export -o OUT/x.onnx",
    "export/onnx-other": "export -o OUT/x.onnx --dtype float16 --dynamic-batch --rows 2d --hoist",
    "export/ir": "export -o OUT/x.xml",
    "export/ir-other": "export -o OUT/x.xml --dtype float16 --layout NHWC --image-info",
    "export/ir-int8": "export -o OUT/x.xml --int8 --images IMAGES --photos 4",
    "convert/ir": "convert export/ir/x.xml -o OUT/model.safetensors",
    "prune/reconstruct": f"{ONCE} reconstruct",
    "prune/reconstruct-1x4": f"{ONCE} reconstruct --pattern 1x4",
    "prune/magnitude": f"{ONCE} magnitude",
    "prune/gradual": GRADUAL,
    "prune/gradual-1x4": f"{GRADUAL} --pattern 1x4 --allocation sensitivity",
    "train/random": f"train {DATA} --model r50half-c4 --steps 1 --freeze-at 0",
    "train/sgd": f"""train {DATA} --init dense.safetensors --steps 2 --accumulate 2
        --val-fraction 0.3 --val-every 1 && train {DATA} --resume --steps 3""",
    "train/teacher": f"""train {DATA} --init sparse.safetensors --keep-zeros --steps 2
        --teacher dense.safetensors --optimizer adamw --learning-rate 1e-4 --ema 0.5""",
    "convert/run": "convert train/sgd -o OUT/model.safetensors",
    "eval": f"eval {SCORED} --limit 60 --results OUT/results.json",
    "compare": f"compare dense.safetensors sparse.safetensors {SCORED} --limit 20",
}
"""By the name of the results; OUT is a folder for them."""
# Keys for paths, durations and sentences.
NO_FIGURES = {"photo", "seconds", "milliseconds", "speed", "warnings", "verdict"}
PACKAGES = {"numpy", "onnx", "onnxruntime", "opencv-python-headless", "openvino", "torch"}


def pack(arrays: Mapping[str, Any]) -> bytes:
    """Names, types, shapes and values of arrays."""
    found = sorted(arrays.items())
    return b"".join(f"{name} {a.dtype} {a.shape}\n".encode() + a.tobytes() for name, a in found)


def figures(lines: Iterable[str | bytes]) -> bytes:
    """JSON texts without `NO_FIGURES`, keys in one order."""

    def kept(entries: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in entries.items() if key not in NO_FIGURES}

    values = [json.loads(line, object_hook=kept) for line in lines]
    return json.dumps(values, sort_keys=True).encode()


def results(path: Path) -> dict[str, bytes]:
    """The results in a file, by what they are."""
    data = path.read_bytes()
    if path.suffix in (".png", ".txt") or path.name == "run.json":  # curves, log and environment
        return {}
    if path.suffix in (".json", ".jsonl"):
        return {"figures": figures([data] if path.suffix == ".json" else data.splitlines())}
    if path.name.startswith("checkpoint-"):  # its metadata come in any order
        from safetensors.numpy import load

        return {"tensors": pack(load(data))}  # weights, masks, optimizer
    found = {} if path.name in ("model.safetensors", "best.safetensors") else {"bytes": data}
    if path.suffix == ".safetensors":
        model = sparsedet.load_model(path)
        found["tensors"] = pack(model.tensors)
        if model.ranges is not None:
            found["ranges"] = figures([json.dumps(model.ranges)])
    return found


def draw_data(folder: Path) -> dict[str, Any]:
    """A COCO data set of noise with a rectangle on each picture; writes the pictures."""
    rng, config = np.random.default_rng(0), sparsedet.preset("r50half-c4")
    pairs = zip(config.category_ids, config.class_names, strict=True)
    data: dict[str, Any] = {"categories": [{"id": i, "name": name} for i, name in pairs]}
    data |= {"images": [], "annotations": []}
    for n in range(8):
        picture = rng.integers(90, 160, (240, 320, 3), dtype=np.uint8)
        x, y, w, h = map(int, rng.integers((0, 0, 60, 60), (160, 120, 160, 120)))
        picture[y : y + h, x : x + w] = rng.integers(0, 256, 3)
        cv2.imwrite(str(folder / f"{n}.png"), picture)
        data["images"].append({"id": n, "file_name": f"{n}.png", "width": 320, "height": 240})
        box = {"bbox": [x, y, w, h], "area": w * h, "category_id": 1 + n % 3}
        data["annotations"].append({"id": n + 1, "image_id": n, "iscrowd": 0, **box})
    return data


class Fingerprint:
    """Digests by name, and reasons of what was skipped. All files go to `folder`."""

    def __init__(self, options: Namespace, folder: Path) -> None:
        self.sha256: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.options, self.folder = options, folder
        images, annotations = options.images.resolve(), options.annotations
        photos = sorted(p for p in images.iterdir() if p.suffix.lower() in (".jpg", ".png"))[:20]
        self.words = {"ALL": photos, "FEW": photos[:4], "THREE": photos[:3], "IMAGES": [images],
                      "TRAIN": [images if annotations else folder],
                      "ANNOTATIONS": [annotations.resolve()] if annotations else []}  # fmt: skip
        data = json.loads(annotations.read_text()) if annotations else draw_data(folder)
        data["images"] = data["images"][:8]
        (folder / "train.json").write_text(json.dumps(data))

    def run(self) -> dict[str, dict[str, str]]:
        """All of it; some commands read what earlier ones wrote."""
        self.note("model", self.saved)
        for name, line in COMMANDS.items():
            self.note(name, self.ran, name, line)
        settings = ["resize=stretch", "backend=openvino", "backend=onnxruntime", "backend=torch"]
        for isa in sparsedet.available_isas():
            settings += [f"isa={isa} precision={name}" for name in ("f32", "bf16", "int8")]
        for text in settings:
            self.note(f"detect/{text}", self.detected, text)
        packages = {d.name: d.version for d in distributions() if d.name in PACKAGES}
        return {"sha256": self.sha256, "skipped": self.skipped, "packages": packages}

    def note(self, name: str, make: Callable[..., dict[str, bytes]], *arguments: str) -> None:
        """Add NAME/KEY for each result of `make`."""
        start = time.monotonic()
        try:
            for key, value in make(*arguments).items():
                self.sha256[f"{name}/{key}"] = hashlib.sha256(value).hexdigest()
        except sparsedet.InputError as error:
            self.skipped[name] = str(error)
        sys.stderr.write(f"{time.monotonic() - start:5.1f} s {name} {self.skipped.get(name, '')}\n")

    def saved(self) -> dict[str, bytes]:
        """The C4 model inside, written, read and written again; and what is not made here."""
        names = "single", "sparse", "dense"
        single, sparse, dense = files = [self.folder / f"{name}.safetensors" for name in names]
        # By its file: commits differ in the names of models, and in the default.
        inside = Path(sparsedet.__file__).parent / "models" / "r50half-c4-sparse-60.safetensors"
        model = sparsedet.load_model(inside)
        sparsedet.save_model(single, model.config, model.tensors, {}, dtype="float32")
        model = sparsedet.load_model(single)
        sparsedet.save_model(sparse, model.config, model.tensors, {}, dtype="float16")
        given = self.options.checkout / "recipes/embedded/dense.safetensors"
        shutil.copyfile(given if given.exists() else sparse, dense)
        return {f"{file.stem}/{key}": v for file in files for key, v in results(file).items()}

    def ran(self, name: str, text: str) -> dict[str, bytes]:
        """What commands print as JSON, and the results in the files that they write."""
        folder, found = self.folder / name, dict[str, bytes]()
        folder.mkdir(parents=True)
        script = Path(sys.executable).with_name("sparsedet")
        start: list[Any] = [script] if script.exists() else [sys.executable, "-m", "sparsedet.cli"]
        for number, line in enumerate(text.split(" && ")):
            words = [self.words.get(word, [word.replace("OUT", name)]) for word in line.split()]
            done = run(sum(words, start), cwd=self.folder, capture_output=True, text=True)
            missing = any(text in done.stderr for text in ("needs: pip", "is not available"))
            if done.returncode == 2 or (done.returncode == 1 and missing):
                raise sparsedet.InputError(done.stderr.strip().rpartition("\n")[2])
            if done.returncode:
                raise RuntimeError(f"{line}: exit code {done.returncode}\n{done.stderr}")
            if DETECT in line:
                found[f"json-{number}"] = figures(done.stdout.splitlines())
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            found |= {f"{path.relative_to(folder)}/{k}": v for k, v in results(path).items()}
        return found

    def detected(self, settings: str) -> dict[str, bytes]:
        """By the command line, where numbers are rounded, and to the bit."""
        path = "quantize/int8.safetensors" if "int8" in settings else "sparse.safetensors"
        options: dict[str, Any] = {k: v for k, _, v in (w.partition("=") for w in settings.split())}
        photos = "THREE" if {"scalar", "torch"} & set(options.values()) else "ALL"  # slow ones
        flags = "--" + settings.replace(" ", " --")
        found = self.ran(f"detect/{settings}", f"{DETECT} {photos} --model {path} {flags}")
        detector = sparsedet.Detector.load(self.folder / path, streams=2, num_threads=2, **options)
        pictures = [sparsedet.read_image(path) for path in self.words[photos][::5]]
        config: Any = detector.config  # also that of other releases
        size = config.canvas_width, config.canvas_height
        canvas = cv2.resize(pictures[0], size).transpose(2, 0, 1)
        arrays: dict[str, Any] = {"rows": detector.infer(canvas[None], four_d=True)}
        for index, one in enumerate(detector.stream(pictures)):
            arrays |= {f"{index} {key}": getattr(one, key) for key in ("boxes", "scores", "labels")}
        return found | {"arrays": pack(arrays)}


def compare(a: dict[str, Any], b: dict[str, Any]) -> int:
    """Print what differs; 1 if any result does, or there is none."""
    for part in ("packages", "skipped", "sha256"):
        for name in sorted({name for name, _ in a[part].items() ^ b[part].items()}):
            print(f"{part} differs: {name}: {a[part].get(name)} | {b[part].get(name)}")
    equal = sum(a["sha256"].get(name) == value for name, value in b["sha256"].items())
    print(f"{equal} results are equal; skipped: {', '.join(b['skipped']) or 'none'}")
    return int(a["sha256"] != b["sha256"] or not equal)


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=Path, help="folder of photographs")
    what.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"))
    parser.add_argument("--annotations", type=Path, help="COCO-format JSON")
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[1],
                        help="where recipes/ is (default: beside this file's folder)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("/dev/stdout"))
    options = parser.parse_args()
    if options.compare:
        return compare(*(json.loads(path.read_text()) for path in options.compare))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSEDET_CACHE"] = f"{folder}/cache"
        os.environ.pop("SPARSEDET_ISA", None)
        content = Fingerprint(options, Path(folder)).run()
    options.output.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
