"""Messages of protobuf."""

from __future__ import annotations

import random
from typing import Any

from .base import BYTES, NUMBERS, damage, knowing


@knowing
def protobuf(data: bytes, rng: random.Random) -> bytes:
    """The fields of a message, at any depth, with the lengths around them made anew."""
    return _join(_change_fields(_fields(data), rng))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("too long")


def _fields(data: bytes) -> list[tuple[int, int, Any]]:
    """(number, wire type, value) of each field; ValueError or IndexError if it is no message."""
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: Any
        if number == 0 or wire not in (0, 1, 2, 5):
            raise ValueError("no message")
        if wire == 0:
            value, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(wire, -1)
            if length < 0:
                length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("no message")
            value, at = data[at : at + length], at + length
        found.append((number, wire, value))
    return found


def _join(fields: list[tuple[int, int, Any]]) -> bytes:
    out = bytearray()

    def put(value: int) -> None:
        value &= (1 << 64) - 1
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)

    for number, wire, value in fields:
        put(number << 3 | wire)
        if wire == 0:
            put(value)
        else:
            if wire == 2:
                put(len(value))
            out.extend(value)
    return bytes(out)


def _change_fields(fields: list[tuple[int, int, Any]], rng: random.Random) -> Any:
    """One field changed, mostly one far inside."""
    if not fields:
        return [(rng.randint(1, 30), 0, rng.choice(BYTES))]
    at = rng.randrange(len(fields))
    number, wire, value = fields[at]
    if wire == 2 and rng.randrange(4):
        try:
            inner = _fields(value)
        except (ValueError, IndexError):
            inner = []
        if inner:
            fields[at] = number, wire, _join(_change_fields(inner, rng))
            return fields
    kind = rng.randrange(6)
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif kind == 2:
        other = rng.randrange(len(fields))
        fields[at], fields[other] = fields[other], fields[at]
    elif wire == 0:
        fields[at] = number, wire, rng.choice([n for n in NUMBERS if isinstance(n, int)])
    elif wire == 2:
        fields[at] = number, wire, damage(value, rng)
    else:
        fields[at] = number, wire, rng.randbytes(len(value))
    return fields
