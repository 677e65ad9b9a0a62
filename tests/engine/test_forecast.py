"""The forecast of a detection's time, from the graph alone."""

from __future__ import annotations

import pytest

from sparsedet._native import fraction_of_peak
from sparsedet.engine.forecast import SPARSE_FIXED, SPARSE_RATE, forecast, prunable_share
from sparsedet.model.detector_config import build_graph
from sparsedet.model.graph import IMAGE, Conv, Graph, Normalise, Operation, Shape
from sparsedet.model.presets import preset

NORMALISE = Operation("n", (IMAGE,), Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


def graph(*convs: tuple[str, str, Conv]) -> Graph:
    operations = [NORMALISE, *(Operation(name, (source,), c) for name, source, c in convs)]
    return Graph(Shape("image", 3, 100, 200), tuple(operations))


def conv(layer: str, out: int, *, prunable: bool = True, groups: int = 1) -> Conv:
    side = (1, 1, 1, 1)
    return Conv(out, (3, 3), (layer,), padding=side, prunable=prunable, groups=groups)


def test_a_convolution_takes_its_multiplications_at_the_rate_of_its_algorithm() -> None:
    wide = graph(("a", "n", conv("a", 64)), ("b", "a", conv("b", 64)))
    narrow = graph(("a", "n", conv("a", 64)))
    work = 2e-9 * 64 * 64 * 9 * 100 * 200
    for zeros in (0.5, 0.9, 0.97):
        taken = forecast(wide, zeros, peak=100) - forecast(narrow, zeros, peak=100)
        density = 1 - zeros
        expected = work / 100 * (density + SPARSE_FIXED) / SPARSE_RATE
        assert taken == pytest.approx(expected)
    dense = forecast(wide, 0.0, peak=100) - forecast(narrow, 0.0, peak=100)
    assert dense == pytest.approx(work / (100 * fraction_of_peak("dense", "f32", 1)))
    assert forecast(wide, 0.9, peak=200) < forecast(wide, 0.9, peak=100)


def test_zeros_help_only_where_they_are() -> None:
    mixed = graph(("a", "n", conv("a", 64, prunable=False)), ("b", "a", conv("b", 64)))
    assert forecast(mixed, {"b": 0.9}, peak=100) == pytest.approx(forecast(mixed, 0.9, peak=100))
    assert forecast(mixed, {"a": 0.9}, peak=100) < forecast(mixed, {}, peak=100)
    assert forecast(mixed, {}, peak=100) == forecast(mixed, 0.0, peak=100)
    # Of bfloat16 only pairs that are zero as a whole are skipped.
    gain = {p: forecast(mixed, 0, peak=100, precision=p) for p in ("f32", "bf16")}
    gain = {p: s / forecast(mixed, 0.8, peak=100, precision=p) for p, s in gain.items()}
    assert gain["bf16"] < gain["f32"]


def test_a_matrix_unit_is_dense_until_enough_is_zero() -> None:
    wide = graph(("a", "n", conv("a", 64)), ("b", "a", conv("b", 64)))

    def seconds(zeros: float, matrix_peak: float) -> float:
        return forecast(wide, zeros, peak=100, matrix_peak=matrix_peak, precision="bf16")

    dense = seconds(0.0, 1600)
    assert dense < seconds(0.0, 0) / 4  # half of sixteen times the rate, but for moved memory
    assert seconds(0.6, 1600) == pytest.approx(dense)
    assert seconds(0.6, 100) == pytest.approx(seconds(0.6, 0))  # a unit that is slower


def test_depthwise_convolutions_gain_nothing() -> None:
    deep = graph(("a", "n", conv("a", 64)), ("b", "a", conv("b", 64, groups=64)))
    flat = graph(("a", "n", conv("a", 64)))
    taken = [forecast(deep, z, peak=100) - forecast(flat, z, peak=100) for z in (0.0, 0.9)]
    assert taken[0] == pytest.approx(taken[1]) and taken[0] > 0


def test_the_share_of_prunable_layers_counts_all_levels_of_a_layer() -> None:
    twice = graph(
        ("a", "n", conv("a", 64, prunable=False)),
        ("b", "a", conv("b", 64)),
        ("c", "b", conv("b", 64)),
    )
    first, second = 3 * 64 * 9, 64 * 64 * 9
    share = prunable_share(twice, 0, {"a": 7, "b": 64 * 64})
    assert share.parameters == second / (first + second + 128)
    assert share.multiplications == 2 * second / (first + 2 * second)
    assert share.zeros == pytest.approx(1 / 9)
    assert prunable_share(twice, 0).zeros is None


def test_fewer_regions_take_less() -> None:
    network = build_graph(preset("r101-c4"))
    few, many = (forecast(network, 0.6, peak=100, rois=rois) for rois in (10, 300))
    assert few < many == forecast(network, 0.6, peak=100)
