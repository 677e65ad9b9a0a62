"""Weights that Detectron2 and TensorPack wrote."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "parity"
DETECTRON2, TENSORPACK = DATA / "detectron2.pth", DATA / "tensorpack.npz"
