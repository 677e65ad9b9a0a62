"""Augmentation: boxes stay on their objects, crowds follow, and a run stays repeatable."""

from __future__ import annotations

import math
import random
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.tiny_training import FAST, TINY, trainer  # noqa: E402
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset, CocoImage  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.torch_model.checkpoint import newest_checkpoint  # noqa: E402
from sparsedet.training.augment import (  # noqa: E402
    View,
    areas_of,
    cut,
    distort_colours,
    iou_crop,
    mosaic,
    settled,
    zoom_out,
)
from sparsedet.training.crowds import without_regions  # noqa: E402
from sparsedet.training.data import (  # noqa: E402
    MicroBatch,
    MicroBatches,
    epoch_batches,
    load_sample,
    micro_batches,
)
from sparsedet.training.distributed import Ranks  # noqa: E402
from sparsedet.training.losses import Target, losses, sample_rois  # noqa: E402
from sparsedet.training.rare_classes import repeat_factors  # noqa: E402
from sparsedet.training.recipe import Recipe  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

GROUND = 110
COLOURS = [
    (blue, green, red)
    for blue in (0, 120, 250)
    for green in (0, 120, 250)
    for red in (0, 250)
    if len({blue, green, red}) > 1
]
"""BGR of label 1, 2, ...: far from each other and from the ground."""

JITTER = {"scale_low": 0.5, "scale_high": 2.0, "crop": True}
CONFIG = replace(TINY, input_height=160, input_width=240)
PLAIN = replace(FAST, scale_low=1.0)
EVERYTHING: dict[str, Any] = {
    **JITTER,
    "zoom_out": 0.5,
    "iou_crop": 0.5,
    "mosaic": 0.5,
    "colour": 0.5,
    "repeat_threshold": 0.6,
    "crowd_overlap": 0.7,
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "scale jitter with crop": JITTER,
    "zoom_out": {"zoom_out": 1.0},
    "iou_crop": {"iou_crop": 1.0},
    "mosaic": {"mosaic": 1.0, "scale_high": 2.0},
    "all": {**EVERYTHING, "colour": 0.0},
}


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Four photographs of 3 boxes each, every box in a colour (and label) of its own; the last box
    of each is a crowd."""
    folder = tmp_path_factory.mktemp("painted")
    images = []
    for number in range(4):
        width, height = (240, 160) if number % 2 else (160, 240)
        image = np.full((height, width, 3), GROUND, np.uint8)
        boxes = []
        for slot in range(3):
            long, short = slot * 50 + 10 * number, 20 + 35 * ((slot + number) % 3)
            x, y = (long, short) if number % 2 else (short, long)
            box = (x, y, x + 40, y + 30)
            image[box[1] : box[3], box[0] : box[2]] = COLOURS[3 * number + slot]
            boxes.append(box)
        cv2.imwrite(str(folder / f"{number}.png"), image)
        labels = np.arange(1, 4) + 3 * number
        crowd = np.array([False, False, True])
        corners = np.array(boxes, np.float32)
        name = f"{number}.png"
        images.append(CocoImage(number, name, width, height, corners, labels, crowd))
    names = tuple(f"colour {label}" for label in range(1, 13))
    return CocoDataset(folder / "x.json", folder, tuple(images), names, tuple(range(1, 13)))


def is_colour(image: Any, label: int) -> Any:
    return np.abs(image.astype(int) - COLOURS[label - 1]).max(axis=2) <= 30


def around(box: Any, by: float, image: Any) -> tuple[slice, slice]:
    """Rows and columns of a box that is `by` pixels larger on each side."""
    low, high = np.floor(box[:2] - by), np.ceil(box[2:] + by)
    x0, y0 = np.maximum(low, 0).astype(int)
    x1, y1 = np.minimum(high, image.shape[1::-1]).astype(int)
    return slice(y0, max(y0, y1)), slice(x0, max(x0, x1))


# ------------------------------------------------------------------------ boxes


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_are_where_their_objects_are(painted: CocoDataset, name: str) -> None:
    recipe = replace(PLAIN, **AUGMENTATIONS[name])
    labels_seen, shapes, single_count = Counter[int](), set(), 0
    for epoch in range(40):
        for annotated in painted.images:
            image, target = load_sample(painted, annotated, CONFIG, recipe, epoch)
            assert image.shape == (target.height, target.width, 3) and image.dtype == np.uint8
            boxes, regions = target.boxes.numpy(), target.ignored.numpy()
            assert boxes.dtype == np.float32 and len(boxes) == len(target.labels)
            corners = np.concatenate([boxes, regions])
            assert (corners >= 0).all() and (corners <= [target.width, target.height] * 2).all()
            assert (corners[:, 2:] > corners[:, :2]).all()
            shapes.add(image.shape)
            for box, label in zip(boxes, target.labels.tolist(), strict=True):
                labels_seen[label] += 1
                single_count += 1
                if min(box[2:] - box[:2]) > 8:  # all of it is of its colour, up to its edges
                    assert is_colour(image, label)[around(box, -3, image)].all()
                edge = is_colour(image, label).copy()
                edge[around(box, 2, image)] = False  # nothing of it lies outside ...
                others = [b for b, own in zip(boxes, target.labels, strict=True) if own == label]
                for other in [*others, *regions]:  # ... but other copies of the photograph
                    edge[around(other, 2, image)] = False
                assert not edge.any()
            left = np.zeros(image.shape[:2], bool)
            for label in range(1, 13):  # no part of an object is without a box
                left |= is_colour(image, label)
            for box in corners:
                left[around(box, 2, image)] = False
            assert not left.any()
    assert single_count > 100 and len(shapes) > 1
    assert set(labels_seen) == {label for label in range(1, 13) if label % 3}  # no crowd among them
    if "mosaic" in AUGMENTATIONS[name]:
        _, target = load_sample(painted, painted.images[0], CONFIG, replace(recipe, mosaic=1.0), 3)
        assert set(target.labels.tolist()) - {1, 2}


def test_crowds_follow(painted: CocoDataset) -> None:
    for changes in AUGMENTATIONS.values():
        recipe = replace(PLAIN, min_box=0.0, min_visible=0.0, **changes)
        recipe = replace(recipe, iou_crop=0.0)  # would add objects whose centre it cuts off
        found = 0
        for epoch in range(10):
            image, target = load_sample(painted, painted.images[1], CONFIG, recipe, epoch)
            for box in target.ignored.numpy():
                if min(box[2:] - box[:2]) > 8:
                    inner = around(box, -3, image)
                    assert any(is_colour(image, label)[inner].all() for label in (3, 6, 9, 12))
                    found += 1
        assert found > 2


def test_colours_change_and_boxes_do_not(painted: CocoDataset) -> None:
    recipe, annotated = replace(PLAIN, colour=1.0), painted.images[1]
    different = 0
    for epoch in range(20):
        plain, before = load_sample(painted, annotated, CONFIG, PLAIN, epoch)
        image, target = load_sample(painted, annotated, CONFIG, recipe, epoch)
        assert torch.equal(before.boxes, target.boxes) and before.seed == target.seed
        assert torch.equal(before.labels, target.labels) and image.shape == plain.shape
        different += not np.array_equal(image, plain)
        for box in target.boxes.numpy():
            inside = image[around(box, -2, image)].reshape(-1, 3)
            assert (inside == inside[0]).all()  # one colour became one colour
    assert different >= 15
    chosen = [
        np.array_equal(
            load_sample(painted, annotated, CONFIG, replace(recipe, colour=0.5), epoch)[0],
            load_sample(painted, annotated, CONFIG, PLAIN, epoch)[0],
        )
        for epoch in range(30)
    ]
    assert 5 < sum(chosen) < 28


def test_what_is_small_or_cut_off_is_left_out() -> None:
    boxes = np.array([[0, 0, 40, 40], [80, 0, 120, 40], [50, 50, 53, 90]], np.float32)
    image = np.zeros((100, 120, 3), np.uint8)
    view = View(image, boxes, np.array([1, 2, 3]), np.zeros(3, bool), areas_of(boxes))
    window = cut(view, 30, 0, 60, 100)  # a quarter of the first two is left
    assert window.boxes.tolist() == [[0, 0, 10, 40], [50, 0, 60, 40], [20, 50, 23, 90]]
    assert window.areas.tolist() == [1600, 1600, 120] and window.image.shape == (100, 60, 3)
    again = cut(window, 5, 0, 55, 100)  # an eighth of the first
    for least, expected in ((0.1, [0, 0, 0]), (0.2, [1, 0, 0]), (0.3, [1, 1, 0])):
        recipe = replace(FAST, min_visible=least, min_box=0)
        assert settled(again, recipe).ignored.tolist() == expected
    recipe = replace(FAST, min_visible=0, min_box=4)
    assert settled(window, recipe).ignored.tolist() == [False, False, True]
    assert cut(view, 41, 0, 9, 100).labels.tolist() == []  # what is outside is gone
    half = view.scaled(image[:50, :60], 100, 120)
    assert half.areas.tolist() == areas_of(half.boxes).tolist() == [400, 400, 30]


# ------------------------------------------------------------------------ torchvision, formulas


def crowded_view(seed: int) -> View:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 90, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (6, 2))], axis=1)
    boxes = np.clip(boxes, 0, [160, 120, 160, 120]).astype(np.float32)
    image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    return View(image, boxes, np.arange(1, 7), np.zeros(6, bool), areas_of(boxes))


def of_torchvision(transform: Any, view: View, seed: int) -> tuple[Any, Any]:
    """torchvision's image (RGB as BGR) and boxes; degenerate ones mark objects that are gone."""
    image = tv_tensors.Image(torch.from_numpy(view.image.transpose(2, 0, 1).copy()))
    size = view.image.shape[:2]
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(view.boxes), format="XYXY", canvas_size=size)
    torch.manual_seed(seed)
    out, moved = transform(image, boxes)
    return out.numpy().transpose(1, 2, 0), moved.numpy()


def test_zoom_out_and_iou_crop_equal_torchvisions() -> None:
    cropped = 0
    for seed in range(30):
        view = crowded_view(seed)
        fill = (10, 20, 30)
        image, boxes = of_torchvision(v2.RandomZoomOut(fill=fill, p=1.0), view, seed)
        torch.manual_seed(seed)
        torch.rand(1)  # torchvision's coin
        ours = zoom_out(view, fill)
        assert np.array_equal(ours.image, image) and np.array_equal(ours.boxes, boxes)

        image, boxes = of_torchvision(v2.RandomIoUCrop(), view, seed)
        torch.manual_seed(seed)
        ours = iou_crop(view)
        assert np.array_equal(ours.image, image)
        whole = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept = ~ours.ignored
        assert ours.labels[kept].tolist() == view.labels[whole].tolist()
        assert np.array_equal(ours.boxes[kept], boxes[whole])
        cropped += image.shape != view.image.shape
    assert cropped > 15
    empty = replace(crowded_view(1), ignored=np.ones(6, bool))
    assert iou_crop(empty) is empty  # without an object there is nothing to crop around


def test_colours_equal_torchvisions() -> None:
    for seed in range(8):
        view = crowded_view(seed)
        rgb = replace(view, image=view.image[:, :, ::-1])
        image, _ = of_torchvision(v2.RandomPhotometricDistort(), rgb, seed)
        torch.manual_seed(seed)
        assert np.array_equal(distort_colours(view.image), image[:, :, ::-1])


def test_a_mosaic_has_four_quarters() -> None:
    views = [
        replace(crowded_view(n), image=np.full((120, 160, 3), 50 * n + 20, np.uint8))
        for n in range(4)
    ]
    for seed in range(10):
        canvas = mosaic(views, random.Random(seed), (5, 5, 5))
        assert canvas.image.shape == (240, 320, 3)
        for n in range(4):  # each ends or begins at the point, and lies in its own quarter
            rows, columns = np.nonzero(canvas.image[:, :, 0] == 50 * n + 20)
            assert 60 <= np.ptp(rows) + 1 <= 120 and 80 <= np.ptp(columns) + 1 <= 160
            corner = (
                rows.max() if n < 2 else rows.min(),
                columns.max() if n % 2 == 0 else columns.min(),
            )
            if n == 0:
                point = corner
            assert abs(corner[0] - point[0]) <= 1 and abs(corner[1] - point[1]) <= 1


def test_boxes_inside_a_region_are_not_background() -> None:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(200, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 2 + 30 * torch.rand(200, 2, generator=generator)], 1)
    regions = torch.tensor([[0.0, 0, 30, 40], [50, 50, 90, 70]])
    label = torch.randint(-1, 2, (200,), generator=generator)
    after = without_regions(label, boxes, regions, 0.7)
    for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        share = max(
            max(0, min(x1, r[2]) - max(x0, r[0])) * max(0, min(y1, r[3]) - max(y0, r[1]))
            for r in regions.tolist()
        ) / ((x1 - x0) * (y1 - y0))
        if abs(share - 0.7) > 1e-4:
            assert after[n] == (-1 if share >= 0.7 and label[n] == 0 else label[n])
    assert (after != label).sum() > 10
    assert torch.equal(without_regions(label, boxes, regions, 0.0), label)
    assert torch.equal(without_regions(label, boxes, regions[:0], 0.7), label)


def test_no_background_is_learnt_in_a_crowd() -> None:
    recipe = replace(FAST, crowd_overlap=0.7, roi_batch=64)
    left = torch.tensor([[0.0, 0.0, 48.0, 64.0]])
    aim = Target(torch.tensor([[4.0, 4, 24, 24]]), torch.tensor([1]), 64, 96, 5, left)
    x = torch.arange(0, 84, 4.0)
    proposals = torch.stack([x, x * 0 + 30, x + 12, x * 0 + 50], 1)
    proposals = torch.cat([proposals, aim.boxes + 1])
    boxes, labels, _ = sample_rois(recipe, proposals, aim, TINY.box_weights)
    assert (boxes[labels == 0][:, 0] >= 36).all() and (labels == 1).sum() == 2
    everything, _, _ = sample_rois(FAST, proposals, aim, TINY.box_weights)
    assert (everything[:, 0] < 30).sum() > 5

    # In an image that is all crowd, the RPN learns the object and nothing else.
    model = FasterRCNN(TINY)
    whole = torch.tensor([[-200.0, -200, 400, 400]])
    network_input = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    values = losses(model, recipe, network_input, [replace(aim, ignored=whole)])
    both = losses(model, FAST, network_input, [replace(aim, ignored=whole)])
    assert torch.isfinite(torch.stack(list(values.values()))).all()
    assert values["rpn_objectness"] < 0.5 * both["rpn_objectness"]
    assert torch.equal(values["rpn_box"], both["rpn_box"])
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 64, 96, 5, whole)
    values = losses(model, recipe, network_input, [none])
    assert torch.isfinite(torch.stack(list(values.values()))).all()
    torch.stack(list(values.values())).sum().backward()


def test_repeat_factors_follow_their_formula() -> None:
    box = np.array([[0, 0, 5, 5]] * 2, np.float32)

    def image(number: int, labels: Sequence[int], crowd: Sequence[bool]) -> CocoImage:
        return CocoImage(number, "x", 9, 9, box, np.array(labels), np.array(crowd))

    images = [image(n, [1, 1], [False, False]) for n in range(97)]
    images += [image(97, [1, 2], [False, False]), image(98, [2, 3], [False, False])]
    images += [image(99, [1, 3], [False, True])]
    factors = repeat_factors(images, 0.16)
    assert factors[:97] == [1.0] * 97 and factors[99] == 1.0  # a crowd counts for nothing
    assert factors[97] == pytest.approx(math.sqrt(0.16 / 0.02))  # 2.83
    assert factors[98] == pytest.approx(math.sqrt(0.16 / 0.01))  # 4
    dataset = CocoDataset(Path("x"), Path("x"), tuple(images), ("a", "b", "c"), (1, 2, 3))
    recipe = replace(FAST, repeat_threshold=0.16, batch=1)
    drawn = Counter[int]()
    for epoch in range(100):
        batches = epoch_batches(dataset, recipe, epoch)
        assert batches == epoch_batches(dataset, recipe, epoch)
        drawn.update(i for batch in batches for i in batch)
    assert drawn[98] == 400 and drawn[0] == 100 and 263 <= drawn[97] <= 303


# ------------------------------------------------------------------------ repeatable runs


def test_an_image_drawn_twice_is_augmented_differently(painted: CocoDataset) -> None:
    recipe = replace(PLAIN, **EVERYTHING)
    first, second = (
        load_sample(painted, painted.images[0], CONFIG, recipe, 5, repetition=n) for n in (0, 1)
    )
    assert first[1].seed != second[1].seed
    assert first[0].shape != second[0].shape or not np.array_equal(first[0], second[0])
    recipe = replace(recipe, repeat_threshold=1.0, batch=4)  # all classes are rare: f = 1/4
    stream = MicroBatches(painted, CONFIG, recipe, 0)
    batches = [next(iterator) for iterator in [iter(stream)] for _ in range(2)]  # one epoch
    seeds = [target.seed for batch in batches for target in batch.targets]
    assert sorted(i for batch in batches for i in batch.image_ids) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(seeds)) == 8


def equal(a: Any, b: Any) -> bool:
    return torch.equal(a.network_input, b.network_input) and all(
        torch.equal(x.boxes, y.boxes)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.ignored, y.ignored)
        and x.seed == y.seed
        for x, y in zip(a.targets, b.targets, strict=True)
    )


def test_augmented_batches_start_anywhere_and_leave_torchs_numbers_alone(
    painted: CocoDataset,
) -> None:
    recipe = replace(PLAIN, **EVERYTHING)

    def first(start: int, count: int, workers: int = 0) -> list[Any]:
        changed = replace(recipe, workers=workers)
        stream = micro_batches(painted, CONFIG, changed, start, Ranks())
        return [next(stream) for _ in range(count)]

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    early = first(0, 12)
    torch.manual_seed(1)
    load_sample(painted, painted.images[0], CONFIG, replace(recipe, colour=1.0, mosaic=1.0), 2)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    for late, other in zip(first(5, 7), early[5:], strict=True):
        assert equal(late, other)
    for parallel, other in zip(first(2, 4, workers=2), early[2:6], strict=True):
        assert equal(parallel, other)


def test_an_augmented_run_resumes_to_the_last_bit(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(FAST, samples=0, **EVERYTHING)
    whole = trainer(dataset, recipe, tmp_path / "whole")
    whole.run()
    stopped = trainer(dataset, recipe, tmp_path / "stopped")
    original: Callable[..., Any] = stopped.train_step

    def train_step(micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
        if stopped.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return dict(original(micro_batches))

    stopped.train_step = train_step  # type: ignore[method-assign]
    assert not stopped.run() and stopped.step == 3
    rest = trainer(dataset, recipe, tmp_path / "stopped")
    rest.resume(newest_checkpoint(tmp_path / "stopped"))
    assert rest.run()
    ours, theirs = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_bad_image_in_a_mosaic_does_not_end_a_run(painted: CocoDataset, tmp_path: Path) -> None:
    for image in painted.images:
        (tmp_path / image.file_name).write_bytes((painted.root / image.file_name).read_bytes())
    (tmp_path / "2.png").write_bytes(b"no picture")
    damaged = replace(painted, root=tmp_path)
    recipe = replace(PLAIN, mosaic=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = micro_batches(damaged, CONFIG, recipe, 0, Ranks(), "skip")
        assert all(len(next(stream).targets) == 2 for _ in range(20))
    assert [str(w.message) for w in caught if "2.png" in str(w.message)]
    with pytest.raises(InputError, match=r"2\.png"):
        stream = micro_batches(damaged, CONFIG, recipe, 0, Ranks(), "stop")
        for _ in range(20):
            next(stream)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"crop": True, "short_sides": [64]}, "crop is True, expected False beside short_sides"),
        ({"mosaic": 1.5}, "mosaic is 1.5, expected 0..1"),
        ({"crowd_overlap": -0.1}, "crowd_overlap"),
    ],
)
def test_impossible_augmentations(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError) as error:
        Recipe.from_dict(settings)
    assert word in str(error.value)
