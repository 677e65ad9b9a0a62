"""Time of a training step against torchvision's FasterRCNN, and the cost of pruning in it.

    python benchmarks/bench_training.py --json docs/results/bench_training.json

Prints medians and ratios, and writes the JSON file if --json is given.

torchvision's detector has the same backbone and res5 (the same modules with the same weights),
anchors, image size, batch, numbers of proposals and sampled regions, smooth L1, SGD and threads.
Images are noise in memory, with four boxes each; neither side loads or resizes. A step is forward,
backward and optimizer. The steps run in turn: theirs and three of ours, namely dense, pruned (masks
are applied) and pruned with masks recomputed. Pruning adds less time than steps vary by themselves;
so its two operations are also timed alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from sparsedet import preset
from sparsedet.engine.cpus import cpu_name
from sparsedet.evaluation.coco import CocoDataset, CocoImage
from sparsedet.model.config import ModelConfig
from sparsedet.model.graph import Mean, Normalise, RoiAlign
from sparsedet.pruning.allocation import Allocation
from sparsedet.torch_model import FasterRCNN
from sparsedet.training.data import MicroBatch
from sparsedet.training.losses import Target
from sparsedet.training.recipe import Recipe
from sparsedet.training.trainer import Trainer

NEVER = 10**8
"""A step that is never reached."""


class Backbone(nn.Module):
    """Our stem ... res4 as a torchvision backbone; `body` holds the modules."""

    def __init__(self, body: FasterRCNN) -> None:
        super().__init__()
        self.body = body
        self.out_channels = body.config.stage_channels[2]

    def forward(self, network_input: Tensor) -> Tensor:
        # torchvision has normalised it.
        x = network_input.contiguous(memory_format=torch.channels_last)
        normalised = self.body.graph.only(Normalise)[0].name
        features: Tensor = self.body.run({normalised: x}, [self.body.feature_map])[0]
        return features


class Res5(nn.Module):
    """Our res5 and the mean as a torchvision box head."""

    def __init__(self, body: FasterRCNN) -> None:
        super().__init__()
        self.body = [body]  # in a list: the backbone registers these parameters already

    def forward(self, regions: Tensor) -> Tensor:
        body = self.body[0]
        step = body.graph.only(RoiAlign)[1].step  # only these bins are read
        bins = regions[:, :, ::step, ::step]
        mean: Tensor = body.run({body.rois: bins}, [body.graph.only(Mean)[0].name])[0]
        return mean


def lively_model(config: ModelConfig) -> FasterRCNN:
    """A model with random weights whose proposals are as spread out as a trained network's.

    Small residual branches keep the features small, so boxes stay near their anchors. With the
    usual random start few proposals survive NMS, and too few regions are left to sample.
    """
    model = FasterRCNN(config, norm=True)
    for name, layer in model.layers.items():
        if layer.layer.residual and layer.norm is not None:
            nn.init.constant_(layer.norm.weight, 0.1)
        if name == "stem.conv" and layer.norm is not None:
            nn.init.constant_(layer.norm.weight, 1 / max(config.pixel_std) / 50)
    return model


def count_rows(module: nn.Module) -> list[int]:
    """A list that gets the number of input rows at each call of the module."""
    rows: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


def torchvision_peer(config: ModelConfig, recipe: Recipe, height: int, width: int) -> nn.Module:
    """torchvision's detector with our backbone and our settings."""
    body = lively_model(config)
    for name, parameter in body.named_parameters():
        frozen = name.startswith(("stem.", "res2.")) or name.startswith(("rpn.", "box."))
        parameter.requires_grad_(not frozen)
    detector: nn.Module = TorchvisionFasterRCNN(
        Backbone(body),
        min_size=min(height, width),
        max_size=max(height, width),
        image_mean=list(config.pixel_mean),
        image_std=list(config.pixel_std),
        rpn_anchor_generator=AnchorGenerator((config.anchor_sizes,), (config.anchor_ratios,)),
        rpn_pre_nms_top_n_train=recipe.rpn_pre_nms,
        rpn_post_nms_top_n_train=recipe.rpn_post_nms,
        rpn_batch_size_per_image=recipe.rpn_batch,
        box_roi_pool=MultiScaleRoIAlign(["0"], config.roi_size, config.roi_sampling_ratio),
        box_head=Res5(body),
        box_predictor=FastRCNNPredictor(config.stage_channels[3], config.num_classes + 1),
        box_batch_size_per_image=recipe.roi_batch,
        box_positive_fraction=recipe.roi_positive,
    )
    detector.train()
    return detector


def batch_of_noise(images: int, height: int, width: int) -> tuple[Tensor, list[Target]]:
    """Noise: a blob uint8 [B, 3, H, W], and four boxes for each image."""
    rng = np.random.default_rng(0)
    network_input = torch.from_numpy(
        rng.integers(0, 256, (images, 3, height, width), dtype=np.uint8)
    )
    targets = []
    for seed in range(images):
        corner = rng.uniform(0, 0.5, (4, 2)) * (width, height)
        size = rng.uniform(0.1, 0.5, (4, 2)) * (width, height)
        boxes = torch.from_numpy(np.concatenate([corner, corner + size], 1).astype(np.float32))
        targets.append(Target(boxes, torch.tensor([1, 2, 3, 4]), height, width, seed))
    return network_input, targets


def our_step(
    config: ModelConfig, recipe: Recipe, batch: MicroBatch, folder: Path, update: bool = False
) -> tuple[Callable[[], Any], list[int], Trainer]:
    """A training step, the regions that the RoI head saw in each step, and the trainer.

    Args:
        update: recompute the masks in each step.
    """
    annotation = np.zeros((1, 4), np.float32), np.ones(1, np.int64), np.zeros(1, np.bool_)
    image = CocoImage(1, "none", 32, 32, *annotation)  # never read
    dataset = CocoDataset(folder, folder, (image,), config.class_names, config.category_ids)
    trainer = Trainer(lively_model(config), dataset, recipe, folder)
    if trainer.pruner:  # the last step of the schedule: all zeros
        trainer.pruner.update(recipe.prune_end)

    def step() -> None:
        trainer.step = recipe.prune_end if update else 1
        trainer.train_step([batch])

    return step, count_rows(trainer.model.layers["box.logits"]), trainer


def peer_step(
    detector: nn.Module, recipe: Recipe, batch: MicroBatch
) -> tuple[Callable[[], Any], list[int]]:
    """A step of torchvision's detector with SGD, and the regions of the RoI head in each step."""
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=1e-6, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )

    def step() -> None:
        images = [image.float() for image in batch.network_input]
        targets = [{"boxes": t.boxes, "labels": t.labels} for t in batch.targets]
        optimizer.zero_grad(set_to_none=True)
        total = sum(detector(images, targets).values())
        total.backward()
        float(total.detach())
        optimizer.step()

    return step, count_rows(detector.get_submodule("roi_heads.box_predictor"))


def time_alone(trainer: Trainer) -> dict[str, float]:
    """Median seconds of a step's work on gradients, and of recomputing the masks."""
    pruner = trainer.pruner
    assert pruner is not None

    def gradients() -> None:
        pruner.observe()
        pruner.mask_gradients()

    def masks() -> None:
        pruner.update(trainer.recipe.prune_end)

    seconds = {}
    for name, call in (("gradients", gradients), ("masks", masks)):
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        seconds[name] = statistics.median(times)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="r50half-c4", help="a preset")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--regions", type=int, default=128, help="sampled in each image")
    parser.add_argument(
        "--proposals", type=int, default=1000, help="of each image, before sampling"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--allocation", choices=get_args(Allocation), default="uniform")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = preset(arguments.model)
    height, width = arguments.size or (config.input_height, config.input_width)
    dense = Recipe(
        steps=NEVER // 100,
        batch=arguments.batch,
        learning_rate=1e-6,
        decay="constant",
        warmup_steps=0,
        rpn_pre_nms=2 * arguments.proposals,
        rpn_post_nms=arguments.proposals,
        roi_batch=arguments.regions,
        rpn_beta=1 / 9,
        roi_beta=1 / 9,
    )
    pruned = replace(
        dense, sparsity=0.6, prune_end=1000, prune_every=1000, allocation=arguments.allocation
    )
    network_input, targets = batch_of_noise(arguments.batch, height, width)
    batch = MicroBatch(network_input, targets, 1.0, [1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pruned_step, pruned_regions, trainer = our_step(config, pruned, batch, folder)
        steps: dict[str, tuple[Callable[[], Any], list[int]]] = {
            "dense": our_step(config, dense, batch, folder)[:2],
            "torchvision": peer_step(torchvision_peer(config, dense, height, width), dense, batch),
            "pruned": (pruned_step, pruned_regions),
            "pruned, masks recomputed": our_step(config, pruned, batch, folder, update=True)[:2],
        }
        times: dict[str, list[float]] = {key: [] for key in steps}
        for number in range(arguments.rounds + 1):  # the first round does not count
            for key, (step, regions) in steps.items():
                begin = time.perf_counter()
                step()
                if regions[-1] != arguments.batch * arguments.regions:
                    raise SystemExit(f"{key}: {regions[-1]} regions; the work is not the same")
                if number:
                    times[key].append(time.perf_counter() - begin)
        alone = time_alone(trainer)

    def ratio(a: str, b: str) -> float:
        """Median ratio within rounds, in which changes of the machine cancel out."""
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    every = 50  # the recipe's default `prune_every`
    applied = ratio("pruned", "dense") - 1
    recomputed = (ratio("pruned, masks recomputed", "dense") - 1 - applied) / every
    result = {
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "model": config.name,
        "batch": arguments.batch,
        "size": [height, width],
        "regions": arguments.regions,
        "proposals": arguments.proposals,
        "allocation": arguments.allocation,
        "seconds": {key: statistics.median(value) for key, value in times.items()},
        "spread": {key: [min(value), max(value)] for key, value in times.items()},
        "ratio_to_torchvision": ratio("dense", "torchvision"),
        "pruning_overhead": {
            "masks_applied": applied,
            "masks_recomputed_a_step": recomputed,
            "total": applied + recomputed,
        },
        "pruning_alone": {
            "seconds": alone,
            "share_of_a_step": (alone["gradients"] + alone["masks"] / every)
            / statistics.median(times["dense"]),
        },
    }
    for key, value in result["seconds"].items():
        print(f"{key:<26}{1000 * value:9.1f} ms")
    print(f"dense / torchvision: {result['ratio_to_torchvision']:.3f}")
    print(
        f"pruning adds {applied + recomputed:.2%} ({applied:.2%} to apply the masks, "
        f"{recomputed:.2%} to recompute them every {every} steps)"
    )
    print(f"timed alone: {result['pruning_alone']['share_of_a_step']:.2%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
