"""Work that overlaps: order, bounds, errors in their place, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sparsedet.sources.ahead import map_ahead, map_in_order, read_ahead


def slow_for_even(number: int) -> int:
    time.sleep(0.01 * (number % 2 == 0))
    return number * number


Mapper = Callable[..., Iterator[tuple[int, int]]]
MAPPERS: list[Mapper] = [
    lambda function, items, workers: map_in_order(function, items, workers),
    lambda function, items, workers: map_ahead(function, items, workers, 4),
]


@pytest.mark.parametrize("mapper", MAPPERS)
@pytest.mark.parametrize("workers", [1, 3])
def test_results_keep_the_order(mapper: Mapper, workers: int) -> None:
    results = list(mapper(slow_for_even, range(20), workers))
    assert results == [(number, number * number) for number in range(20)]


@pytest.mark.parametrize("mapper", MAPPERS)
def test_no_more_is_read_than_the_bound(mapper: Mapper) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = mapper(lambda number: number, items(), 1)
    next(results)
    time.sleep(0.1)
    assert len(taken) <= 7
    results.close()  # type: ignore[attr-defined]


def test_an_error_is_raised_in_its_place_and_the_thread_ends() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("three")

    before = threading.active_count()
    got: list[Any] = []
    with pytest.raises(ValueError, match="three"):
        for item in read_ahead(items(), 2):
            got.append(item)
    assert got == [1, 2]
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before  # those of other tests end meanwhile


def test_a_result_comes_as_soon_as_it_is_there() -> None:
    """Although the next item never comes, as from a slow camera."""
    more = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        more.wait(10)

    start = time.monotonic()
    results = map_ahead(lambda number: number + 1, items(), 1, 4)
    assert next(results) == (1, 2) and time.monotonic() - start < 5
    more.set()
    assert list(results) == []
