"""What fuzzing found stays fixed; targets run, and their mutators reach past the first check."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest

from fuzz import NAMES
from fuzz.foreign_models import ir_files, place_ir, split_ir
from fuzz.mutate import xml
from fuzz.mutate.trees import MOST_ELEMENTS
from fuzz.targets import TARGETS, seeds
from sparsedet.errors import InputError
from sparsedet.importers import load_foreign

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


def test_changes_of_xml_neither_loop_nor_grow_without_end() -> None:
    """An element that is put into one of its own descendants would be walked through for ever."""
    text = b'<net a="1"><layers b="2"><layer c="3"><data d="4"/></layer></layers></net>'
    for start in range(300):
        data, rng = f"{len(text)}\n".encode() + text, random.Random(start)
        for _ in range(12):
            data = xml(data, rng)
        assert data.count(b"<") <= 2 * MOST_ELEMENTS


@pytest.mark.slow
def test_the_seed_of_openvino_with_computed_weights_is_the_same_network() -> None:
    plain, computed = (split_ir(data) for data in ir_files())
    assert len(computed[0]) > len(plain[0])
    read = [load_foreign(place_ir(*files), "openvino") for files in (plain, computed)]
    assert read[0].config == read[1].config
    for name, tensor in read[0].tensors.items():
        np.testing.assert_array_equal(tensor, read[1].tensors[name])
