"""Check `sparsedet detect` on many images of all formats, one in a hundred of them damaged.

    python benchmarks/check_many_images.py [--count 1000] [--folder FOLDER]

Makes the images from the two photographs of examples/: other sizes, mirrored or not, as JPEG, PNG,
WebP, BMP, GIF, TIFF and AVIF where the installed OpenCV writes it. The damaged ones are ten of ten
kinds, evenly among the others. Then it runs `sparsedet detect --no-save --format json` on all of
them and checks that

- the good ones are on stdout, one line each, in order;
- each bad one is named on stderr in one line, and nothing else is there but the sum;
- the exit code is 1;
- the peak memory grows by less than 10 % from the first tenth of the images to the last.

Prints what differs, and exits with 1 if something does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sparsedet.images.read import read_image
from sparsedet.images.write import can_write, encode_image

EXAMPLES = Path(__file__).parents[1] / "examples"
ALL_FORMATS = ("jpg", "png", "webp", "bmp", "gif", "tiff", "avif")
FORMATS = tuple(suffix for suffix in ALL_FORMATS if can_write(f"x.{suffix}"))
MEMORY_GROWTH = 0.1


def noise(data: bytes, first: float, last: float) -> bytes:
    """Random bytes in that part of a file."""
    begin, end = int(len(data) * first), int(len(data) * last)
    return data[:begin] + random.Random(0).randbytes(end - begin) + data[end:]


def bad_codes(data: bytes) -> bytes:
    """32 bytes of ones in the middle of a JPEG's data.

    Random bytes do not do: they can be valid Huffman codes by chance, and then no decoder can know
    that the picture is another one. Ones alone are no code in any table (ITU-T T.81, annex C). At
    most 31 of the bits end a code and its value; the 16 after them must be seen. The zero after
    each 255 says that it is no marker.
    """
    middle = len(data) // 2
    ones = b"\xff\x00" * 32
    return data[:middle] + ones + data[middle + len(ones) :]


def bomb(_: NDArray[np.uint8]) -> bytes:
    """A PNG of 400 million pixels in 50 kB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2501 * 20_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


DAMAGES: dict[str, Callable[[NDArray[np.uint8]], bytes | None]] = {
    "missing.jpg": lambda image: None,
    "empty.jpg": lambda image: b"",
    "text.png": lambda image: b"no image at all\n" * 100,
    "cut.jpg": lambda image: half(encode_image(image, "x.jpg")),
    "inside.jpg": lambda image: bad_codes(encode_image(image, "x.jpg")),
    "cut.png": lambda image: half(encode_image(image, "x.png")),
    "noise.png": lambda image: noise(encode_image(image, "x.png"), 0.5, 0.51),
    "cut.webp": lambda image: half(encode_image(image, "x.webp")),
    "offset.tiff": lambda image: b"II*\0" + struct.pack("<I", 0xFFFFFFF0) + bytes(100),
    "bomb.png": bomb,
}
"""Name -> content of a damaged file, None: there is none."""


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def make_images(folder: Path, count: int) -> tuple[list[Path], set[Path]]:
    """All images in the order of the run, and the damaged ones among them."""
    photographs = [read_image(path) for path in sorted(EXAMPLES.glob("*.jpg"))]
    rng = random.Random(0)
    paths, bad = [], set()
    kinds = list(DAMAGES.items())
    for number in range(count):
        image = photographs[number % len(photographs)]
        side = rng.choice((160, 320, 480, 640)) / max(image.shape[:2])
        image = cv2.resize(image, None, fx=side, fy=side).astype(np.uint8)
        image = np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image
        if number % 100 == 50:
            name, make = kinds[number // 100 % len(kinds)]
            path, data = folder / f"{number:04}-{name}", make(image)
            bad.add(path)
        else:
            path = folder / f"{number:04}.{FORMATS[number % len(FORMATS)]}"
            data = encode_image(image, path.name)
        if data is not None:
            path.write_bytes(data)
        paths.append(path)
    return paths, bad


def memory_of(process: int) -> int:
    """Peak memory of a running process, in kB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise SystemExit("this system does not tell a process's peak memory")


def check(paths: list[Path], bad: set[Path]) -> list[str]:
    """Run the command; returns what is not as it should be."""
    command = [sys.executable, "-m", "sparsedet", "detect", "--no-save", "--format", "json"]
    start, early, printed = time.perf_counter(), 0, []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, *map(str, paths)], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                printed.append(json.loads(line)["photo"])
                if len(printed) == len(paths) // 10:
                    early = memory_of(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        lines = errors.read().splitlines()
    peak, seconds = usage.ru_maxrss, time.perf_counter() - start
    print(
        f"{len(printed)} of {len(paths)} images done in {seconds:.0f} s, exit code "
        f"{process.returncode}; peak memory {early / 1e3:.0f} MB after a tenth, "
        f"{peak / 1e3:.0f} MB after all"
    )
    wrong = []
    good = [str(path) for path in paths if path not in bad]
    wrong += [f"not printed: {path}" for path in good if path not in printed]
    wrong += [f"printed, though damaged: {path}" for path in map(str, bad) if path in printed]
    if not wrong and printed != good:
        wrong.append("printed in another order, or twice")
    for path in map(str, sorted(bad)):
        named = sum(path in line for line in lines)
        if named != 1:
            wrong.append(f"named in {named} lines: {path}")
    total = f"sparsedet: {len(bad)} of {len(paths)} images failed"
    wrong += [
        f"on stderr: {line}"
        for line in lines
        if line != total and not any(line.startswith(f"sparsedet: {path}") for path in bad)
    ]
    if process.returncode != 1:
        wrong.append(f"exit code {process.returncode}, expected 1")
    if not early or peak > (1 + MEMORY_GROWTH) * early:
        wrong.append(f"peak memory grows from {early} to {peak} kB")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="number of images")
    parser.add_argument("--folder", type=Path, help="keep the images there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        wrong = check(*make_images(folder, arguments.count))
    for line in wrong:
        print(line)
    print("as it should be" if not wrong else f"{len(wrong)} things are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
