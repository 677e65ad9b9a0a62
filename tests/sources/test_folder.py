"""Which files of a folder are images, and which of them a sample takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsedet.errors import InputError
from sparsedet.images.read import IMAGE_SUFFIXES, read_image
from sparsedet.images.write import can_write, encode_image
from sparsedet.sources.folder import find_images, sample_images
from sparsedet.testing import colour_gradients


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "B.PNG", "b/c.jpeg", "b/deep/d.JPG", "notes.txt", "b/e.json"):
        (tmp_path / name).touch()
    return tmp_path


def test_images_are_found_at_any_depth_and_sorted(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert names == ["B.PNG", "a.jpg", "b/c.jpeg", "b/deep/d.JPG"]


def test_all_formats_but_no_hidden_files_and_no_folders(folder: Path) -> None:
    for name in ("f.webp", "g.TIF", "h.tiff", "i.bmp", "j.avif", "k.HEIC", "l.heif", "m.gif"):
        (folder / "b" / name).touch()
    expected = find_images(folder)
    assert len(expected) == 12
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7")  # macOS keeps attributes so
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.jpg").touch()
    (folder / "b" / "album.jpg").mkdir()
    assert find_images(folder) == expected
    hidden = folder / ".thumbnails"  # asked for by name
    assert find_images(hidden) == [hidden / "a.jpg"]


def test_every_format_that_is_read_is_found(tmp_path: Path) -> None:
    image = colour_gradients(40, 50)
    written = [s for s in IMAGE_SUFFIXES if can_write(f"x{s}") and s not in (".heic", ".heif")]
    assert {".jpg", ".png", ".webp", ".bmp", ".tiff"} <= set(written)
    for suffix in written:
        (tmp_path / f"image{suffix}").write_bytes(encode_image(image, f"x{suffix}"))
    (tmp_path / "UPPER.TIF").write_bytes(encode_image(image, "x.tiff"))
    (tmp_path / "phone.HEIC").touch()
    found = find_images(tmp_path)
    assert len(found) == len(written) + 2
    assert all(read_image(path).shape == (40, 50, 3) for path in found if path.stem != "phone")


def test_the_documents_name_the_suffixes() -> None:
    text = (Path(__file__).parents[2] / "docs/images.md").read_text(encoding="utf-8")
    assert ", ".join(IMAGE_SUFFIXES) in " ".join(text.split())


def test_a_sample_follows_from_names_and_seed(folder: Path) -> None:
    samples = [sample_images(folder, 2, seed=seed) for seed in range(20)]
    assert samples == [sample_images(folder, 2, seed=seed) for seed in range(20)]
    assert len({tuple(sample) for sample in samples}) > 3
    assert all(len(set(sample)) == 2 for sample in samples)


def test_fewer_images_than_asked_for(folder: Path) -> None:
    assert sorted(sample_images(folder, 9, exact=False)) == find_images(folder)
    with pytest.raises(InputError, match=r"holds 4 images, but 9 are asked for"):
        sample_images(folder, 9)
    with pytest.raises(InputError, match="expected at least 1"):
        sample_images(folder, 0)


def test_no_folder_and_no_images(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        find_images(folder / "empty")
    for path in (folder / "a.jpg", folder / "none"):
        with pytest.raises(InputError, match="not a folder"):
            find_images(path)
