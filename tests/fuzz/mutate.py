"""Mutators that know a format: what they make still opens, and is wrong further inside.

Bytes that are flipped at random fail at the first check of a reader. Each mutator here takes a file
apart, changes one of its parts and puts it together again, with its lengths and checksums right;
one time in eight it damages the bytes of the whole instead.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from sparsedet.engine import packed_cache

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


@knowing
def pickle(data: bytes, rng: random.Random) -> bytes:
    """The opcodes of a pickle: left out, repeated, exchanged, with other arguments."""
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    ops = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(ops)), rng.randrange(len(ops))
        kind = rng.randrange(5)
        if kind == 0 and len(ops) > 1:
            del ops[at]
        elif kind == 1:
            ops.insert(at, ops[other])
        elif kind == 2:
            ops[at], ops[other] = ops[other], ops[at]
        elif kind == 3:
            ops[at] = ops[at][:1] + damage(ops[at][1:], rng)
        else:
            ops.insert(at, rng.choice(pickletools.opcodes).code.encode("latin-1"))
    return b"".join(ops)


@knowing
def archive(data: bytes, rng: random.Random) -> bytes:
    """An entry of a ZIP file: a pickle, a .npy, or bytes; and entries left out or renamed."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = [(info, old.read(info)) for info in old.infolist() if info.file_size < 1 << 20]
    at = rng.randrange(len(entries))
    info, content = entries[at]
    kind = rng.randrange(10)
    if kind == 0:
        del entries[at]
    elif kind == 1:
        info.filename = damage(info.filename.encode(), rng).decode("latin-1")
    elif kind == 2:
        entries.append(entries[at])
    elif info.filename.endswith(".pkl"):
        entries[at] = info, pickle(content, rng)
    elif info.filename.endswith(".npy"):
        entries[at] = info, _npy(content, rng)
    else:
        entries[at] = info, damage(content, rng)
    if rng.randrange(4):  # in a checkpoint of PyTorch most is in the pickle
        for i, (entry, inner) in enumerate(entries):
            if entry.filename.endswith(".pkl"):
                entries[i] = entry, pickle(inner, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for entry, inner in entries:
            named = zipfile.ZipInfo(entry.filename)  # a name alone would bring today's date
            new.writestr(named, inner, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def _npy(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + length].decode("latin-1")
    words = list(re.finditer(r"\d+|'[^']*'|True|False", text))
    word = rng.choice(words)
    new = rng.choice((*map(str, NUMBERS), "'<f8'", "'|O'", "'<f2'", "'<M8'", "True", "()", "'x'"))
    text = text[: word.start()] + new + text[word.end() :]
    return data[:8] + len(text).to_bytes(2, "little") + text.encode("latin-1") + data[10 + length :]


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
        elif kind == 1:
            parent.append(child)
        elif kind == 2:
            rng.choice(parents).append(child)
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
        if len(list(root.iter())) > 20_000:
            break
    text = ElementTree.tostring(root)
    return f"{len(text)}\n".encode() + text + rest[length:]


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


@knowing
def settings(data: bytes, rng: random.Random) -> bytes:
    """Lines of YAML: left out, repeated, exchanged, indented, with other words."""
    if data[:1] in b"{[":
        return json.dumps(change_json(json.loads(data), rng)).encode()
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(7)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(other, lines[at])
        elif kind == 2:
            lines[at] = b" " * rng.randrange(9) + lines[at].lstrip()
        elif kind == 3:
            words = lines[at].split(b":", 1)
            word = rng.choice(
                (*map(str, NUMBERS), "[", "]", "{a: 1}", "- x", "'", '"', "|", "&a", "~")
            )
            lines[at] = words[0] + b": " + word.encode()
        else:
            lines[at] = damage(lines[at], rng)
    return b"\n".join(lines)


@knowing
def picture(data: bytes, rng: random.Random) -> bytes:
    """The chunks of a PNG, with their checksums made anew; of another image mostly its headers."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        most = rng.choice((64, 700, len(data)))
        return damage(data[:most], rng) + data[most:]
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    name, content = chunks[place]
    kind = rng.randrange(6)
    if kind == 0:
        del chunks[place]
    elif kind == 1:
        chunks.insert(rng.randrange(len(chunks)), chunks[place])
    elif kind == 2 and name == b"IDAT":
        chunks[place] = name, zlib.compress(damage(zlib.decompress(content), rng))
    else:
        chunks[place] = name, damage(content, rng)
    out = [data[:8]]
    for name, content in chunks:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        out += [len(content).to_bytes(4, "big"), name, content, check]
    return b"".join(out)
