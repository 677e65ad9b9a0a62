"""Hostile graphs in model files of version 2: a valid graph with one thing changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.make_model_files import PROVENANCE, TINY, Parts, random_tensors

from sparsedet.model.detector_config import as_detector_config
from sparsedet.model.file import save_model


def operation(values: dict[str, Any], name: str) -> list[Any]:
    found: list[Any] = next(o for o in values["operations"] if o[1] == name)
    return found


def change(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: operation(values, name)[3].update({key: value})


def put(name: str, position: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: operation(values, name).__setitem__(position, value)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "an unknown kind": (put("stem.conv", 0, "exec"), "unknown kind 'exec'"),
    "a kind that is no text": (put("stem.conv", 0, 7), "unknown kind 7"),
    "no name": (put("stem.conv", 1, ""), "has no name"),
    "a name with a control character": (put("stem.conv", 1, "a\x1b"), "has no name"),
    "a name twice": (put("stem.pool", 1, "stem.conv"), "two values 'stem.conv'"),
    "a cycle": (put("stem.conv", 2, ["stem.pool"]), "reads 'stem.pool', which no earlier"),
    "inputs that are no list": (put("stem.conv", 2, "normalise"), "not a list of names"),
    "no inputs": (put("stem.conv", 2, []), "not a list of names"),
    "an unknown attribute": (change("stem.conv", "evil", 1), "unknown attribute 'evil'"),
    "a missing attribute": (lambda v: operation(v, "stem.conv")[3].pop("kernel"), "'kernel' is"),
    "a wrong type": (change("stem.conv", "stride", "2"), "stride is '2', expected int"),
    "a bool for a number": (change("stem.conv", "stride", True), "stride is True"),
    "a huge kernel": (change("stem.conv", "kernel", [1000, 1]), "expected 1..64"),
    "a stride of zero": (change("stem.conv", "stride", 0), "stride is 0, expected 1..2"),
    "many channels": (change("stem.conv", "out_channels", 10**9), "expected 1..65536"),
    "NaN": (change("normalise", "mean", [float("nan"), 0.0, 0.0]), "NaN is not a finite number"),
    "a shape that does not fit": (change("box.logits", "out_channels", 5), "does not fit"),
    "an unknown activation": (change("stem.conv", "activation", "eval"), "expected one of none"),
    "a layer that is shared among outputs": (change("stem.conv", "layers", ["a", "b"]), "one name"),
    "millions of proposals": (change("proposals", "count", 10**9), "expected 1..1e+06"),
    "no operations": (lambda v: v.update(operations=[]), "has no operations"),
    "operations that are no list": (lambda v: v.update(operations={}), "has no operations"),
    "an operation that is no list": (lambda v: v.update(operations=[3]), "not [kind, name"),
    "another output": (lambda v: v.update(outputs=["stem.conv"]), "is not its last operation"),
    "a huge image": (lambda v: v.update(inputs=[["image", 3, 10**6, 16]]), "no image"),
    "two images": (lambda v: v["inputs"].append(["x", 3, 16, 16]), "has not one input"),
    "another key": (lambda v: v.update(code="x"), "unknown or no key 'code'"),
}


def files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> content, and what the refusal says, as a regular expression."""
    path, config = folder / "valid", as_detector_config(TINY)
    save_model(path, config, random_tensors(config, 0.4), PROVENANCE, overwrite=True)
    made = {}
    for case, (edit, text) in HOSTILE.items():
        parts = Parts(path.read_bytes())
        values = json.loads(parts.meta["graph"])
        edit(values)
        parts.meta["graph"] = json.dumps(values)
        made[f"{case}.safetensors"] = parts.join(), re.escape(text)
    return made
