"""Configurations from hostile metadata: each bad value is refused by the name of its field."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from sparsedet.model.config import _RANGES, ModelConfig
from sparsedet.model.presets import PRESETS, preset

R101 = PRESETS["r101-c4"]
NAN, INF = float("nan"), float("inf")
VALUES = R101.to_dict()


def refused(field: str, value: Any) -> str:
    """The message with which `field: value` is refused; it is one line that names the field."""
    with pytest.raises(ValueError) as error:
        ModelConfig.from_dict({**VALUES, field: value})
    message = str(error.value)
    assert field in message and "expected" in message and "\n" not in message
    assert len(message) < 300
    return message


# ------------------------------------------------------------------------- types


# A value of every JSON kind; which of them a field takes depends on its default.
KINDS: list[Any] = [None, True, 3, 2.5, "3", [], {}, [3], ["3", "3"], [[3]], [None] * 4, [True] * 4]


@pytest.mark.parametrize("field", VALUES)
@pytest.mark.parametrize("value", KINDS, ids=repr)
def test_values_of_another_type_are_refused(field: str, value: Any) -> None:
    own = VALUES[field]
    fitting = (
        (type(value) is type(own) and not isinstance(own, tuple))
        or (isinstance(own, float) and type(value) is int)
        or (value == [3] and field in ("anchor_sizes", "anchor_ratios"))
        or (value is None and field == "cell_anchors")
    )
    if not fitting:
        refused(field, value)


@pytest.mark.parametrize("field", [f for f in VALUES if isinstance(VALUES[f], tuple)])
def test_lists_of_another_length_are_refused(field: str) -> None:
    own = list(VALUES[field])
    if field not in ("anchor_sizes", "anchor_ratios", "class_names"):  # any length but 0
        refused(field, own[:-1])
        refused(field, [*own, own[0]])
    refused(field, [])
    refused(field, "".join(map(str, own)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blocks", [3, 4, 23, 3.0]),
        ("pixel_mean", [103.53, 116.28]),
        ("box_weights", [10, 5]),
        ("stem_padding", [3]),
        ("cell_anchors", [[1, 2]]),
        ("cell_anchors", [1, 2, 3, 4]),
        ("cell_anchors", [[1, 2, 3, "4"]]),
        ("category_ids", "1" * 80),
        ("category_ids", [str(i) for i in range(80)]),
        ("class_names", list(range(80))),
        ("name", 5),
        ("resize", ["letterbox"]),
        ("stride_in", None),
        ("proposals", 300.0),
    ],
)
def test_types_seen_in_hostile_files(field: str, value: Any) -> None:
    refused(field, value)


# ------------------------------------------------------------------------- ranges


def changed(own: Any, number: Any) -> Any:
    """`own` with its first number replaced."""
    return [number, *own[1:]] if isinstance(own, tuple) else number


def test_every_number_has_a_range() -> None:
    numeric = set()
    for field, value in VALUES.items():
        first = value[0] if isinstance(value, tuple) else value
        if isinstance(first, int | float) and not isinstance(first, bool):
            numeric.add(field)
    assert set(_RANGES) == numeric | {"cell_anchors"}


@pytest.mark.parametrize("field", sorted(set(_RANGES) - {"cell_anchors"}))
def test_numbers_out_of_range_are_refused(field: str) -> None:
    own = VALUES[field]
    whole = isinstance(own[0] if isinstance(own, tuple) else own, int)
    bad = [-(10**12), 10**400] if whole else [NAN, INF, -INF, -1e30, 1e30, 10**400]
    if field != "category_ids":
        bad.append(10**12)
    low, high = _RANGES[field]
    step = 1 if whole else 1e-3
    for number in [*bad, low - step, int(high) + 1]:
        refused(field, changed(own, number))


@pytest.mark.parametrize(
    "field",
    [
        "pixel_std",
        "anchor_sizes",
        "anchor_ratios",
        "box_weights",
        "rpn_box_weights",
        "proposals",
        "stem_channels",
    ],
)
def test_zero_is_no_size(field: str) -> None:
    refused(field, changed(VALUES[field], 0))


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("cell_anchors", [], "cell_anchors"),
        ("cell_anchors", [[0, 0, 8, 8], [0, NAN, 8, 8]], "cell_anchors"),
        ("cell_anchors", [[0, 0, 1e30, 8]], "cell_anchors"),
        ("cell_anchors", [[8, 0, 8, 8]], "x0 < x1"),
        ("cell_anchors", [[0, 8, 8, 0]], "y0 < y1"),
        ("anchor_sizes", [8.0] * 400, "1000 anchors"),
        ("roi_size", 7, "even"),
        ("stride_conv1_padding", [-1, 0], r"\(0, -1\)"),
        ("stride_conv2_padding", [1, 1], "sum 1"),  # the shortcut would have another size
        ("name", "", "printable"),
        ("name", "\x1b[2J", "printable"),
        ("class_names", ["a\nb"] + [f"c{i}" for i in range(79)], "printable"),
        ("class_names", ["cat"] * 80, "twice"),
        ("category_ids", [1] * 80, "twice"),
        ("category_ids", [1, 2], "80 ids"),
        ("class_names", ["cat"], "1 ids"),
        ("resize", "crop", "'letterbox' or 'stretch'"),
        ("stride_in", "conv3", "'conv1' or 'conv2'"),
        ("background", "none", "'first' or 'last'"),
    ],
)
def test_senseless_values_are_refused(field: str, value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        ModelConfig.from_dict({**VALUES, field: value})


def test_a_hand_written_configuration_is_checked_too() -> None:
    for changes in (
        {"resize": "crop"},
        {"blocks": (0, 1, 1, 1)},
        {"batch_norm_eps": NAN},
        {"class_names": ("a", "a"), "category_ids": (1, 2)},
    ):
        with pytest.raises(ValueError, match=next(iter(changes))):
            replace(R101, **changes)


# ----------------------------------------------------------------- what is accepted


@pytest.mark.parametrize("name", PRESETS)
def test_the_ends_of_the_ranges_are_accepted(name: str) -> None:
    values = preset(name).to_dict()
    for field in set(_RANGES) - {
        "cell_anchors",
        "category_ids",
        "stride_conv1_padding",
        "stride_conv2_padding",
    }:
        for number in _RANGES[field]:
            kind = type(values[field][0] if isinstance(values[field], tuple) else values[field])
            value = changed(values[field], kind(number))
            again = ModelConfig.from_dict({**values, field: value})
            assert json.loads(json.dumps(again.to_dict()))[field] == value


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    values = json.loads(json.dumps({**VALUES, "cell_anchors": [[-8, -8, 8, 8]]}))
    values["pixel_std"] = [1, 1, 1]
    config = ModelConfig.from_dict(values)
    assert config.cell_anchors == ((-8.0, -8.0, 8.0, 8.0),)
    for field in fields(ModelConfig):
        value = getattr(config, field.name)
        assert not isinstance(value, list)
        if isinstance(value, tuple):
            assert len({type(v) for v in value}) == 1
    assert {type(v) for v in config.pixel_std} == {float}
    assert isinstance(config.cell_anchors[0], tuple) and type(config.cell_anchors[0][0]) is float
