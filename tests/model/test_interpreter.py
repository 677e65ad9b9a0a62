"""The walk over a graph: its order, given values, and how long a value lives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sparsedet.model.c4 import build_graph
from sparsedet.model.graph import IMAGE, Conv, Graph, Normalise, Operation, RoiAlign, Shape
from sparsedet.model.interpreter import Interpreter, walk
from sparsedet.model.presets import PRESETS, preset

CONV = Conv(3, (1, 1), ("layer",))


def graph(**inputs: str) -> Graph:
    """Convolutions by name, with the names of their inputs."""
    operations = [Operation("n", (IMAGE,), Normalise((0, 0, 0), (1, 1, 1)))]
    operations += [Operation(name, tuple(of.split()), CONV) for name, of in inputs.items()]
    return Graph(Shape(IMAGE, 3, 4, 4), tuple(operations))


# a is read twice, the second time as a residual; d leads nowhere.
SMALL = graph(a="n", b="a", c="b a", d="a", e="c")


def walked(
    of: Graph, given: Sequence[str], wanted: Sequence[str], keep: Sequence[str] | None = None
) -> list[str]:
    """Each operation, and what dies after it: "name: dead ones"."""
    return [
        f"{operation.name}: {' '.join(sorted(dead))}".strip()
        for operation, dead in walk(of, given, wanted, keep)
    ]


def test_the_order_is_that_of_the_graph_and_a_value_dies_after_its_last_reader() -> None:
    assert walked(SMALL, [IMAGE], ["e"]) == ["n: image", "a: n", "b:", "c: a b", "e: c"]


def test_wanted_values_live_on_in_any_order_of_asking() -> None:
    lines = ["n: image", "a: n", "b:", "c: b", "e: c"]
    assert walked(SMALL, [IMAGE], ["e", "a"]) == walked(SMALL, [IMAGE], ["a", "e"]) == lines


def test_only_what_leads_to_the_wanted_values_runs() -> None:
    assert walked(SMALL, [IMAGE], ["d"]) == ["n: image", "a: n", "d: a"]
    assert walked(SMALL, [IMAGE], []) == []


def test_given_values_cut_the_walk() -> None:
    assert walked(SMALL, ["a"], ["e"]) == ["b:", "c: a b", "e: c"]
    assert walked(SMALL, ["b", "a"], ["c"]) == ["c: a b"]
    # The image is still needed by nothing: a is given, so n does not run.
    assert walked(SMALL, [IMAGE, "a"], ["b"]) == ["b: a"]
    assert walked(SMALL, ["e"], ["e"]) == []
    assert walked(SMALL, ["c"], ["c", "e"]) == ["e:"]


def test_with_nothing_kept_every_value_dies_after_its_last_use() -> None:
    lines = ["n: image", "a: n", "b:", "c: b", "d: a d", "e: c e"]
    assert walked(SMALL, [IMAGE], ["d", "e"], keep=()) == lines
    assert walked(SMALL, [IMAGE], ["a", "b"], keep=()) == ["n: image", "a: n", "b: a b"]


@pytest.mark.parametrize("wanted", ["x", IMAGE])
def test_unknown_values(wanted: str) -> None:
    with pytest.raises(KeyError, match=wanted):
        list(walk(SMALL, ["a"], [wanted]))


def test_an_image_that_is_needed_and_not_given() -> None:
    with pytest.raises(KeyError, match=IMAGE):
        list(walk(SMALL, ["b"], ["c"]))


@pytest.mark.parametrize("name", PRESETS)
def test_values_of_a_detector_die_once_and_only_after_all_readers(name: str) -> None:
    of = build_graph(preset(name))
    live, most = {IMAGE}, 0
    ended: set[str] = set()
    for operation, dead in walk(of, [IMAGE], [of.output]):
        assert live >= set(operation.inputs)
        live.add(operation.name)
        most = max(most, len(live))
        for value in dead:
            assert all(reader.name in live | ended for reader in of.readers[value])
        assert not ended & set(dead)
        ended |= set(dead)
        live -= set(dead)
    assert live == {of.output}
    # Feature map, boxes and image wait for the RoI head; a block has its input and one path.
    assert most <= 7


def test_a_walk_that_begins_in_the_middle_needs_no_image() -> None:
    of = build_graph(preset("r50half-c4"))
    align = of.only(RoiAlign)[0]
    after = [o.name for o, _ in walk(of, [*align.inputs, IMAGE], [of.output])]
    assert after[0] == align.name and len(after) == len(of.operations) - of.operations.index(align)


class Adder(Interpreter[int]):
    """A convolution adds its inputs and one; records what it ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def normalise(self, operation: Operation, image: int) -> int:
        self.ran.append(operation.name)
        return image

    def conv(self, operation: Operation, x: int, residual: int = 0) -> int:
        self.ran.append(operation.name)
        return x + residual + 1


def test_an_interpreter_runs_the_walk_and_takes_dead_values_out() -> None:
    adder, values = Adder(), {IMAGE: 10}
    assert adder.run(SMALL, values, ["e", "b"]) == [25, 12]
    assert adder.ran == ["n", "a", "b", "c", "e"]
    assert values == {"e": 25, "b": 12}
    values = {"a": 5, "unused": 7}
    assert Adder().run(SMALL, values, ["d"]) == [6]
    assert values == {"unused": 7, "d": 6}  # nobody could say when it is not needed


def test_the_same_value_may_be_wanted_twice_and_given_values_are_answers() -> None:
    assert Adder().run(SMALL, {"a": 1}, ["b", "b", "a"]) == [2, 2, 1]
