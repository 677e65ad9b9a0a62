"""Records are as frozen dataclasses are."""

from __future__ import annotations

import pickle
import sys
from dataclasses import FrozenInstanceError, dataclass, fields, make_dataclass, replace
from typing import Any

import pytest

from sparsedet.model.presets import preset
from sparsedet.model.record import Record


def kinds() -> list[type]:
    """All records; of a class with slots the one that its module has, not the one before it."""
    found = Record.__subclasses__()
    return [kind for kind in found if getattr(sys.modules[kind.__module__], kind.__name__) is kind]


def made(kind: type, values: dict[str, Any]) -> Any:
    """An object of a kind with these values, unchecked."""
    record: Any = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(record, name, value)
    return record


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_each_kind_compares_and_shows_all_its_fields(kind: type) -> None:
    names = [field.name for field in fields(kind)]
    values = {name: number for number, name in enumerate(names)}
    plain = make_dataclass(kind.__qualname__, names, frozen=True)(**values)
    record = made(kind, values)
    assert repr(record) == repr(plain) and hash(record) == hash(plain)
    assert record == made(kind, values)
    for name in names:
        other = made(kind, {**values, name: -1})
        assert record != other and hash(record) != hash(other), name
    assert record.named_values() == values


def test_records_of_two_kinds_differ() -> None:
    @dataclass(frozen=True, slots=True, eq=False, repr=False)
    class One(Record):
        value: int

    @dataclass(frozen=True, slots=True, eq=False, repr=False)
    class Two(Record):
        value: int

    pair: tuple[object, object] = One(1), Two(1)
    assert pair[0] != pair[1] and One(1) != (1,)


def test_they_are_frozen_replaced_and_pickled() -> None:
    config = preset("r50half-c4")
    with pytest.raises(FrozenInstanceError):
        config.name = "other"  # type: ignore[misc]
    other = replace(config, proposals=config.proposals + 1)
    assert other != config and replace(other, proposals=config.proposals) == config
    assert pickle.loads(pickle.dumps(config)) == config
