"""Every pattern of the list, and new ones that are only added to it, prune in every way."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.small import SMALL  # noqa: E402
from helpers.tiny_training import FAST  # noqa: E402

from sparsedet import InputError, load_model, save_model  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.images.letterbox import to_network_input  # noqa: E402
from sparsedet.model.c4 import build_graph  # noqa: E402
from sparsedet.model.detector_config import require_c4  # noqa: E402
from sparsedet.pruning.allocation import pattern_sparsity, prunable_layers  # noqa: E402
from sparsedet.pruning.calibration import calibration_input  # noqa: E402
from sparsedet.pruning.masks import GradualPruner  # noqa: E402
from sparsedet.pruning.one_shot import Method, OneShotConfig, prune_once  # noqa: E402
from sparsedet.pruning.patterns import PATTERNS, Pattern  # noqa: E402
from sparsedet.pruning.schedule import CubicSchedule  # noqa: E402
from sparsedet.pruning.selection import to_matrix  # noqa: E402
from sparsedet.testing import (  # noqa: E402
    calibrated_random_tensors,
    random_tensors,
    rectangles_on_noise,
)
from sparsedet.torch_model import FasterRCNN  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

NEW = [
    Pattern(name="test 1:2", help="one of two", columns=2, live=1),
    Pattern(name="test 1x8", help="eight input channels", columns=8),
    Pattern(name="test 4x1", help="four output channels", rows=4),
    Pattern(name="test 2x2", help="two output by two input channels", rows=2, columns=2),
]
CONFIG = replace(
    SMALL,
    name="eights",
    bottleneck_channels=(8, 16, 16, 24),
    stage_channels=(16, 24, 32, 40),
    stem_channels=8,
    rpn_channels=24,
)


@pytest.fixture(params=[*PATTERNS.values(), *NEW], ids=lambda pattern: pattern.name)
def pattern(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pattern]:
    """A pattern of the list; a new one is in it during the test."""
    monkeypatch.setitem(PATTERNS, request.param.name, request.param)
    yield request.param


@pytest.fixture(scope="module")
def dense() -> FasterRCNN:
    network_input, _ = to_network_input(
        rectangles_on_noise(), CONFIG.input_height, CONFIG.input_width
    )
    model = FasterRCNN(CONFIG)
    model.load_tensors(calibrated_random_tensors(CONFIG, 0.0, network_input))
    return model


def check(model: FasterRCNN, pattern: Pattern, sparsity: float) -> None:
    """Every pruned layer fits the pattern, and the whole network has the zeros."""
    zeros = 0
    for name in prunable_layers(model.graph):
        keep_mask = to_matrix(model.layers[name].weight) != 0
        assert pattern.fits(keep_mask), name
        zeros += int((~keep_mask).sum())
    assert sparsity <= zeros / model.graph.parameters < sparsity + 0.02


def target(pattern: Pattern) -> float:
    """The sparsity that the pattern fixes, else 0.5; of all parameters."""
    if pattern.fixed_sparsity is None:
        return 0.5
    network = build_graph(CONFIG)
    return pattern_sparsity(network, prunable_layers(network), pattern)


def test_blocks_and_their_inverse(pattern: Pattern) -> None:
    matrix = torch.arange(8 * 24.0).view(8, 24)
    blocks = pattern.blocks(matrix)
    assert blocks.shape == (8 * 24 // pattern.size, pattern.size)
    assert torch.equal(pattern.matrix(blocks, 8), matrix)
    first = matrix[: pattern.rows, : pattern.columns]
    assert torch.equal(blocks[0], first.flatten())
    keep = pattern.keep_mask(torch.zeros(len(blocks), dtype=torch.bool), matrix)
    assert pattern.fits(keep) and int((~keep).sum()) == len(blocks) * pattern.zeros
    assert torch.equal(pattern.keep_within(matrix), keep)
    assert pattern.keep_mask(torch.ones(len(blocks), dtype=torch.bool), matrix).all()
    assert pattern.fits(matrix != 0) == (pattern.zeros == 1)  # one zero, in the first block


def test_gradual_pruning(dense: FasterRCNN, pattern: Pattern) -> None:
    model = copy.deepcopy(dense)
    pruner = GradualPruner(
        model, CubicSchedule(final=target(pattern), end=4, every=2), pattern=pattern
    )
    for step in range(5):
        pruner.update(step)
        assert all(pattern.fits(to_matrix(mask)) for mask in pruner.keep_masks.values())
    check(model, pattern, target(pattern))


@pytest.mark.parametrize("method", ["magnitude", "reconstruct"])
def test_one_shot_pruning(dense: FasterRCNN, pattern: Pattern, method: Method) -> None:
    model = copy.deepcopy(dense)
    inputs = [calibration_input(rectangles_on_noise(seed=seed), model.config) for seed in range(12)]
    sparsity = 0.5 if pattern.fixed_sparsity is None else None
    settings = OneShotConfig(method=method, pattern=pattern.name, sparsity=sparsity)
    report = prune_once(model, inputs, settings, held_out=2)
    check(model, pattern, target(pattern))
    assert report.pattern == pattern.name
    if method == "reconstruct":
        assert sum(layer.error < layer.magnitude_error for layer in report.layers) > 10


def test_the_command_line_takes_it(
    dense: FasterRCNN,
    pattern: Pattern,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    help_text = capsys.readouterr().out
    assert f"{pattern.name}," in help_text or f"{pattern.name}}}" in help_text
    save_model(tmp_path / "dense", CONFIG, dense.folded_tensors(), {})
    recipe = replace(FAST, learning_rate=1e-6)  # random weights diverge with more
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    arguments = {
        "annotations": files[0],
        "images": files[1],
        "init": tmp_path / "dense",
        "recipe": tmp_path / "recipe.json",
        "pattern": pattern.name,
        "threads": 1,
        "output": tmp_path / "run",
    }
    if pattern.fixed_sparsity is None:
        arguments["sparsity"] = 0.5
    flags = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    assert main(["prune", *flags, "--prune-end", "3"]) == 0
    saved = load_model(tmp_path / "run" / "model.safetensors")
    model = FasterRCNN(require_c4(saved.config, "trained"))
    model.load_tensors(saved.tensors)
    check(model, pattern, target(pattern))


def test_random_weights(pattern: Pattern) -> None:
    if pattern.live:
        with pytest.raises(InputError, match="pattern is"):
            random_tensors(CONFIG, 0.5, pattern=pattern.name)
        return
    model = FasterRCNN(CONFIG)
    model.load_tensors(random_tensors(CONFIG, 0.5, pattern=pattern.name))
    check(model, pattern, 0.5)


def test_layers_that_do_not_fit() -> None:
    layer = build_graph(replace(CONFIG, rpn_channels=22)).layer["rpn.conv"]
    with pytest.raises(InputError, match=r"a multiple of 4 output channels, but rpn\.conv has 22"):
        Pattern(name="4x1", help="", rows=4).check_layer(layer)
