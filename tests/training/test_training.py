"""Training: matching, sampling and losses against torchvision; the loop's promises.

The loop promises that a run is repeatable to the last bit, also over a stop and a resume, that
it never loses or spoils a checkpoint, and that what it saves runs in the detector.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.tiny_training import FAST, NAMES, TINY, make_data, trainer  # noqa: E402
from torchvision.models.detection import _utils as tv_utils  # noqa: E402
from torchvision.models.detection.roi_heads import fastrcnn_loss  # noqa: E402
from torchvision.models.detection.rpn import RegionProposalNetwork  # noqa: E402
from torchvision.ops import box_iou  # noqa: E402

from sparsedet import Detector, InputError, load_model, preset, read_image  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset  # noqa: E402
from sparsedet.importers.open_nsfw import load_open_nsfw  # noqa: E402
from sparsedet.model.c4 import build_graph  # noqa: E402
from sparsedet.model.checkpoint import checkpoints  # noqa: E402
from sparsedet.model.config import ModelConfig  # noqa: E402
from sparsedet.model.detector_config import require_c4  # noqa: E402
from sparsedet.model.graph import MaxPool, RoiAlign  # noqa: E402
from sparsedet.model.sparsity import sparsity_report  # noqa: E402
from sparsedet.torch_model import FasterRCNN, decode, encode  # noqa: E402
from sparsedet.torch_model.checkpoint import newest_checkpoint, read_checkpoint  # noqa: E402
from sparsedet.training import start  # noqa: E402
from sparsedet.training import trainer as training_loop  # noqa: E402
from sparsedet.training.data import (  # noqa: E402
    MicroBatch,
    MicroBatches,
    epoch_batches,
    load_micro_batch,
    load_sample,
)
from sparsedet.training.losses import (  # noqa: E402
    Target,
    losses,
    match,
    roi_losses,
    rpn_losses,
    sample,
    sample_rois,
)
from sparsedet.training.recipe import HELP, Recipe  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]


def whole(network_input: Any, targets: list[Target]) -> list[MicroBatch]:
    """A step's batch in one micro-batch."""
    return [MicroBatch(network_input, targets, 1.0, [])]


def weights(run: training_loop.Trainer) -> dict[str, Any]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def random_boxes(count: int, seed: int, size: float = 96.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.7
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) * size / 3], 1)


def target(count: int, seed: int, height: int = 64, width: int = 96) -> Target:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 4, (count,), generator=generator)
    return Target(random_boxes(count, seed), labels, height, width, seed)


# ------------------------------------------------------------------------ matching, sampling


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize(("positive", "negative"), [(0.7, 0.3), (0.5, 0.5)])
def test_matching_follows_its_definition(
    positive: float, negative: float, low_quality: bool
) -> None:
    from sparsedet.model.boxes import iou

    boxes, targets = random_boxes(300, 1), random_boxes(6, 2)
    boxes[:3] = targets[:3]
    index, matched_label = match(boxes, targets, positive, negative, low_quality)
    overlap = iou(boxes.numpy(), targets.numpy())  # [N, G]
    best_box = overlap.max(axis=0)
    for n in range(len(boxes)):
        best = overlap[n].max()
        assert overlap[n, index[n]] == pytest.approx(best, abs=1e-6)
        rescued = low_quality and (np.abs(overlap[n] - best_box) < 1e-7).any()
        if min(abs(best - positive), abs(best - negative)) < 1e-5:
            continue
        expected = 1 if best >= positive or rescued else 0 if best < negative else -1
        assert matched_label[n] == expected
    assert (matched_label[:3] == 1).all()
    if low_quality:  # every target that overlaps a box has a positive one
        for g in range(len(targets)):
            assert matched_label[int(overlap[:, g].argmax())] == 1


def test_ties_are_all_positive_and_a_target_without_overlap_makes_none() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [50, 50, 60, 60]])
    targets = torch.tensor([[5.0, 0, 15, 10], [500, 500, 510, 510]])
    _, matched_label = match(boxes, targets, 0.7, 0.3, low_quality=True)
    assert matched_label.tolist() == [1, 1, 0]
    index, matched_label = match(boxes, targets[:0], 0.7, 0.3, low_quality=True)
    assert matched_label.tolist() == [0, 0, 0] and index.tolist() == [0, 0, 0]


def test_matching_equals_torchvision() -> None:
    for seed in range(5):
        boxes, targets = random_boxes(400, seed), random_boxes(5, 50 + seed)
        matcher = tv_utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
        theirs = matcher(box_iou(targets, boxes))
        index, label = match(boxes, targets, 0.7, 0.3, low_quality=True)
        assert torch.equal(label, torch.where(theirs >= 0, 1, torch.where(theirs == -1, 0, -1)))
        assert torch.equal(index[label == 1], theirs[theirs >= 0])


@pytest.mark.parametrize(
    ("positives", "negatives", "count", "positive_fraction", "expected"),
    [
        (100, 1000, 64, 0.5, (32, 32)),
        (3, 1000, 64, 0.5, (3, 61)),
        (100, 5, 64, 0.25, (16, 5)),
        (0, 1000, 64, 0.5, (0, 64)),
        (0, 0, 64, 0.5, (0, 0)),
        (10, 10, 1, 0.5, (0, 1)),
    ],
)
def test_sampling(
    positives: int, negatives: int, count: int, positive_fraction: float, expected: tuple[int, int]
) -> None:
    labels = torch.cat([torch.ones(positives), torch.zeros(negatives), -torch.ones(50)]).long()
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    drawn = sample(labels, count, positive_fraction, seed=5)
    assert (len(drawn[0]), len(drawn[1])) == expected
    for indices, label in zip(drawn, (1, 0), strict=True):
        assert len(set(indices.tolist())) == len(indices)
        assert (labels[indices] == label).all()
    again, other = (sample(labels, count, positive_fraction, seed) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    if negatives == 1000:
        assert not torch.equal(drawn[1], other[1])


def test_sampling_is_fair() -> None:
    labels = torch.cat([torch.ones(8), torch.zeros(40)]).long()
    counts = torch.zeros(48)
    for seed in range(600):
        for indices in sample(labels, 8, 0.5, seed):
            counts[indices] += 1
    assert (counts[:8] / 600 - 0.5).abs().max() < 0.1  # 4 of 8
    assert (counts[8:] / 600 - 0.1).abs().max() < 0.06  # 4 of 40


def test_rois_include_the_ground_truth_and_their_deltas_lead_there() -> None:
    aim = target(4, 3)
    recipe = replace(FAST, roi_batch=64)
    proposals = torch.cat([random_boxes(200, 8), torch.tensor([[9.0, 9, 9, 30], [5, 5, 2, 2]])])
    boxes, labels, deltas = sample_rois(recipe, proposals, aim, TINY.box_weights)
    positive = int((labels > 0).sum())
    assert len(boxes) == len(labels) == 64 and 4 <= positive == len(deltas) <= 16
    assert (labels[:positive] > 0).all() and (labels[positive:] == 0).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()  # the empty proposals are gone
    reached = decode(deltas, boxes[:positive], TINY.box_weights, 10.0)
    overlap = box_iou(boxes, aim.boxes)
    for n in range(positive):
        g = int(overlap[n].argmax())
        assert overlap[n, g] >= 0.5 and labels[n] == aim.labels[g]
        assert torch.allclose(reached[n], aim.boxes[g], atol=1e-3)
    assert (overlap[positive:] < 0.5).all()
    # Without any proposal the head learns from the ground truth alone.
    boxes, labels, _ = sample_rois(recipe, proposals[:0], aim, TINY.box_weights)
    assert len(boxes) == 4 and sorted(labels.tolist()) == sorted(aim.labels.tolist())


# ------------------------------------------------------------------------ losses


@pytest.mark.parametrize("box_weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_box_coding_equals_torchvision(box_weights: tuple[float, float, float, float]) -> None:
    coder = tv_utils.BoxCoder(box_weights, bbox_xform_clip=math.log(1000 / 16))
    boxes, aims = random_boxes(50, 1), random_boxes(50, 2)
    ours = encode(boxes, aims, box_weights)
    assert torch.allclose(ours, coder.encode_single(aims, boxes), atol=1e-5)
    deltas = ours + 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    decoded = decode(deltas, boxes, box_weights, math.log(1000 / 16))
    assert torch.allclose(decoded, coder.decode_single(deltas, boxes), atol=1e-2)


def torchvision_rpn(per_image: int) -> RegionProposalNetwork:
    top = {"training": 1, "testing": 1}
    return RegionProposalNetwork(None, None, 0.7, 0.3, per_image, 0.5, top, top, 0.7)


@pytest.mark.parametrize("per_image", [32, 4000])
def test_rpn_losses_equal_torchvision(per_image: int) -> None:
    """torchvision divides by the anchors that it drew, Detectron2, TensorPack and we by those
    asked for: the two differ where an image has too few (4000 of 576 here). torchvision's box
    loss is smooth L1 with transition 1/9, our `rpn_beta`.
    """
    model = FasterRCNN(TINY)
    anchors = model.anchors(torch.zeros(1, 1, 8, 24))  # 576
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, len(anchors), generator=generator)
    deltas = torch.randn(2, len(anchors), 4, generator=generator)
    targets = [target(3, 1), target(5, 2)]
    recipe = replace(FAST, rpn_batch=per_image, rpn_beta=1 / 9)
    ours = rpn_losses(model, recipe, logits, deltas, anchors, targets)

    rpn = torchvision_rpn(per_image)
    theirs = [{"boxes": aim.boxes} for aim in targets]
    labels, matched = rpn.assign_targets_to_anchors([anchors] * 2, theirs)
    regression = list(rpn.box_coder.encode(matched, [anchors] * 2))

    def same_draw(labels: list[Any]) -> tuple[list[Any], list[Any]]:
        masks: tuple[list[Any], list[Any]] = ([], [])
        for label, aim in zip(labels, targets, strict=True):
            drawn = sample(label.long(), per_image, 0.5, aim.seed)
            for mask, indices in zip(masks, drawn, strict=True):
                mask.append(torch.zeros(len(label), dtype=torch.bool).index_fill_(0, indices, True))
        return masks

    rpn.fg_bg_sampler = same_draw
    drawn = sum(int(mask.sum()) for masks in same_draw(labels) for mask in masks)
    assert (drawn == 2 * per_image) == (per_image == 32)
    objectness, box = rpn.compute_loss(logits, deltas.reshape(-1, 4), labels, regression)
    scale = drawn / (2 * per_image)
    assert float(ours[0]) == pytest.approx(objectness.item() * scale, rel=1e-5)
    assert float(ours[1]) == pytest.approx(box.item() * scale, rel=1e-5)
    assert float(ours[1]) > 0


def test_anchors_reaching_outside_are_left_out_on_request() -> None:
    model = FasterRCNN(TINY)
    anchors = model.anchors(torch.zeros(1, 1, 4, 6))
    aim = target(3, 1)
    inside = (anchors >= 0).all(1) & (anchors[:, 2] <= 96) & (anchors[:, 3] <= 64)
    assert 0 < inside.sum() < len(anchors)
    recipe = replace(FAST, rpn_anchors_inside=True, rpn_batch=2000)
    logits = torch.zeros(1, len(anchors), requires_grad=True)
    deltas = torch.zeros(1, len(anchors), 4)
    objectness, _ = rpn_losses(model, recipe, logits, deltas, anchors, [aim])
    torch.autograd.backward(objectness)
    assert logits.grad is not None and (logits.grad[0][~inside] == 0).all()
    assert (logits.grad[0][inside] != 0).any()


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize("background_deltas", [True, False])
@pytest.mark.parametrize("beta", [1 / 9, 0.0])
def test_roi_losses_equal_torchvision(
    background: Literal["first", "last"], background_deltas: bool, beta: float
) -> None:
    """torchvision has background first and deltas for it: columns are moved to compare."""
    config = replace(TINY, background=background, background_deltas=background_deltas)
    model = FasterRCNN(config)
    generator = torch.Generator().manual_seed(5)
    labels = [torch.tensor([2, 1, 3, 0]), torch.tensor([3, 0, 0, 0])]
    targets = [torch.randn(3, 4, generator=generator), torch.randn(1, 4, generator=generator)]
    logits = torch.randn(8, 4, generator=generator)
    deltas = torch.randn(8, 4, 4, generator=generator)  # torchvision's columns: 0 is background
    rows = torch.zeros(8, 4)
    rows[torch.cat(labels) > 0] = torch.cat(targets)
    theirs = fastrcnn_loss(logits, deltas.flatten(1), [torch.cat(labels)], [rows])

    order = [0, 1, 2, 3] if background == "first" else [1, 2, 3, 0]
    own_deltas = deltas[:, order if background_deltas else [1, 2, 3]]
    recipe = replace(FAST, roi_beta=beta)
    ours = roi_losses(model, recipe, logits[:, order], own_deltas, labels, targets)
    assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-6)
    if beta:
        assert float(ours[1]) == pytest.approx(float(theirs[1]), rel=1e-6)
    else:  # plain L1, Detectron2's and TensorPack's choice: by hand
        difference = (deltas[torch.arange(8), torch.cat(labels)] - rows)[torch.cat(labels) > 0]
        assert float(ours[1]) == pytest.approx(float(difference.abs().sum()) / 8, rel=1e-6)


def test_background_columns_agree_with_detection() -> None:
    """What the loss pushes up is what `detect` reports: each label, in each class order."""
    for background in ("first", "last"):
        for background_deltas in (True, False):
            config = replace(TINY, background=background, background_deltas=background_deltas)
            model = FasterRCNN(config)
            for label in (1, 2, 3):
                logits = torch.zeros(1, 4, requires_grad=True)
                deltas = torch.zeros(1, 3 + background_deltas, 4, requires_grad=True)
                targets = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
                both = roi_losses(model, FAST, logits, deltas, [torch.tensor([label])], [targets])
                torch.stack(both).sum().backward()
                assert logits.grad is not None and deltas.grad is not None
                box = torch.tensor([[30.0, 20.0, 50.0, 40.0]])
                detected = model.detect(-20 * logits.grad, -20 * deltas.grad, box, 64, 96)
                assert detected[2].tolist() == [label]
                # dx of 20 at box weight 10 moves the box by two of its widths.
                assert detected[0][0, 0] == pytest.approx(70.0)


# ------------------------------------------------------------------------ data


def test_epochs_visit_every_image_once(dataset: CocoDataset) -> None:
    for epoch in range(3):
        batches = epoch_batches(dataset, FAST, epoch)
        assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3]
        assert all(len(batch) == 2 for batch in batches)
        assert batches == epoch_batches(dataset, FAST, epoch)
    orders = {str(epoch_batches(dataset, FAST, epoch)) for epoch in range(20)}
    assert len(orders) > 5
    assert orders != {str(epoch_batches(dataset, replace(FAST, seed=1), e)) for e in range(20)}
    large = epoch_batches(dataset, replace(FAST, batch=100), 0)  # no full batch: all that there are
    assert [sorted(batch) for batch in large] == [[0, 1, 2, 3]]


def test_a_sample_is_flipped_and_scaled_with_its_boxes(dataset: CocoDataset) -> None:
    image = dataset.images[1]
    colours = {1: (30, 30, 230), 2: (30, 230, 30), 3: (230, 30, 30)}
    sizes, corners = set(), set()
    for epoch in range(12):
        pixels, aim = load_sample(dataset, image, TINY, FAST, epoch)
        assert pixels.shape == (aim.height, aim.width, 3) and pixels.dtype == np.uint8
        assert 0.8 * 96 - 1 <= aim.width <= 96
        sizes.add(aim.width)
        corners.add(float(aim.boxes[0, 0] / aim.width))
        for box, label in zip(aim.boxes.tolist(), aim.labels.tolist(), strict=True):
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            assert np.abs(pixels[int(y), int(x)].astype(int) - colours[label]).max() <= 2
            if box[0] > 2:  # just outside on the left there is ground
                ground = pixels[int(y), int(box[0] - 2)].astype(int)
                assert np.abs(ground - colours[label]).max() > 20
    assert len(sizes) > 3 and max(corners) - min(corners) > 0.1
    a, b = (load_sample(dataset, image, TINY, FAST, 4) for _ in range(2))
    assert np.array_equal(a[0], b[0]) and torch.equal(a[1].boxes, b[1].boxes)
    assert a[1].seed == b[1].seed


def test_a_batch_has_raw_zeros_around(dataset: CocoDataset) -> None:
    network_input, aims = load_micro_batch(dataset, [0, 1], TINY, FAST, 0)
    assert network_input.dtype == torch.uint8 and network_input.shape[:2] == (2, 3)
    assert all(length % 16 == 0 for length in network_input.shape[2:])
    for image, aim in zip(network_input, aims, strict=True):
        assert image[:, aim.height :].sum() == 0 and image[:, :, aim.width :].sum() == 0
        assert image[:, : aim.height, : aim.width].float().mean() > 50


def test_batches_start_anywhere(dataset: CocoDataset) -> None:
    def first(start: int, count: int) -> list[Any]:
        stream = iter(MicroBatches(dataset, TINY, FAST, start))
        return [next(stream) for _ in range(count)]

    for late, early in zip(first(3, 3), first(0, 6)[3:], strict=True):
        assert (
            torch.equal(late.network_input, early.network_input)
            and late.image_ids == early.image_ids
        )


# ------------------------------------------------------------------------ steps


def test_a_tiny_model_learns_four_images(dataset: CocoDataset, tmp_path: Path) -> None:
    recipe = replace(
        FAST,
        steps=100,
        batch=4,
        optimizer="adamw",
        learning_rate=3e-3,
        flip=0.0,
        scale_low=1.0,
        clip_gradient=5.0,
        decay="cosine",
    )
    run = trainer(dataset, recipe, tmp_path / "run")
    network_input, aims = load_micro_batch(dataset, [0, 1, 2, 3], TINY, recipe, 0)
    history = [run.train_step(whole(network_input, aims)) for _ in range(recipe.steps)]
    sums = [sum(values.values()) for values in history]
    assert np.mean(sums[28:33]) < 0.6 * np.mean(sums[:5])
    assert np.mean(sums[-5:]) < 0.2 * np.mean(sums[:5])
    for name in ("rpn_objectness", "rpn_box", "roi_class"):
        assert history[-1][name] < 0.3 * history[0][name], name
    # The RoIs' box loss grows at first: better proposals make more positives.
    assert history[-1]["roi_box"] < 0.4 * max(values["roi_box"] for values in history)
    # And it detects them: every box, with its class.
    rows = run.model(network_input)
    true_positives = 0
    for of_image, aim in zip(rows, aims, strict=True):
        boxes = of_image[:, 3:] * torch.tensor([96.0, 64, 96, 64])
        overlap = box_iou(aim.boxes, boxes)
        same_class = of_image[:, 1] == aim.labels[:, None]
        matched = same_class & (of_image[:, 2] > 0.5) & (overlap > 0.5)
        true_positives += int(matched.any(dim=1).sum())
    assert true_positives >= sum(len(aim.boxes) for aim in aims) - 1


@pytest.mark.parametrize("norm", [True, False])
def test_two_sgd_steps_equal_hand_written_ones(
    dataset: CocoDataset, tmp_path: Path, norm: bool
) -> None:
    recipe = replace(
        FAST, warmup_steps=0, weight_decay=0.01, momentum=0.9, learning_rate=0.02, backbone_rate=0.5
    )
    run = trainer(dataset, recipe, tmp_path / "run", norm)
    hand = copy.deepcopy(run.model)
    speed = {name: torch.zeros_like(p) for name, p in hand.named_parameters()}
    for step in range(2):
        network_input, aims = load_micro_batch(dataset, [0, 1], TINY, recipe, step)
        values = run.train_step(whole(network_input, aims))
        by_hand = losses(hand, recipe, network_input, aims)
        assert values == pytest.approx({k: v.item() for k, v in by_hand.items()}, rel=1e-5)
        gradients = torch.autograd.grad(sum(by_hand.values()), list(hand.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(hand.named_parameters(), gradients, strict=True):
                decay = 0.01 if name.endswith("weight") and ".norm." not in name else 0.0
                speed[name] = 0.9 * speed[name] + gradient + decay * p
                rate = 0.01 if name.startswith(("stem", "res")) else 0.02
                p.sub_(rate * speed[name])
    for name, value in hand.state_dict().items():
        assert torch.allclose(run.model.state_dict()[name], value, rtol=0, atol=1e-6), name


def test_frozen_stages_stay(dataset: CocoDataset, tmp_path: Path) -> None:
    for freeze_at, frozen in (
        (0, ()),
        (1, ("stem.",)),
        (2, ("stem.", "res2.")),
        (3, ("stem.", "res2.", "res3.")),
    ):
        run = trainer(dataset, replace(FAST, freeze_at=freeze_at), tmp_path / str(freeze_at))
        before = weights(run)
        run.train_step(whole(*load_micro_batch(dataset, [0, 1], TINY, FAST, 0)))
        for name, value in weights(run).items():
            moved = not torch.equal(value, before[name])
            statistic = ".running_" in name
            assert moved == (not statistic and not name.startswith(frozen or ("-",))), name


def test_learning_rate() -> None:
    recipe = replace(
        FAST, steps=100, learning_rate=0.1, warmup_steps=4, decay="step", milestones=(50, 80)
    )
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert set(np.round(rates[4:50], 9)) == {0.1}
    assert set(np.round(rates[50:80], 9)) == {0.01} and set(np.round(rates[80:], 9)) == {0.001}
    cosine = replace(recipe, decay="cosine", milestones=(), warmup_steps=0)
    assert cosine.rate(0) == 0.1 and cosine.rate(50) == pytest.approx(0.05)
    assert 0 < cosine.rate(99) < 1e-4


# ------------------------------------------------------------------------ repeat, stop, resume


PRUNING = replace(FAST, sparsity=0.5, prune_begin=1, prune_end=5, prune_every=2)


@pytest.mark.parametrize(
    "recipe",
    [FAST, PRUNING, replace(PRUNING, optimizer="adamw", learning_rate=1e-3)],
    ids=["sgd", "pruned", "pruned adamw"],
)
def test_runs_repeat_and_resume_to_the_last_bit(
    dataset: CocoDataset, tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trainer(dataset, recipe, tmp_path / "whole")
    assert whole.run()
    again = trainer(dataset, recipe, tmp_path / "again")
    again.run()
    assert same(weights(whole), weights(again))
    assert not same(weights(whole), weights(trainer(dataset, recipe, tmp_path / "new")))

    stopped = trainer(dataset, recipe, tmp_path / "stopped")
    stop_after(stopped, 4, signal.SIGTERM)  # between two updates of the masks
    assert not stopped.run() and stopped.step == 4
    rest = trainer(dataset, recipe, tmp_path / "stopped")
    rest.resume(newest_checkpoint(tmp_path / "stopped"))
    assert rest.step == 4 and same(weights(rest), weights(stopped))
    if rest.pruner and stopped.pruner:
        assert (
            same(rest.pruner.keep_masks, stopped.pruner.keep_masks) and rest.pruner.sparsity() > 0.2
        )
    assert rest.run()
    assert same(weights(whole), weights(rest))
    if rest.pruner and whole.pruner:
        assert same(whole.pruner.keep_masks, rest.pruner.keep_masks)
        assert rest.pruner.sparsity() >= 0.5
    names = [path.name for path in sorted((tmp_path / "stopped").glob("checkpoint-*"))]
    assert names == ["checkpoint-0000004.safetensors", "checkpoint-0000006.safetensors"]
    lines = [
        json.loads(x) for x in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(math.isfinite(line["loss"]) for line in lines)


def stop_after(run: training_loop.Trainer, step: int, number: int) -> None:
    """Send this process a signal in the middle of that step."""
    original = run.train_step

    def train_step(micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
        if run.step == step - 1:
            os.kill(os.getpid(), number)
        return original(micro_batches)

    run.train_step = train_step  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_with_a_checkpoint(
    dataset: CocoDataset, tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    run = trainer(dataset, replace(FAST, steps=1000), tmp_path / "run")
    stop_after(run, 2, number)
    assert not run.run()
    names = [path.name for path in (tmp_path / "run").glob("checkpoint*")]
    assert names == ["checkpoint-0000002.safetensors"]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_checkpoints_every_so_often_and_only_two(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(dataset, replace(FAST, checkpoint_minutes=0.0), tmp_path / "run")
    run.run()
    names = [path.name for path in checkpoints(tmp_path / "run")]
    assert names == ["checkpoint-0000005.safetensors", "checkpoint-0000006.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "foreign"])
def test_a_corrupt_newest_checkpoint(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = tmp_path / "run"
    run = trainer(dataset, replace(FAST, checkpoint_minutes=0.0), folder)
    run.run()
    older, newest = sorted(folder.glob("checkpoint-*"))
    data = newest.read_bytes()
    newest.write_bytes(
        {
            "truncated": data[:-1000],
            "empty": b"",
            "text": b"no checkpoint at all",
            "foreign": b"\x02\0\0\0\0\0\0\0{}",
        }[damage]
    )
    with pytest.warns(UserWarning, match=r"cannot be read .*the one before") as warned:
        assert newest_checkpoint(folder).path == older
    assert str(newest) in str(warned[0].message)
    rest = trainer(dataset, FAST, folder)
    rest.resume(read_checkpoint(older))
    assert rest.step == 5
    rest.run()
    assert same(weights(rest), weights(run))
    older.write_bytes(b"")
    for path in folder.glob("checkpoint-*"):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="the one before"),
        pytest.raises(InputError, match="no readable checkpoint"),
    ):
        newest_checkpoint(folder)


def test_a_checkpoint_of_another_model(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(dataset, replace(FAST, steps=1), tmp_path / "run")
    run.run()
    saved = newest_checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match="another model or recipe"):
        trainer(dataset, FAST, tmp_path / "other", norm=False).resume(saved)


def test_a_loss_that_is_not_finite(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run = trainer(dataset, replace(FAST, checkpoint_minutes=0.0), folder)
    original = run.train_step

    def train_step(micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
        if run.step == 3:
            micro_batches = [
                replace(x, network_input=x.network_input * torch.nan) for x in micro_batches
            ]
        return original(micro_batches)

    run.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"not finite at step 3.*nan_batch\.json"):
        run.run()
    expected = epoch_batches(dataset, FAST, 1)[1]  # two batches an epoch
    noted = json.loads((folder / "nan_batch.json").read_text())
    assert noted == {"step": 3, "image_ids": [dataset.images[i].id for i in expected]}
    assert newest_checkpoint(folder).path.name == "checkpoint-0000003.safetensors"
    saved = start.open_start(folder).tensors(TINY)
    assert all(np.isfinite(value).all() for value in saved.values())
    # The weights were not touched by it either.
    assert all(np.array_equal(value, run.model.state_dict()[name]) for name, value in saved.items())


# ------------------------------------------------------------------------ the commands


SETTINGS = (
    "--steps",
    "6",
    "--batch",
    "2",
    "--freeze-at",
    "0",
    "--rpn-batch",
    "64",
    "--rpn-pre-nms",
    "200",
    "--rpn-post-nms",
    "50",
    "--roi-batch",
    "32",
)


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the default preset tiny, with COCO's classes; the data's own classes replace them."""
    coco = preset("r50half-c4")
    small = replace(TINY, class_names=coco.class_names, category_ids=coco.category_ids)
    monkeypatch.setitem(__import__("sparsedet").PRESETS, "r50half-c4", small)


@pytest.fixture
def command(files: tuple[Path, Path], tmp_path: Path, tiny_preset: None) -> Callable[..., int]:
    def call(name: str, output: str, *flags: object, data: tuple[Path, Path] = files) -> int:
        return main(
            [
                name,
                "--annotations",
                str(data[0]),
                "--images",
                str(data[1]),
                "--threads",
                "1",
                "--output",
                str(tmp_path / output),
                *map(str, flags),
            ]
        )

    return call


def test_warnings_of_the_command_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "run", *SETTINGS, "--sparsity", 0, "--freeze-at", 2) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sparsedet: warning: without --init all weights are initialised")


def test_own_data_from_training_to_detection(
    command: Callable[..., int],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("train", "dense", *SETTINGS, "--sparsity", 0) == 0
    assert command("prune", "sparse", *SETTINGS, "--init", tmp_path / "dense") == 0
    assert f"-> {tmp_path / 'sparse' / 'model.safetensors'}" in capsys.readouterr().out
    dense, sparse = (load_model(tmp_path / n / "model.safetensors") for n in ("dense", "sparse"))
    for model in (dense, sparse):
        assert model.config.class_names == NAMES and model.config.category_ids == (3, 5, 8)
        assert model.provenance["data"] == "instances.json"
    assert sparsity_report(dense.config, dense.tensors).sparsity < 0.05
    assert sparsity_report(sparse.config, sparse.tensors).sparsity >= 0.6
    noted = json.loads((tmp_path / "sparse" / "run.json").read_text())
    assert noted["recipe"]["sparsity"] == 0.6 and noted["recipe"]["prune_end"] == 4
    assert ModelConfig.from_dict(noted["config"]) == sparse.config
    assert Recipe.from_dict(noted["recipe"]).steps == 6

    detector = Detector.load(tmp_path / "sparse" / "model.safetensors", threads=1)
    for path in sorted(files[1].iterdir()):
        detections = detector(read_image(path), 0.0)
        assert set(detections.names) <= set(NAMES)
        assert {entry["category_id"] for entry in detections.to_coco(1)} <= {3, 5, 8}
    assert (
        main(
            [
                "eval",
                "--model",
                str(tmp_path / "sparse" / "model.safetensors"),
                "--threads",
                "1",
                "--annotations",
                str(files[0]),
                "--images",
                str(files[1]),
            ]
        )
        == 0
    )
    assert "4 images" in capsys.readouterr().out


def stop_runs_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every run end by SIGTERM in the middle of that step, until `monkeypatch` is undone."""
    original = training_loop.Trainer.run

    def stopped(self: training_loop.Trainer) -> bool:
        stop_after(self, step, signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(training_loop.Trainer, "run", stopped)


def test_a_stopped_command_resumes(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command("train", "whole", *SETTINGS) == 0
    stop_runs_after(4, monkeypatch)
    capsys.readouterr()
    assert command("train", "stopped", *SETTINGS) == 130
    assert "stopped after step 4 of 6" in capsys.readouterr().out
    assert not (tmp_path / "stopped" / "model.safetensors").exists()  # it is not finished
    monkeypatch.undo()
    coco = preset("r50half-c4")  # the preset is no longer tiny: the checkpoint says what to build
    assert coco.blocks != TINY.blocks
    assert command("train", "stopped", *SETTINGS) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert command("train", "stopped", "--resume") == 0  # by the run's own recipe
    printed = capsys.readouterr().out
    assert "continuing from" in printed and "changed setting" not in printed
    a, b = (load_model(tmp_path / n / "model.safetensors").tensors for n in ("whole", "stopped"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_pruning_resumes_by_its_own_recipe(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command("train", "dense", *SETTINGS) == 0
    assert "the frozen ones" not in capsys.readouterr().err  # nothing is
    prune = ("--init", tmp_path / "dense", *SETTINGS, "--sparsity", 0.5, "--prune-end", 5)
    assert command("prune", "whole", *prune) == 0
    stop_runs_after(3, monkeypatch)
    assert command("prune", "stopped", *prune) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert command("prune", "stopped", "--resume", "--log-every", 1) == 0
    assert "changed setting log_every: 20 -> 1" in capsys.readouterr().out
    a, b = (load_model(tmp_path / n / "model.safetensors").tensors for n in ("whole", "stopped"))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    (tmp_path / "stopped" / "run.json").write_text("[]")
    assert command("prune", "stopped", "--resume") == 1
    assert "run.json: not the description of a run: it has no recipe" in capsys.readouterr().err


def test_a_start_from_nothing_is_warned_of(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "run", *SETTINGS, "--freeze-at", 2) == 0
    assert "without --init all weights are initialised randomly" in capsys.readouterr().err


def test_every_setting_is_explained() -> None:
    assert list(HELP) == [field.name for field in dataclasses.fields(Recipe)]


def test_other_classes_than_the_initial_models(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "first", *SETTINGS) == 0
    other = make_data(tmp_path / "other")
    data = json.loads(other[0].read_text())
    data["categories"] = [{"id": 3, "name": "ball"}, {"id": 5, "name": "cube"}]
    other[0].write_text(json.dumps(data))
    init = tmp_path / "first" / "model.safetensors"
    capsys.readouterr()
    assert command("train", "second", *SETTINGS, "--init", init, data=other) == 0
    printed = capsys.readouterr()
    assert "other classes: the box predictors are initialised randomly" in printed.out
    assert "unknown category" in printed.err
    saved = load_model(tmp_path / "second" / "model.safetensors")
    config = require_c4(saved.config, "compared")
    assert config.class_names == ("ball", "cube") and config.blocks == TINY.blocks


def test_bad_training_input(
    command: Callable[..., int],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(word: str, *arguments: object, code: int = 1, **options: Any) -> None:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert command(*arguments, **options) == code
        lines = capsys.readouterr().err.splitlines()
        assert len([x for x in lines if "warning" not in x]) == 1 and word in lines[-1], lines
        assert sorted(tmp_path.rglob("*")) == before

    annotations, images = files
    (tmp_path / "file").write_bytes(b"text")
    refused("No such file", "train", "run", data=(tmp_path / "none.json", images))
    refused("4 of 4 images are missing", "train", "run", data=(annotations, tmp_path))
    refused("file", "train", "file/run", *SETTINGS)
    refused("is JSON, not weights", "prune", "run", *SETTINGS, "--init", annotations)
    refused("is JSON, not weights", "train", "run", "--init", annotations)
    refused("no readable checkpoint", "train", "run", "--init", tmp_path)
    refused("run: No such file", "train", "run", "--resume")
    refused("threads is 0", "train", "run", "--threads", 0, code=2)
    refused("'r102'", "train", "run", "--model", "r102", code=2)
    refused("MODEL is needed", "prune", "run", *SETTINGS, code=2)
    once = ("--method", "magnitude", "--sparsity", 0.5)
    refused("MODEL is needed", "prune", "run", *once, code=2)
    refused(
        "no such layer",
        "train",
        "run",
        *SETTINGS,
        "--sparsity",
        0.5,
        "--prune-end",
        3,
        "--exclude",
        "res9",
    )
    refused("needs", "train", "run", *SETTINGS, "--sparsity", 0.99, "--prune-end", 3)
    data = json.loads(annotations.read_text())
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({**data, "annotations": []}))
    refused("no image has a box", "train", "run", *SETTINGS, data=(bare, images))


# ------------------------------------------------------------------------ open_nsfw's weights


def onnx_backbone(
    config: ModelConfig, input_size: tuple[int, int], folder: Path
) -> tuple[Path, dict[str, str]]:
    """A graph of open_nsfw's form for `config`, with random weights.

    Each convolution is followed by Add, Sub, Mul, Add (its bias and the batch norm in pieces);
    weights pass through an Identity, the input through a Transpose and a Cast. Its output is
    the stride-16 map, then res5 on a region of the same channels.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    nodes, constants = [], {}

    def constant(name: str, value: Any) -> str:
        constants[name] = value.astype(np.float32)
        return name

    def apply(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], f"{op}_{output}", **attributes))
        return output

    network = build_graph(config, input_size)
    align = network.only(RoiAlign)[0]
    apply("Transpose", ["input"], "nchw", perm=[0, 3, 1, 2])
    outputs = {align.name: "region"}
    outputs["normalise"] = apply("Cast", ["nchw"], "cast", to=TensorProto.FLOAT)
    for operation in network.operations:
        if not operation.name.startswith(("stem", "res")):
            continue
        x = outputs[operation.inputs[0]]
        if isinstance(operation.attributes, MaxPool):
            outputs[operation.name] = apply(
                "MaxPool",
                [x],
                operation.name,
                kernel_shape=[3, 3],
                strides=[2, 2],
                pads=list(operation.attributes.padding),
            )
            continue
        layer = network.layer[operation.name]
        before, after = layer.padding
        weight = constant(f"{layer.name}.w", rng.normal(0, 0.3, layer.weight_shape))
        weight = apply("Identity", [weight], f"{layer.name}.w_read")
        x = apply(
            "Conv",
            [x, weight],
            f"{layer.name}.0",
            strides=[layer.stride] * 2,
            pads=[before, before, after, after],
        )
        for number, (op, low, high) in enumerate(
            [("Add", -1, 1), ("Sub", -1, 1), ("Mul", 0.2, 1), ("Add", -1, 1)], start=1
        ):
            operand = rng.uniform(low, high, (1, layer.out_channels, 1, 1))
            name = constant(f"{layer.name}.c{number}", operand)
            x = apply(op, [x, name], f"{layer.name}.{number}")
        if layer.residual:
            x = apply("Add", [x, outputs[layer.residual]], f"{layer.name}.sum")
        outputs[layer.name] = apply("Relu", [x], layer.name) if layer.relu else x
    last = f"res5.{config.blocks[3] - 1}.conv3"
    channels = config.stage_channels[2]
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "backbone",
        [
            values("input", TensorProto.FLOAT, [1, *input_size, 3]),
            values("region", TensorProto.FLOAT, [1, channels, 14, 14]),
        ],
        [values(outputs[name], TensorProto.FLOAT, None) for name in (align.inputs[0], last)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = folder / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path, {"features": outputs[align.inputs[0]], "res5": outputs[last]}


def test_open_nsfw_features_equal_the_graphs(tmp_path: Path) -> None:
    path, names = onnx_backbone(TINY, (48, 80), tmp_path)
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(2)
    network_input = rng.integers(0, 256, (1, 48, 80, 3)).astype(np.float32)
    region = rng.uniform(0, 3, (1, TINY.stage_channels[2], 14, 14)).astype(np.float32)
    graph = ReferenceEvaluator(str(path))
    outputs: Any = graph.run(
        [names["features"], names["res5"]],
        {"input": network_input - np.array(TINY.pixel_mean, np.float32), "region": region},
    )
    features, res5 = outputs
    model = start.build_model(TINY, load_open_nsfw(path, TINY))
    with torch.no_grad():
        given = torch.from_numpy(network_input).permute(0, 3, 1, 2)
        ours = model.first_stage(given).maps[0].numpy()
        step = model.graph.only(RoiAlign)[1].step  # only these bins are read
        bins = torch.from_numpy(region)[:, :, ::step, ::step]
        (our_res5,) = model.run({model.rois: bins}, ["res5.0.conv3"])
    assert ours.shape == features.shape and np.abs(features).max() > 1
    assert np.abs(ours - features).max() <= 1e-5 * np.abs(features).max()
    assert np.abs(our_res5.numpy() - res5).max() <= 1e-5 * np.abs(res5).max()
    assert "rpn.conv.weight" not in load_open_nsfw(path, TINY)


def test_graphs_that_are_not_open_nsfws(tmp_path: Path) -> None:
    path, _ = onnx_backbone(TINY, (48, 80), tmp_path)
    import onnx

    with pytest.raises(InputError, match=r"\(6, .*res3\.0\.conv1.*needs\s+\(7, "):
        load_open_nsfw(path, replace(TINY, bottleneck_channels=(4, 7, 8, 10)))
    with pytest.raises(InputError, match="has 17 convolutions, tiny has 20"):
        load_open_nsfw(path, replace(TINY, blocks=(1, 2, 1, 1)))
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(InputError, match=r"text\.onnx: not a readable ONNX file"):
        load_open_nsfw(tmp_path / "text.onnx", TINY)
    with pytest.raises(InputError, match=r"none\.onnx"):
        load_open_nsfw(tmp_path / "none.onnx", TINY)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="has 0 convolutions"):
        load_open_nsfw(tmp_path / "empty.onnx", TINY)

    model = onnx.load(path)
    first = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Sub")
    model.graph.node[first].op_type = "Div"
    onnx.save(model, tmp_path / "div.onnx")
    with pytest.raises(InputError, match="expected one Sub"):
        load_open_nsfw(tmp_path / "div.onnx", TINY)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "res2.0.conv1.c3":
            two = np.ones((1, 2, 1, 1), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(two, tensor.name))
    onnx.save(model, tmp_path / "short.onnx")
    with pytest.raises(InputError, match=r"no constant for res2\.0\.conv1"):
        load_open_nsfw(tmp_path / "short.onnx", TINY)
