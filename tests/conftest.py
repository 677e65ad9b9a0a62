"""A small model that finds something in a synthetic photograph: what the fast tests run on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.coco import CocoDataset, load_coco
from sparsedet.config import ModelConfig, preset
from sparsedet.detector import embedded_model
from sparsedet.preprocess import to_canvas
from sparsedet.pruning.synthetic import lively_tensors
from sparsedet.weights import save_model

SMALL = replace(
    preset("r50half-c4"),
    name="small",
    canvas_height=64,
    canvas_width=96,
    blocks=(1, 1, 1, 1),
    stem_channels=8,
    bottleneck_channels=(4, 6, 8, 10),
    stage_channels=(8, 12, 16, 20),
    rpn_channels=12,
    anchor_sizes=(16.0, 32.0, 64.0),
    proposals=40,
    class_names=("cat", "dög", "traffic light"),
    category_ids=(17, 18, 10),
    max_detections=20,
)


def picture(height: int = 90, width: int = 120, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured rectangles on a noisy ground, (height, width, 3) BGR."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
    for _ in range(8):
        x0, y0 = rng.integers(0, width // 2), rng.integers(0, height // 2)
        x1, y1 = x0 + rng.integers(6, width // 2), y0 + rng.integers(6, height // 2)
        cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)),
                      [int(c) for c in rng.integers(0, 256, 3)], cv2.FILLED)  # fmt: skip
    return image


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    return SMALL


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file, 40 % sparse, that detects all three classes in `picture()`."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    canvas, _ = to_canvas(picture(), SMALL.canvas_height, SMALL.canvas_width)
    save_model(path, SMALL, lively_tensors(SMALL, 0.4, canvas), {"recipe": "none"})
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph as a file, in a folder of its own."""
    path = tmp_path / "photos" / "street.png"
    path.parent.mkdir()
    cv2.imwrite(str(path), picture())
    return path


@pytest.fixture
def embedded() -> Path:
    """The model inside the package."""
    return embedded_model()


@pytest.fixture
def one_torch_thread():
    """For tests whose tensors are too small to share out."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """COCO JSON and folder of four photographs of coloured boxes, three classes."""
    from tiny_training import make_data

    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def dataset(files: tuple[Path, Path]) -> CocoDataset:
    return load_coco(*files)
