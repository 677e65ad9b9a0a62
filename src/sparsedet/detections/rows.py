"""Rows of seven, the published contract: padding, and exactly as many as are asked for.

A row is (image_id, class_id, confidence, x0, y0, x1, y1) with coordinates divided by the network
input's size; image_id -1 marks a padding row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def not_padding(rows: F32) -> NDArray[np.bool_]:
    """Which of the rows [N, 7] are no padding: image_id -1, or a confidence of 0 or less."""
    return np.asarray((rows[:, 0] != -1) & ~(rows[:, 2] <= 0))  # a NaN confidence stays


def pad_rows(rows: F32, count: int) -> F32:
    """Exactly `count` rows: cut, or filled with padding.

    Args:
        rows: [N, 7], best first.

    Returns:
        [count, 7] float32; padding rows are image_id -1 and zeros.
    """
    out = np.zeros((count, 7), dtype=np.float32)
    out[:, 0] = -1
    out[: len(rows)] = rows[:count]
    return out


def contract_rows(rows: F32, count: int, four_d: bool) -> F32:
    """Rows [N, 7] in a published form: [count, 7], or [1, 1, count, 7] if `four_d`."""
    padded = pad_rows(rows, count)
    return padded[None, None] if four_d else padded
