"""The pruning schedule against the paper's formula, and where its zeros go."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.presets import PRESETS
from sparsedet.pruning.allocation import prunable_layers, uniform_zeros
from sparsedet.pruning.schedule import CubicSchedule


def zhu_gupta(t: int, s_i: float, s_f: float, t_0: int, n: int, delta_t: int) -> float:
    """Equation 1 of arXiv 1710.01878, in the paper's letters."""
    return s_f + (s_i - s_f) * (1 - (t - t_0) / (n * delta_t)) ** 3


@pytest.mark.parametrize(
    ("s_i", "s_f", "t_0", "n", "delta_t"),
    [(0.0, 0.6, 0, 100, 1), (0.0, 0.875, 200, 10, 100), (0.25, 0.6, 7, 3, 11), (0.5, 0.5, 1, 2, 3)],
)
def test_every_point_of_the_papers_schedule(
    s_i: float, s_f: float, t_0: int, n: int, delta_t: int
) -> None:
    schedule = CubicSchedule(
        initial=s_i, final=s_f, begin=t_0, end=t_0 + n * delta_t, every=delta_t
    )
    points = [t for t in range(t_0 + n * delta_t + 50) if schedule.updates_at(t)]
    assert points == [t_0 + i * delta_t for i in range(n + 1)]  # t in {t0, t0+dt, ..., t0+n dt}
    for t in points:
        expected = zhu_gupta(t, s_i, s_f, t_0, n, delta_t)
        assert schedule.sparsity(t) == pytest.approx(expected, abs=1e-12)


def test_known_values() -> None:
    schedule = CubicSchedule(final=0.8, begin=100, end=300)
    # Halfway, 1 - (1/2)^3 = 7/8 of the way; after a quarter 1 - (3/4)^3 = 37/64.
    assert schedule.sparsity(200) == pytest.approx(0.7)
    assert schedule.sparsity(150) == pytest.approx(0.8 * 37 / 64)


def test_constant_outside_and_never_falling() -> None:
    schedule = CubicSchedule(initial=0.1, final=0.6, begin=20, end=90)
    values = [schedule.sparsity(step) for step in range(0, 200)]
    assert set(values[:21]) == {0.1}
    assert set(values[90:]) == {0.6}
    assert all(a < b for a, b in pairwise(values[20:91]))


def test_the_end_is_an_update_even_off_the_grid() -> None:
    schedule = CubicSchedule(final=0.6, begin=10, end=35, every=10)
    assert [t for t in range(100) if schedule.updates_at(t)] == [10, 20, 30, 35]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"final": 1.0, "end": 10}, "sparsity"),
        ({"final": 0.5, "initial": 0.6, "end": 10}, "sparsity"),
        ({"final": 0.5, "initial": -0.1, "end": 10}, "sparsity"),
        ({"final": math.nan, "end": 10}, "sparsity"),
        ({"final": 0.5, "begin": 10, "end": 10}, "steps"),
        ({"final": 0.5, "begin": -1, "end": 10}, "steps"),
        ({"final": 0.5, "end": 10, "every": 0}, "every"),
    ],
)
def test_bad_schedules(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CubicSchedule(**arguments)


CONFIGS = {
    **PRESETS,
    "one class": replace(PRESETS["r50half-c4"], class_names=("cat",), category_ids=(17,)),
    "tiny": replace(
        PRESETS["r50half-c4"],
        blocks=(1, 1, 1, 1),
        stem_channels=3,
        rpn_channels=5,
        bottleneck_channels=(1, 2, 3, 4),
        stage_channels=(5, 7, 11, 13),
        class_names=("cat",),
        category_ids=(17,),
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_zeros_reach_the_target_of_all_parameters(config: ModelConfig) -> None:
    graph = build_graph(config)
    layers = prunable_layers(graph)
    most = sum(graph.layer[name].weights for name in layers) / graph.parameters
    for sparsity in (0.0, 1e-9, 0.1, 1 / 3, 0.6 * most, 0.9 * most, most):
        zeros = uniform_zeros(graph, layers, sparsity)
        assert tuple(zeros) == layers
        needed = sparsity * graph.parameters
        # At least the target, and less than one weight for each layer too many.
        assert needed <= sum(zeros.values()) + 1e-6 < needed + len(layers) + 1
        layer_sparsity = needed / (most * graph.parameters)
        for name, count in zeros.items():
            weights = graph.layer[name].weights
            exact = layer_sparsity * weights
            assert exact - 1e-6 <= count <= min(weights, exact + 2)


def test_the_published_target() -> None:
    graph = build_graph(PRESETS["r101-c4"])
    layers = prunable_layers(graph)
    zeros = sum(uniform_zeros(graph, layers, 0.6).values())
    assert zeros >= 31_675_450  # 60 % of 52,792,416
    assert zeros / 52_792_416 == pytest.approx(0.6, abs=1e-5)
    convolutions = sum(graph.layer[name].weights for name in layers)
    assert zeros / convolutions == pytest.approx(0.61, abs=0.005)


def test_stem_predictors_and_exclusions_stay_dense() -> None:
    graph = build_graph(PRESETS["r50half-c4"])
    dense = {layer.name for layer in graph.layers} - set(prunable_layers(graph))
    assert dense == {"stem.conv", "rpn.objectness", "rpn.deltas", "box.logits", "box.deltas"}
    fewer = prunable_layers(graph, exclude=["res2.0.conv1", "rpn.conv"])
    assert set(prunable_layers(graph)) - set(fewer) == {"res2.0.conv1", "rpn.conv"}
    # With fewer layers to prune, the others have more zeros.
    usual = uniform_zeros(graph, prunable_layers(graph), 0.5)
    raised = uniform_zeros(graph, fewer, 0.5)
    assert all(count > usual[name] for name, count in raised.items())


def test_impossible_requests() -> None:
    graph = build_graph(PRESETS["r50half-c4"])
    with pytest.raises(ValueError, match=r"needs \d+ zeros"):
        uniform_zeros(graph, ["res2.0.conv1"], 0.6)
    with pytest.raises(ValueError, match=r"needs \d+ zeros"):
        uniform_zeros(graph, prunable_layers(graph), 0.9999)
    with pytest.raises(ValueError, match="res9"):
        prunable_layers(graph, exclude=["res9"])
    with pytest.raises(ValueError, match="every prunable layer"):
        prunable_layers(graph, exclude=[layer.name for layer in graph.layers])
