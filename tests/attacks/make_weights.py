"""Hostile weights: pickles that would run code, take memory or recurse; in ZIP files, too."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class EvilCall:
    """What a pickle calls when it is loaded, if it may."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


MARKER = "an_attack_ran"
"""The file that an attack makes in the current folder, if its code runs."""


def hostile() -> list[tuple[bytes, str]]:
    command = f"touch {MARKER}"
    inside = {"model": {"backbone.res2.0.conv1.weight": EvilCall(os.system, command)}}
    text = b"cos\nsystem\n(S'" + command.encode() + b"'\ntR."
    return [
        (pickle.dumps(inside), r"wants (posix|nt)\.system"),
        (pickle.dumps(EvilCall(eval, "1 + 1")), r"wants builtins\.eval"),
        (pickle.dumps(EvilCall(getattr, "x", "upper")), r"wants builtins\.getattr"),
        (pickle.dumps(Path("x")), "holds Inert, expected a dict"),  # read, and no Path is made
        (b"\x80\x02" + text, r"wants os\.system"),
        (b"\x80\x02(i" + b"os\nsystem\n.", r"wants os\.system"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct.__globals__\n.", "wants numpy"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.", r"wants numpy\.load"),
        (b"\x80\x04\x8c\x0ctorch._utils\x8c\x0c__builtins__\x93.", r"wants torch\._utils"),
        (b"\x80\x02c\x1b[31m\nred\n.", r"wants '\\x1b\[31m\.red'"),  # no colours for terminals
        (b"\x80\x02\x82\x01.", "registered extension 1"),
        (b"\x80\x02K\x01Q.", "refers to something outside"),
        (pickle.dumps({"model": {"w": np.array([None])}}), "type 'O8'"),
        (pickle.dumps({"model": {"w": np.array(["a"])}}), "type 'U1'"),
        # An index that asks for 32 GiB of memo entries, lengths, a dict that holds itself.
        (b"\x80\x02Nr\xff\xff\xff\xff.", "holds NoneType"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", "damaged or truncated pickle"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 38) + b"ab.", "damaged or truncated pickle"),
        (b"\x80\x02}q\x01X\x01\x00\x00\x00ah\x01s.", "too deeply nested"),
        (b"\x80\x02}X\x01\x00\x00\x00a]q\x01(" + b"h\x01" * 9 + b"es.", "too many values"),
    ]


def files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> content, and what the refusal says, as a regular expression."""
    made = {}
    for number, (data, message) in enumerate(hostile()):
        made[f"{number:02}.pkl"] = data, message
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(zipfile.ZipInfo("evil/data.pkl"), data)
        text = "refused|damaged|holds (too many|NoneType|Inert)|type '"
        made[f"{number:02}.pth"] = archive.getvalue(), text
    return made


def arrays(folder: Path) -> dict[str, tuple[bytes, str]]:
    """The same of .npz files: headers of arrays that lie."""
    made = {}
    for name, header, message in (
        ("an object", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "."),
        ("gigantic", "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", "."),
        ("negative", "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "."),
        ("no header", "{", "."),
        ("code", "__import__('os').system('touch an_attack_ran')", "."),
        ("nested", "(" * 900, "."),
    ):
        text = (header + "\n").encode()
        data = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(4)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(zipfile.ZipInfo("rpn/conv0/W.npy"), data)
        made[f"{name}.npz"] = archive.getvalue(), message
    return made
