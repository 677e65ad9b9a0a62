"""A small model that finds something in a synthetic photograph: what the fast tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from helpers.small import SMALL, picture

from sparsedet.detector import embedded_model
from sparsedet.evaluation.coco import CocoDataset, load_coco
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.config import ModelConfig
from sparsedet.model.file import save_model
from sparsedet.testing import calibrated_random_tensors


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    return SMALL


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file, 40 % sparse, that detects all three classes in `picture()`."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    network_input, _ = to_network_input(picture(), SMALL.input_height, SMALL.input_width)
    save_model(
        path, SMALL, calibrated_random_tensors(SMALL, 0.4, network_input), {"recipe": "none"}
    )
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
    """The C4 model inside the package."""
    return embedded_model("r50half-c4")


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """For tests whose tensors are too small to share out."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """COCO JSON and folder of four photographs of coloured boxes, three classes."""
    from helpers.tiny_training import make_data

    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def dataset(files: tuple[Path, Path]) -> CocoDataset:
    return load_coco(*files)
