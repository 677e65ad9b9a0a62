"""Damage at random, and what the mutators share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 8, 15, 16, 17, 64, 255, 256, 1000, 8192, 65536, 65537, 1 << 20),
    *(2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-45, 3e38, 1e39, 1e300, 1e308),
)
OTHERS: tuple[Any, ...] = (None, True, False, "", "x", "\0", "é", [], {}, [[]], "a" * 300, "../x")
BYTES = (0, 1, 2, 4, 8, 16, 32, 64, 127, 128, 254, 255)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, left out, repeated, moved or inserted, in one to four places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 1, 2, 4, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice(BYTES)
        elif kind == 2:
            del out[at:end]
        elif kind == 3:
            out[at:at] = out[at:end]
        elif kind == 4:
            other = rng.randrange(len(out) + 1)
            out[at:end] = out[other : other + end - at]
        else:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
    return bytes(out)


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    """(container, key) of all values of a JSON tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            _places(inner, found)


def change_json(value: Any, rng: random.Random) -> Any:
    """A JSON tree with one to three values changed, left out, repeated or exchanged."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        found: list[tuple[Any, Any]] = []
        if isinstance(value, dict | list):
            _places(value, found)
        if not found:
            return rng.choice(OTHERS)
        holder, key = rng.choice(found)
        old = holder[key]
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, old)
        elif kind == 1:
            holder[f"{key}x"] = holder.pop(key)
        elif kind == 2:
            other, name = rng.choice(found)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = json.loads(json.dumps(other[name]))
        elif kind == 3:
            holder[key] = rng.choice(OTHERS)
        elif kind == 4 and isinstance(old, str):
            holder[key] = damage(old.encode(), rng).decode("utf-8", "replace")
        elif isinstance(old, int | float) and kind < 7:
            holder[key] = old + rng.choice((1, -1, 2, 0.5, old))
        else:
            holder[key] = rng.choice(NUMBERS)
    return value


def knowing(change: Mutator) -> Mutator:
    """A mutator that damages bytes one time in eight, and where the file does not open."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.randrange(8):
            try:
                return change(data, rng)
            except Exception:  # what was damaged before is no file of this format any more
                pass
        return damage(data, rng)

    return mutate


def rearrange(
    pieces: list[bytes], rng: random.Random, change: Callable[[bytes, random.Random], bytes]
) -> bytes:
    """Pieces together, after one to three of: one left out, repeated, exchanged, changed."""
    pieces = list(pieces)
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        kind = rng.randrange(6)
        if kind == 0 and len(pieces) > 1:
            del pieces[at]
        elif kind == 1:
            pieces.insert(other, pieces[at])
        elif kind == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        else:
            pieces[at] = change(pieces[at], rng)
    return b"".join(pieces)
