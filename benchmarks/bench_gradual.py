"""`Gradual` in a plain training loop: a ResNet-18 on crops of objects, to 80 % zeros.

    python benchmarks/bench_gradual.py --annotations TRAIN.json --images FOLDER --work FOLDER

Crops of 64x64 pixels of the 20 commonest classes, split by photograph. Each epoch draws as many of
each class, at random; accuracy is the mean of the classes' own. A network is trained from random
weights, the first part of it on smaller crops, which cost half. The same loop then trains it
further twice, for the same epochs: once as it is (dense), once pruned by `Gradual`. A third network
is the dense one whose smallest weights are removed at once, by torch.nn.utils.prune. Figures are
void (exit code 1) if the dense network is right in less than half of the crops, or pruning at once
costs less than 5 points: then the task shows nothing.

Every epoch is kept in --work, so a run that was stopped continues. Writes
docs/results/bench_gradual.json; --document FILE has the table, between its mark and the next end
mark.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from lib.documents import insert
from lib.records import RESULTS, ROOT, describe, save
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

import sparsedet
from sparsedet.pruning import Gradual

CLASSES, SIZE, TEST = 20, 64, 0.2
SMALL = 48
"""Side of crops in the first part of the training, in pixels."""
BATCH, EPOCH = 64, 72
"""Crops of a step; steps of an epoch."""
LEAST_SCALE = 0.6
"""Smallest part of a crop that training sees, of its sides."""
LEAST_SIDE = 20
"""Shorter sides of boxes that are used, in pixels."""
SPARSITY = 0.8
RESAMPLES = 2000
MARK = "<!-- gradual table: benchmarks/bench_gradual.py -->"


@dataclass(frozen=True)
class TrainingPlan:
    """How long a network is trained, its highest learning rate, its zeros, and the part of the
    epochs that see small crops."""

    epochs: int
    rate: float
    sparsity: float = 0.0
    small: float = 0.0

    def size(self, epoch: int) -> int:
        """Side of the crops of an epoch, in pixels."""
        return SMALL if epoch < self.small * self.epochs else SIZE


def crops(annotations: Path, images: Path, each: int) -> dict[str, Tensor]:
    """Crops [N, 3, 64, 64] and labels, for training and test; at most `each` of a class."""
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


def balanced(labels: Tensor, chance: torch.Generator) -> Tensor:
    """An epoch: numbers of crops, as many of each class, at random with repetition."""
    weights = 1 / labels.bincount().float()
    return torch.multinomial(weights[labels], EPOCH * BATCH, replacement=True, generator=chance)


def changed(crops: Tensor, chance: torch.Generator, size: int) -> Tensor:
    """Crops enlarged, shifted, mirrored and lit at random, each its own way; in another size."""
    scale, mirror, x, y, contrast, light = torch.rand(6, len(crops), generator=chance)
    scale = LEAST_SCALE + (1 - LEAST_SCALE) * scale
    grid = torch.zeros(len(crops), 2, 3)
    grid[:, 0, 0], grid[:, 1, 1] = scale * (mirror - 0.5).sign(), scale
    grid[:, :, 2] = (2 * torch.stack([x, y], 1) - 1) * (1 - scale)[:, None]
    places = functional.affine_grid(grid, [len(crops), 3, size, size], align_corners=False)
    moved: Tensor = functional.grid_sample(crops, places, align_corners=False)
    contrast, light = contrast[:, None, None, None], light[:, None, None, None]
    lit: Tensor = moved * (0.7 + 0.6 * contrast) + light - 0.5
    return lit


def right(model: Any, data: dict[str, Any]) -> Tensor:
    """Which test crops have the right class as their likeliest, [N].

    Scores are the mean of a crop's and of its mirror image's.
    """
    model.eval()
    with torch.no_grad():
        found = [(model(x) + model(x.flip(3))).argmax(1) for x in data["test"].split(256)]
    model.train()
    labels: Tensor = data["test_labels"]
    return torch.cat(found) == labels


def accuracy(found: Tensor, data: dict[str, Any]) -> float:
    """Mean over classes of the share of their crops that are right."""
    labels = data["test_labels"]
    return float((labels.bincount(found.float()) / labels.bincount()).mean())


def keep(state: list[Any], path: Path) -> None:
    """Replace the state of a training; a killed process leaves the old one."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


# User code begins.
def train(data: dict[str, Any], plan: TrainingPlan, state: Path, start: Any = None) -> Any:
    """Train a ResNet-18, from another one where there is a start; with a sparsity it is pruned."""
    torch.manual_seed(0)
    model: Any = copy.deepcopy(start) or torchvision.models.resnet18(num_classes=CLASSES)
    steps = plan.epochs * EPOCH
    optimizer = torch.optim.SGD(model.parameters(), plan.rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, steps, pct_start=0.2)
    pruner = Gradual(model, sparsity=plan.sparsity, steps=steps) if plan.sparsity else None
    parts = [model, optimizer, schedule, *([pruner] if pruner else [])]
    done = 0
    if state.exists():
        saved = torch.load(state)
        done = saved.pop()
        for part, values in zip(parts, saved, strict=True):
            part.load_state_dict(values)
    for epoch in range(done, plan.epochs):
        chance = torch.Generator().manual_seed(epoch)
        order: Any = balanced(data["train_labels"], chance)
        for chosen in order.split(BATCH):
            crops = changed(data["train"][chosen], chance, plan.size(epoch))
            optimizer.zero_grad()
            labels = data["train_labels"][chosen]
            loss: Any = functional.cross_entropy(model(crops), labels, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            if pruner:
                pruner.step(optimizer)
            schedule.step()
        keep([*(part.state_dict() for part in parts), epoch + 1], state)
        print(f"{state.stem}: epoch {epoch + 1}, last loss {float(loss.detach()):.3f}", flush=True)
    return model


# User code ends.


def interval(found: Tensor, base: Tensor, data: dict[str, Any]) -> tuple[float, float]:
    """95 % interval of the difference in accuracy, paired bootstrap over each class's crops."""
    chance = torch.Generator().manual_seed(0)
    change, labels = found.float() - base.float(), data["test_labels"]
    sums = torch.zeros(RESAMPLES)
    for label in range(CLASSES):
        own = change[labels == label]
        sums += own[torch.randint(len(own), (RESAMPLES, len(own)), generator=chance)].mean(1)
    low, high = (sums / CLASSES).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def user_lines() -> int:
    """Lines between the two marks of this file that are not empty."""
    lines = Path(__file__).read_text().splitlines()
    first, last = lines.index("# User code begins."), lines.index("# User code ends.")
    return sum(bool(line.strip()) for line in lines[first + 1 : last])


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


def table(result: dict[str, Any]) -> str:
    """The Markdown table, and the conditions."""
    lines = ["| Network | Zeros of all parameters | Top-1 | To dense |", "|---|---|---|---|"]
    points = {name: 100 * value for name, value in result["accuracy"].items()}
    for name, value in points.items():
        change = "" if name == "dense" else f"{value - points['dense']:+.1f} points"
        if name == "gradual":
            low, high = (100 * end for end in result["interval_to_dense"])
            change += f" ({low:+.1f} .. {high:+.1f})"
        lines.append(f"| {name} | {100 * result['zeros'][name]:.1f} % | {value:.1f} % | {change} |")
    first, further = result["epochs"]
    lines += [
        "",
        f"ResNet-18 on crops of the {CLASSES} commonest classes ({result['crops']['train']} to "
        f"train on, {result['crops']['test']} of other photographs to test; classes count alike): "
        f"{first} epochs from random weights, then {further} more, dense or pruned. "
        f"{result['lines_of_user_code']} lines of user code. In brackets: 95 % interval of the "
        f"paired bootstrap over crops ({RESAMPLES} resamples).",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--each", type=int, default=800, help="training crops of a class, at most")
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=[32, 8], help="of the start, and further ones"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench_gradual")
    parser.add_argument("--json", type=Path, default=RESULTS / "bench_gradual.json")
    parser.add_argument("--document", type=Path, help="document with the mark of this table")
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = crops(arguments.annotations, arguments.images, arguments.each)
    print(f"{len(data['train'])} crops to train on, {len(data['test'])} to test", flush=True)
    first, further = arguments.epochs
    kind = f"{arguments.each}-{first}"
    start = train(data, TrainingPlan(first, 0.05, small=0.6), arguments.work / f"start-{kind}.pt")
    kind += f"-{further}"
    pruned = TrainingPlan(further, 0.02, SPARSITY)
    sparse = train(data, pruned, arguments.work / f"gradual-{kind}.pt", start)
    dense = train(data, TrainingPlan(further, 0.02), arguments.work / f"dense-{kind}.pt", start)
    networks = {"dense": dense, "magnitude at once": at_once(dense), "gradual": sparse}
    found = {name: right(model, data) for name, model in networks.items()}
    result: dict[str, Any] = {
        "machine": {**describe("", torch.get_num_threads()), "command": "bench_gradual.py ..."},
        "crops": {name: len(data[name]) for name in ("train", "test")},
        "epochs": arguments.epochs,
        "accuracy": {name: accuracy(value, data) for name, value in found.items()},
        "interval_to_dense": interval(found["gradual"], found["dense"], data),
        "zeros": {name: zeros(model) for name, model in networks.items()},
        "lines_of_user_code": user_lines(),
    }
    print(table(result))
    points = result["accuracy"]
    void = points["dense"] < 0.5 or points["dense"] - points["magnitude at once"] < 0.05
    if void:
        print("void: the task shows nothing")
        return 1
    save(arguments.json, result)
    if arguments.document:
        insert(arguments.document, MARK, table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
