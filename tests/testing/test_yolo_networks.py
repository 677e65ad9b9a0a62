"""The YOLO-shaped networks have the published sizes."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sparsedet.testing.yolo import Kind, yolo_of_size  # noqa: E402

PUBLISHED: list[tuple[Kind, str, float, float]] = [
    ("v5", "n", 1.9, 4.5),
    ("v5", "s", 7.2, 16.5),
    ("v5u", "n", 2.6, 7.7),
    ("v5u", "s", 9.1, 24.0),
    ("v8", "n", 3.2, 8.7),
    ("v8", "s", 11.2, 28.6),
    ("v8", "m", 25.9, 78.9),
    ("11", "n", 2.6, 6.5),
    ("11", "s", 9.4, 21.5),
]
"""Millions of parameters, and GFLOPs at 640 x 640, of the published tables; two digits each."""


@pytest.mark.parametrize(("kind", "size", "parameters", "gflops"), PUBLISHED)
def test_parameters_and_work(kind: Kind, size: str, parameters: float, gflops: float) -> None:
    network = yolo_of_size(kind, size).eval()
    work = 0

    def count(module: Any, inputs: Any, out: Any) -> None:
        nonlocal work
        work += 2 * module.weight.numel() * out.shape[2] * out.shape[3]

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    found = sum(p.numel() for p in network.parameters()) / 1e6
    assert found == pytest.approx(parameters, rel=0.03)
    assert 100 * work / 1e9 == pytest.approx(gflops, rel=0.01)
