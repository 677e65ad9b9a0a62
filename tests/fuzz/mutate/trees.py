"""Files with JSON or XML in them."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from xml.etree import ElementTree

from sparsedet.engine import packed_cache

from .base import BYTES, NUMBERS, change_json, knowing


@knowing
def json_text(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(change_json(json.loads(data), rng)).encode()


@knowing
def safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header, also inside of the JSON texts in its metadata, or the values of tensors."""
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.get("__metadata__", {})
    inner = [key for key, text in metadata.items() if text[:1] in "{["]
    kind = rng.randrange(8)
    if kind < 5 and inner:
        key = rng.choice(inner)
        metadata[key] = json.dumps(change_json(json.loads(metadata[key]), rng))
    elif kind < 7:
        header = change_json(header, rng)
    elif values:
        at = 2 * rng.randrange(len(values) // 2 or 1)
        special = rng.choice((0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0x0001, 0x8000))
        values = values[:at] + struct.pack("<H", special) + values[at + 2 :]
        values = values[: len(data) - 8 - length]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


@knowing
def packed(data: bytes, rng: random.Random) -> bytes:
    """The table of a file of packed weights, with its digest made anew."""
    magic, offset, length, _ = packed_cache._START.unpack_from(data)
    table = json.dumps(change_json(json.loads(data[offset : offset + length]), rng)).encode()
    digest = hashlib.sha256(table).digest()
    start = packed_cache._START.pack(magic, offset, len(table), digest)
    return start + data[len(start) : offset] + table


@knowing
def request(data: bytes, rng: random.Random) -> bytes:
    """A request of tensors: the length of its JSON in a line, JSON, binary data."""
    line, _, body = data.partition(b"\n")
    length = int(line or len(body))
    text = json.dumps(change_json(json.loads(body[:length]), rng)).encode()
    shown = (rng.choice(BYTES) if rng.randrange(8) == 0 else len(text)) if line else ""
    return f"{shown}\n".encode() + text + body[length:]


MOST_ELEMENTS = 20_000
"""Of an XML after changes: copies of copies grow without end."""


@knowing
def xml(data: bytes, rng: random.Random) -> bytes:
    """Elements and attributes: left out, repeated, exchanged, with other values.

    It is for a file with a line before the XML that says how many bytes of it there are; weights
    follow.
    """
    line, _, rest = data.partition(b"\n")
    length = int(line)
    root = ElementTree.fromstring(rest[:length])
    for _ in range(rng.randint(1, 3)):
        parents = [element for element in root.iter() if len(element)]
        parent = rng.choice(parents)
        child = rng.choice(list(parent))
        kind = rng.randrange(8)
        if kind == 0:
            parent.remove(child)
        elif kind < 3:
            where = parent if kind == 1 else rng.choice(parents)
            if sum(1 for tree in (root, child) for _ in tree.iter()) <= MOST_ELEMENTS:
                # A copy: an element inside of itself would be walked through for ever.
                where.append(copy.deepcopy(child))
        else:
            having = [element for element in root.iter() if element.attrib]
            element, other = rng.choice(having), rng.choice(having)
            key = rng.choice(list(element.attrib))
            if kind < 5:
                element.attrib[key] = rng.choice(list(other.attrib.values()))
            elif kind < 7:
                element.attrib[key] = str(rng.choice(NUMBERS))
            else:
                del element.attrib[key]
    text = ElementTree.tostring(root)
    return f"{len(text)}\n".encode() + text + rest[length:]
