"""What fuzzing found stays fixed; targets run, and their mutators reach past the first check."""

from __future__ import annotations

import random
import warnings

import pytest

from fuzz import NAMES
from fuzz.targets import TARGETS, seeds
from sparsedet.errors import InputError

SLOW = ("openvino_ir",)
"""Targets whose seeds alone take seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NAMES]
)
def test_seeds_and_changed_seeds_are_read_or_refused_in_one_line(name: str) -> None:
    target, rng = TARGETS[name], random.Random(1)
    read = refused = 0
    files = list(seeds(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in [*files, *(target.mutate(rng.choice(files), rng) for _ in range(60))]:
            try:
                target.run(data)
                read += 1
            except InputError as error:
                assert str(error) and "\n" not in str(error)
                refused += 1
    assert read and refused


@pytest.mark.parametrize("name", ["kserve", "settings", "coco", "packed"])
def test_changes_are_the_same_from_the_same_number(name: str) -> None:
    data = next(iter(TARGETS[name].seeds()))
    made = [TARGETS[name].mutate(data, random.Random(n)) for n in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
