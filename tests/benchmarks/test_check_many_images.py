"""The check on many images: its images, and that it sees what is wrong."""

from __future__ import annotations

from pathlib import Path

import check_many_images as many
import pytest

from sparsedet.images.read import read_image


def test_one_in_a_hundred_is_damaged_in_ten_ways(tmp_path: Path) -> None:
    paths, bad = many.make_images(tmp_path, 151)
    assert len(paths) == 151 and [path for path in paths if path in bad] == [paths[50], paths[150]]
    assert {path.suffix.lstrip(".") for path in paths} >= set(many.FORMATS)
    for path in paths[:20]:
        assert max(read_image(path).shape) in (160, 320, 480, 640)
    assert len(many.DAMAGES) == 10


@pytest.mark.slow
def test_it_sees_what_is_wrong(tmp_path: Path) -> None:
    paths, bad = many.make_images(tmp_path, 60)

    def wrong() -> list[str]:
        """Without the memory, which grows over so few images."""
        return [line for line in many.check(paths, bad) if "peak memory" not in line]

    assert wrong() == []
    paths[3].write_bytes(b"")
    paths[50].write_bytes(paths[4].read_bytes())
    assert wrong() == [
        f"not printed: {paths[3]}",
        f"printed, though damaged: {paths[50]}",
        f"named in 0 lines: {paths[50]}",
        f"on stderr: sparsedet: {paths[3]}: the file is empty, expected an image",
    ]
