"""Small images of all kinds that native/images reads, to start fuzz_images from.

python tests/native/fuzz_files.py FOLDER
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image


def scene(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.uint8))


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def separate_scans() -> bytes:
    """A baseline JPEG with one scan for each channel, out of three grey ones."""
    grey = [
        saved(scene(seed=n).convert("L"), "JPEG", quality=85, restart_marker_blocks=7)
        for n in range(3)
    ]
    frame, scan = (grey[0].index(bytes((255, code))) for code in (0xC0, 0xDA))
    size = grey[0][frame + 4 : frame + 9]
    joined = grey[0][:frame] + b"\xff\xc0\0\x11" + size + b"\3\1\x11\0\2\x11\0\3\x11\0"
    joined += grey[0][frame + 13 : scan]
    for number, data in enumerate(grey, start=1):
        joined += b"\xff\xda\0\x08\1" + bytes((number,)) + data[data.index(b"\xff\xda") + 6 : -2]
    return joined + b"\xff\xd9"


def without_tables(data: bytes) -> bytes:
    """Motion JPEG: the standard Huffman tables are left out."""
    while (at := data.find(b"\xff\xc4")) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    return data


def files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[274] = 6
    kinds: dict[str, dict[str, Any]] = {
        "baseline": {"exif": exif.tobytes()},
        "420": {"subsampling": 2, "optimize": True},
        "restarts": {"restart_marker_blocks": 2},
        "progressive": {"progressive": True},
        "progressive_restarts": {"progressive": True, "restart_marker_blocks": 2},
    }
    made = {f"{name}.jpg": saved(scene(), "JPEG", **how) for name, how in kinds.items()}
    for mode in ("L", "CMYK"):
        made[f"{mode}.jpg"] = saved(scene().convert(mode), "JPEG", progressive=mode == "CMYK")
    made["separate_scans.jpg"] = separate_scans()
    made["without_tables.jpg"] = without_tables(saved(scene(), "JPEG"))
    made["no_end.jpg"] = saved(scene(), "JPEG", restart_marker_blocks=9)[:-2] + bytes(40)
    made["separate_scans_no_end.jpg"] = separate_scans()[:-2]
    made["lzw.tiff"] = saved(scene(), "TIFF", compression="tiff_lzw")
    made["packbits.tiff"] = saved(scene(), "TIFF", compression="packbits")
    made["picture.gif"] = saved(scene().convert("P"), "GIF")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
