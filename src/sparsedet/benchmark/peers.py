"""The other runtimes that models are measured against: this package's own backends, by name.

Static shapes, and settings for the latency of one image or for several images at once. Nothing is
timed here.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from .._native import has_bfloat16
from ..backends import BACKENDS, Backend, build_backend
from ..errors import UsageError
from ..model.file import ModelFile

PEERS: dict[str, tuple[str, str]] = {
    "openvino-f32": ("openvino", "f32"),
    "openvino-bf16": ("openvino", "bf16"),
    "openvino-default": ("openvino", "dynamic"),
    "onnxruntime": ("onnxruntime", "f32"),
    "torch": ("torch", "f32"),
}
"""Name -> backend, and the precision of its convolutions and matrix products; "dynamic": what
OpenVINO takes by itself."""


def installed(name: str) -> bool:
    """Whether the package of a peer is installed."""
    return find_spec(PEERS[name][0]) is not None


def usual_peers() -> list[str]:
    """The peers that people have: those installed, and OpenVINO's default where it is not f32."""
    names = ["openvino-f32", "openvino-default", "onnxruntime", "torch"]
    if not has_bfloat16(""):
        names.remove("openvino-default")
    return [name for name in names if installed(name)]


def open_peer(
    name: str, model: ModelFile, threads: int, streams: int = 1, **settings: Any
) -> Backend:
    """A peer, ready to run a model.

    Args:
        name: key of `PEERS`.
        threads: CPU threads of each stream.
        streams: images that run at once, by `Backend.fork`.
        settings: of OpenVINO's CPU plugin.

    Raises:
        UsageError: there is no such peer.
        InputError: its package is not installed.
    """
    if name not in PEERS:
        raise UsageError(f"peer is {name!r}, expected one of {', '.join(PEERS)}")
    backend, precision = PEERS[name]
    if backend != "openvino" or not installed(name):
        return build_backend(backend, model, threads=threads, streams=streams, precision=precision)
    from ..backends import openvino

    opened = openvino.from_model(model, threads, streams, precision, **settings)
    hint = opened.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    opened.precision = "bf16" if hint == "bf16" else "f32"
    return opened


def package_of(name: str) -> tuple[str, str]:
    """The module that a peer needs, and the extra of this package that installs it."""
    backend = PEERS[name][0]
    return backend, BACKENDS[backend].extra
