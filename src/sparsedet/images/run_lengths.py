"""Masks as run lengths (RLE), in the form of COCO: {"size": [height, width], "counts": text}.

The pixels are read column by column. `counts` are the lengths of the runs of pixels outside and
inside the mask in turn, beginning with those outside, as text: a length (from the fourth on its
difference to the one before the last) is written in groups of five bits, the lowest first, each as
the character 48 + group, plus 32 if another follows; the highest bit of the last is the sign.

Source: pycocotools, `rleEncode` and `rleToString` of maskApi.c; equal to the byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GROUPS = 7
"""Groups of a number, at most: 35 bits, where pycocotools has 32."""


def encode_mask(
    inside: NDArray[np.bool_], height: int, width: int, top: int = 0, left: int = 0
) -> dict[str, Any]:
    """A mask as run lengths.

    Args:
        inside: (h, w), a part of the mask outside of which it is False.
        height, width: of the image.
        top, left: first row and column of that part in the image.
    """
    columns = np.zeros((inside.shape[1], inside.shape[0] + 2), np.int8)
    columns[:, 1:-1] = inside.T
    steps = np.diff(columns, axis=1)
    starts, ends = (np.flatnonzero(steps == step) for step in (1, -1))
    for at in starts, ends:  # in `steps`, and then in the image
        column, row = np.divmod(at, steps.shape[1])
        at[:] = (column + left) * height + row + top
    apart = starts[1:] != ends[:-1]  # a run may go on in the next column
    first, last = np.ones((2, len(starts)), bool)
    first[1:], last[:-1] = apart, apart
    bounds = np.stack([starts[first], ends[last]], axis=1)
    counts = np.diff(bounds.ravel(), prepend=0, append=height * width)
    if len(counts) > 1 and not counts[-1]:  # the last pixel is inside
        counts = counts[:-1]
    return {"size": [height, width], "counts": _text(counts)}


def decode_mask(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask (H, W) of `encode_mask`.

    Raises:
        ValueError: the counts are no run lengths of such a mask.
    """
    height, width = rle["size"]
    counts = read_counts(rle["counts"])
    if counts.sum() != height * width:
        raise ValueError(f"they are of {counts.sum()} pixels, expected {height * width}")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.asarray(inside.reshape(width, height).T)


def read_counts(text: str) -> NDArray[np.int64]:
    """The lengths of the runs.

    Raises:
        ValueError: the text holds no run lengths.
    """
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any() or (len(codes) and codes[-1] & 32):
        raise ValueError("they are not in COCO's form, or cut off")
    last = (codes & 32) == 0
    number = np.cumsum(last) - last  # which one each group belongs to
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]])) if len(codes) else codes
    place = np.arange(len(codes)) - starts[number]
    if (place >= _GROUPS).any():
        raise ValueError("they hold a number that is too large")
    numbers = np.zeros(len(starts), np.int64)
    np.add.at(numbers, number, (codes & 31) << (5 * place))
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    for parity in (1, 2):  # numbers 1, 3, 5, ... and 2, 4, 6, ... are differences
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    if (numbers < 0).any():
        raise ValueError("they hold a length below 0")
    return numbers


def _text(counts: NDArray[np.int64]) -> str:
    """`counts` in COCO's form."""
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    groups = numbers[:, None] >> (5 * np.arange(_GROUPS))  # the rest from each group on
    above = groups >> 5
    done = np.where(groups & 16, above == -1, above == 0)
    length = done.argmax(axis=1)
    place = np.arange(_GROUPS)
    codes = (groups & 31) + np.where(place < length[:, None], 32, 0) + 48
    return bytes(codes[place <= length[:, None]].tolist()).decode("ascii")
