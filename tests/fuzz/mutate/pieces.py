"""Files that are pieces in a row: opcodes, lines, entries of an archive, chunks."""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import zipfile
import zlib

from .base import NUMBERS, change_json, damage, knowing, rearrange

WORDS = ("[", "]", "{a: 1}", "- x", "'", '"', "|", "&a", "~")


@knowing
def pickle(data: bytes, rng: random.Random) -> bytes:
    """The opcodes of a pickle: left out, repeated, exchanged, with other arguments."""
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    ops = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    return rearrange(ops, rng, _opcode)


def _opcode(op: bytes, rng: random.Random) -> bytes:
    if rng.randrange(2):
        return op[:1] + damage(op[1:], rng)
    return rng.choice(pickletools.opcodes).code.encode("latin-1") + op


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
def settings(data: bytes, rng: random.Random) -> bytes:
    """Lines of YAML: left out, repeated, exchanged, indented, with other words."""
    if data[:1] in b"{[":
        return json.dumps(change_json(json.loads(data), rng)).encode()
    return rearrange(data.splitlines(keepends=True), rng, _line)


def _line(line: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return b" " * rng.randrange(9) + line.lstrip()
    if kind == 1:
        word = rng.choice((*map(str, NUMBERS), *WORDS))
        return line.split(b":", 1)[0] + b": " + word.encode() + b"\n"
    return damage(line, rng)


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
