"""`Gradual` in a plain training loop: a ResNet-18 on crops of objects, to 80 % zeros.

    python benchmarks/bench_gradual.py --annotations TRAIN.json --images FOLDER --work FOLDER

Crops of 64x64 pixels of the 20 commonest classes, as many of each class, split by photograph. The
same loop trains a dense network and one that `Gradual` prunes, from the same random start, for the
same epochs. A third one is the dense network whose smallest weights are removed at once, by
torch.nn.utils.prune. Figures are void (exit code 1) if the dense network is right in less than half
of the crops, or pruning at once costs less than 5 points: then the task shows nothing.

Every epoch is kept in --work, so a run that was stopped continues. Writes
docs/results/bench_gradual.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from lib.records import RESULTS, ROOT, describe, save
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import sparsedet
from sparsedet.pruning import Gradual

CLASSES, SIZE, TEST = 20, 64, 0.2
LEAST_SIDE = 20
"""Shorter sides of boxes that are used, in pixels."""
SPARSITY = 0.8


def crops(annotations: Path, images: Path, each: int) -> dict[str, Tensor]:
    """Crops [N, 3, 64, 64] and labels, for training and test; as many of each class."""
    data = json.loads(annotations.read_text())
    boxes = [a for a in data["annotations"] if not a.get("iscrowd")]
    boxes = [a for a in boxes if min(a["bbox"][2:]) >= LEAST_SIDE]
    common = [c for c, _ in Counter(a["category_id"] for a in boxes).most_common(CLASSES)]
    chance = random.Random(0)
    chance.shuffle(boxes)
    files = {i["id"]: i["file_name"] for i in data["images"]}
    is_test = {i: random.Random(i).random() < TEST for i in files}
    counts: Counter[tuple[int, bool]] = Counter()
    wanted: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for box in boxes:
        key = box["category_id"], is_test[box["image_id"]]
        limit = round(each * TEST) if key[1] else each
        if key[0] in common and counts[key] < limit:
            counts[key] += 1
            wanted[box["image_id"]].append(box)
    parts: dict[str, list[Any]] = {k: [] for k in ("train", "train_labels", "test", "test_labels")}
    for image_id, found in sorted(wanted.items()):
        picture = sparsedet.read_image(images / files[image_id])
        part = "test" if is_test[image_id] else "train"
        for box in found:
            x, y, w, h = box["bbox"]
            top, left = max(0, int(y)), max(0, int(x))
            crop = picture[top : int(y + h) + 1, left : int(x + w) + 1]
            parts[part].append(cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
            parts[f"{part}_labels"].append(common.index(box["category_id"]))
    made = {}
    for name in ("train", "test"):
        pixels = torch.from_numpy(np.stack(parts[name])).permute(0, 3, 1, 2)
        made[name] = (pixels.float() - 118) / 60
        made[f"{name}_labels"] = torch.tensor(parts[f"{name}_labels"])
    return made


def accuracy(model: Any, data: dict[str, Any]) -> float:
    """Share of the test crops whose likeliest class is right."""
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(x).argmax(1) for x in data["test"].split(256)])
    model.train()
    return float((found == data["test_labels"]).float().mean())


# User code begins.
def train(data: dict[str, Any], epochs: int, sparsity: float, state: Path) -> Any:
    """Train a ResNet-18; with a sparsity it is pruned on the way."""
    torch.manual_seed(0)
    model: Any = torchvision.models.resnet18(num_classes=CLASSES)
    images, labels = data["train"], data["train_labels"]
    steps = len(images) // 64 * epochs
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    pruner = Gradual(model, sparsity=sparsity, steps=steps) if sparsity else None
    parts = [model, optimizer, schedule, *([pruner] if pruner else [])]
    done = 0
    if state.exists():
        saved = torch.load(state)
        done = saved.pop()
        for part, values in zip(parts, saved, strict=True):
            part.load_state_dict(values)
    for epoch in range(done, epochs):
        chance = torch.Generator().manual_seed(epoch)
        order: Any = torch.randperm(len(images), generator=chance)
        for chosen in order.split(64)[: len(images) // 64]:
            x = images[chosen].flip(3) if chosen[0] % 2 else images[chosen]
            x = torch.roll(x, tuple(map(int, chosen[:2] % 9 - 4)), (2, 3))
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(model(x), labels[chosen], label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            if pruner:
                pruner.step(optimizer)
            schedule.step()
        torch.save([*(part.state_dict() for part in parts), epoch + 1], state)
        print(f"{state.stem}: epoch {epoch + 1}, {100 * accuracy(model, data):.1f} %", flush=True)
    return model


# User code ends.


def zeros(model: nn.Module) -> float:
    """Zeros among all parameters."""
    values = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    dead = sum(int((value == 0).sum()) for value in values)
    return dead / sum(p.numel() for p in model.parameters())


def at_once(model: nn.Module) -> nn.Module:
    """The same network without its smallest weights, 80 % of all."""
    pruned = copy.deepcopy(model)
    layers = [m for m in pruned.modules() if isinstance(m, nn.Conv2d)][1:]
    share = SPARSITY * sum(p.numel() for p in pruned.parameters())
    share /= sum(layer.weight.numel() for layer in layers)
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in layers], torch_prune.L1Unstructured, amount=share
    )
    return pruned


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--each", type=int, default=400, help="training crops of a class, at most")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench_gradual")
    parser.add_argument("--json", type=Path, default=RESULTS / "bench_gradual.json")
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = crops(arguments.annotations, arguments.images, arguments.each)
    print(f"{len(data['train'])} crops to train on, {len(data['test'])} to test", flush=True)
    dense = train(data, arguments.epochs, 0.0, arguments.work / "dense.pt")
    sparse = train(data, arguments.epochs, SPARSITY, arguments.work / "gradual.pt")
    networks = {"dense": dense, "magnitude at once": at_once(dense), "gradual": sparse}
    result: dict[str, Any] = {
        "machine": {**describe("", torch.get_num_threads()), "command": "bench_gradual.py ..."},
        "crops": {name: len(data[name]) for name in ("train", "test")},
        "epochs": arguments.epochs,
        "accuracy": {name: accuracy(model, data) for name, model in networks.items()},
        "zeros": {name: zeros(model) for name, model in networks.items()},
    }
    print(json.dumps({key: result[key] for key in ("accuracy", "zeros")}, indent=1))
    points = result["accuracy"]
    void = points["dense"] < 0.5 or points["dense"] - points["magnitude at once"] < 0.05
    if void:
        print("void: the task shows nothing")
        return 1
    save(arguments.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
