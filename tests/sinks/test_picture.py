"""Annotated images: where they go, and what is never overwritten."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import tree
from helpers.small import encoded, picture

from sparsedet.errors import InputError, UsageError
from sparsedet.images.read import decode_image, read_image
from sparsedet.sinks.picture import AnnotatedImages


def inputs(folder: Path, *names: str) -> list[Path]:
    """Image files of those names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(".png"))
    return [folder / name for name in names]


def test_beside_the_image(tmp_path: Path) -> None:
    images = inputs(tmp_path, "a.png", "b.JPG", "c.tiff", "d")
    sink = AnnotatedImages(images)
    written = [sink.write(image, picture()).name for image in images]
    assert written == ["a_detected.png", "b_detected.JPG", "c_detected.jpg", "d_detected.jpg"]
    assert (read_image(tmp_path / "a_detected.png") == picture()).all()


@pytest.mark.parametrize("folders", ["new/", "new/deeper/"])
def test_a_slash_makes_a_folder(folders: str, tmp_path: Path) -> None:
    images = inputs(tmp_path, "a.png")
    sink = AnnotatedImages(images, f"{tmp_path}/{folders}")
    assert not (tmp_path / "new").exists()  # only when there is something to write
    assert sink.write(images[0], picture()) == tmp_path / folders / "a.png"


def test_a_link_to_a_folder_is_a_folder(tmp_path: Path) -> None:
    images = inputs(tmp_path, "a.png")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    AnnotatedImages(images, str(tmp_path / "link")).write(images[0], picture())
    assert os.listdir(tmp_path / "real") == ["a.png"]


def test_images_of_one_name_are_all_kept(tmp_path: Path) -> None:
    images = inputs(tmp_path, "a/x.png", "b/x.png", "c/x.jpg", "d/x.png")
    new = tmp_path / "new"
    for overwrite in (False, True):
        sink = AnnotatedImages(images, str(new), overwrite=overwrite)
        names = [sink.write(image, picture(seed=n)).name for n, image in enumerate(images)]
        assert names == ["x.png", "x-2.png", "x.jpg", "x-3.png"]
        assert (read_image(new / "x-2.png") == picture(seed=1)).all()
    sink = AnnotatedImages(images, str(new))  # a second run asks before it replaces
    with pytest.raises(InputError, match=r"new/x\.png: exists already; give .* --overwrite"):
        sink.write(images[0], picture())


def test_an_image_is_never_replaced_by_its_copy(tmp_path: Path) -> None:
    images = inputs(tmp_path, "a.png", "a-2.png")
    before = tree(tmp_path)
    sink = AnnotatedImages(images, str(tmp_path), overwrite=True)
    assert [sink.write(image, picture(seed=3)).name for image in images] == ["a-3.png", "a-2-2.png"]
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    (tmp_path / "link.png").symlink_to("a.png")
    for output in ("a.png", "link.png"):
        with pytest.raises(UsageError, match="is an input of this run"):
            AnnotatedImages(images[:1], str(tmp_path / output), overwrite=True)


def test_through_a_link(tmp_path: Path) -> None:
    images = inputs(tmp_path, "a.png")
    (tmp_path / "target.png").write_bytes(b"keep")
    (tmp_path / "link.png").symlink_to("target.png")
    (tmp_path / "dangling.png").symlink_to("gone.png")
    with pytest.raises(InputError, match="exists already"):
        AnnotatedImages(images, str(tmp_path / "link.png"))
    for name, target in (("link.png", "target.png"), ("dangling.png", "gone.png")):
        AnnotatedImages(images, str(tmp_path / name), overwrite=name == "link.png").write(
            images[0], picture(seed=2)
        )
        assert os.readlink(tmp_path / name) == target
        assert (read_image(tmp_path / target) == picture(seed=2)).all()


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg"])
def test_into_a_pipe(name: str, tmp_path: Path) -> None:
    images = inputs(tmp_path, "a.png")
    pipe = tmp_path / name
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    AnnotatedImages(images, str(pipe)).write(images[0], picture())
    reader.join()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    back = decode_image(read[0], "read")  # without a suffix: the image's own format
    assert (back == picture()).all() == (name == "pipe")


@pytest.mark.parametrize(
    ("output", "words", "kind"),
    [
        ("new", "or .*/new/ for a folder", UsageError),
        ("x.xyz", "no image format", UsageError),
        ("none/x.png", "cannot be written", InputError),
        ("file/", "cannot be used as a folder", InputError),
        ("file/x/", "cannot be used as a folder", InputError),
        ("old.png", "exists already", InputError),
        ("x" * 252 + ".png", "name too long", InputError),
    ],
)
def test_names_that_cannot_be_used_are_refused_before_the_work(
    output: str, words: str, kind: type[InputError], tmp_path: Path
) -> None:
    images = inputs(tmp_path, "a.png", "old.png")[:1]
    (tmp_path / "file").write_bytes(b"")
    before = tree(tmp_path)
    with pytest.raises(kind, match=words) as refusal:
        AnnotatedImages(images, f"{tmp_path}/{output}")
    assert type(refusal.value) is kind and tree(tmp_path) == before


def test_a_name_that_becomes_too_long(tmp_path: Path) -> None:
    images = inputs(tmp_path, "x" * 248 + ".png")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"_detected\.png: cannot be written \(File name too long"):
        AnnotatedImages(images).write(images[0], picture())
    assert tree(tmp_path) == before


def test_an_image_that_its_format_cannot_hold_leaves_no_folder(tmp_path: Path) -> None:
    images = inputs(tmp_path, "wide.webp")
    with pytest.raises(InputError, match=r"new/wide\.webp: 20000x1 pixels are too many for WebP"):
        AnnotatedImages(images, f"{tmp_path}/new/").write(
            images[0], np.zeros((1, 20000, 3), np.uint8)
        )
    assert not (tmp_path / "new").exists()
