"""The commands in the documents, and a folder with the files that they name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from helpers.parity import DETECTRON2, TENSORPACK, config_yaml, state_of, zoo
from helpers.videos import write_h264
from sparsedet.cli import main
from sparsedet.model.file import save_model
from sparsedet.testing import calibrated_random_tensors, rectangles_on_noise

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])
}
"""The documents by their path in the checkout."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_INDENTED = re.compile(r"(?:^    \S.*\n(?:^     .*\n)*)+", re.M)
_PROGRAMS = (
    "sparsedet|curl|python3?|pip|cmake|make|cp|torchrun|ffmpeg|accuracy_check|docker|mkdocs|"
    "auditwheel|cibuildwheel"
)
_COMMAND = re.compile(rf"(?:\w+=\S+ )*(?:{_PROGRAMS})\s")


def commands(text: str) -> list[str]:
    """The commands of a document in their order: all lines of its sh blocks, and of blocks without
    a language those that begin with a program; without comments, continued lines joined."""
    found = []
    blocks = [(block.start(), block[1], block[2]) for block in _FENCE.finditer(text)]
    plain = _FENCE.sub(lambda block: "\n" * len(block[0]), text)  # the same length
    blocks += [(block.start(), "", block[0]) for block in _INDENTED.finditer(plain)]
    for _, language, content in sorted(blocks):
        if language not in ("", "sh"):
            continue
        for line in re.sub(r"\\\n\s*", "", content).splitlines():
            line = re.sub(r"(?:^|\s+)#.*", "", line.strip().removeprefix("$ "))
            if line and (language or _COMMAND.match(f"{line} ")):
                found.append(line)
    return found


def of_the_program(command: str) -> list[list[str]]:
    """The arguments of each run of `sparsedet` in a command line of the shell."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    runs: list[list[str]] = []
    current: list[str] | None = None
    for word in lexer:
        if set(word) <= set("|&;<>"):
            current = None
        elif current is not None:
            current.append(word)
        elif word.rpartition("/")[2] == "sparsedet":
            runs.append(current := [])
    return runs


def kitchen(folder: Path, text: str) -> None:
    """Write the files that a document's commands read: small ones under the same names.

    Args:
        text: of the document; what its commands write is left out.
    """
    from helpers.tiny_training import make_data  # it needs torch

    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    annotations, photos = make_data(folder / "data", 20)
    shutil.copy(ROOT / "examples" / "beach.jpg", photos)
    for name in ("train", "val"):
        shutil.copy(annotations, folder / f"{name}.json")
    data = json.loads(annotations.read_text())
    for category, word in zip(data["categories"], ("car", "airplane", "truck"), strict=True):
        category["name"] = word  # classes of COCO, as the embedded models have
    for name in ("instances.json", "J"):
        (folder / name).write_text(json.dumps(data))
    for name in ("photos", "my_photos", "images", "val", "IMAGES", "PHOTOGRAPHS", "D"):
        (folder / name).symlink_to(photos)
    (folder / "photos.txt").write_text("photos/1.png\nexamples/beach.jpg\n")
    for name in ("photo", "street", "dog"):
        shutil.copy(ROOT / "examples" / "beach.jpg", folder / f"{name}.jpg")
    cv2.imwrite(str(folder / "aerial.tif"), rectangles_on_noise(900, 1000))
    for name in ("traffic", "street"):
        write_h264(folder / f"{name}.mp4", 12)
    for name in ("mine", "dense", "model", "street", "other"):
        if not _writes(text, f"{name}.safetensors"):
            _model(folder / f"{name}.safetensors")
    _foreign(folder, text)
    for run in ("runs/dense", "runs/pruned"):
        if run in text and not _writes(text, run):
            _model(start := folder / "start_of_runs.safetensors")
            train = ["train", "--annotations", annotations, "--images", photos, "--init", start]
            assert main([*map(str, train), "--steps", "2", "--output", str(folder / run)]) == 0


def _writes(text: str, name: str) -> bool:
    return re.search(rf"(?:-o|--output) {re.escape(name)}\s", text) is not None


def _model(path: Path) -> None:
    from helpers.tiny_training import TINY

    config = replace(TINY, bottleneck_channels=(4, 8, 8, 12))  # for blocks of four
    image = cv2.resize(rectangles_on_noise(), (config.input_width, config.input_height))
    tensors = calibrated_random_tensors(config, 0.0, image.astype(np.uint8))
    save_model(path, config, tensors, {}, overwrite=True)


def _foreign(folder: Path, text: str) -> None:
    """Models of other projects: their own small networks, random weights."""
    for name in ("model_final.pth", "SOURCE"):
        shutil.copy(DETECTRON2, folder / name)
    (folder / "config.yaml").write_text(config_yaml({}))
    zoo(folder, state_of(DETECTRON2)).rename(folder / "model_final_298dad.pkl")
    shutil.copy(TENSORPACK, folder / "COCO-MaskRCNN-R101C41x.npz")
    if "published.xml" in text:
        assert main(["export", "r50half-c4", "-o", str(folder / "published.xml")]) == 0
    if "fasterrcnn" in text:
        from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

        from sparsedet.testing.torchvision import save_state

        network = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
        for name in ("fasterrcnn.pth", "fasterrcnn_resnet50_fpn.pth"):
            save_state(network, folder / name)
    if "yolov8s.onnx" in text:
        from torchvision.models import resnet18

        from sparsedet.testing.lively import enlivened, export
        from sparsedet.testing.yolo import YoloShaped

        # COCO's classes: those of the annotations are among them.
        network = enlivened(YoloShaped("v8", classes=80), 2.3)
        export(network, folder / "yolov8s.onnx", (64, 64))
        export(resnet18(weights=None).eval(), folder / "resnet50.onnx", (64, 64))
