"""Weights written by Detectron2 and TensorPack."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "parity"
DETECTRON2, TENSORPACK = DATA / "detectron2.pth", DATA / "tensorpack.npz"
