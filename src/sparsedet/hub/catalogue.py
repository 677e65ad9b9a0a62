"""Models that others publish: where they are, what is known of their files, and the cache.

Sizes and digests are the publishers' own; where only the first digits of a digest are published,
these are checked, and `describe_check` says so. How a file is fetched is in `download`; how it
becomes a model is the importers' matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError
from .fetch import Note, Patience, RemoteFile, fetch

_OMZ = (
    "https://storage.openvinotoolkit.org/repositories/open_model_zoo/2023.0/models_bin/1/"
    "faster-rcnn-resnet101-coco-sparse-60-0001"
)
_NAME = "faster-rcnn-resnet101-coco-sparse-60-0001"
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Published:
    """A model as somebody publishes it.

    Attributes:
        title: what it is, one line.
        licence: as its publisher states it.
        files: the first one is what is converted; the others lie beside it.
        detector: whether it is a whole model; else a start for training.
    """

    title: str
    licence: str
    files: tuple[RemoteFile, ...]
    detector: bool = True


PUBLISHED: Mapping[str, Published] = {
    # Source of sizes and digests: Open Model Zoo,
    # models/intel/faster-rcnn-resnet101-coco-sparse-60-0001/model.yml.
    _NAME: Published(
        "Open Model Zoo's sparse detector, 60 % zeros, FP32, 38.74 AP",
        "Apache-2.0",
        (
            RemoteFile(
                f"{_OMZ}/FP32/{_NAME}.xml",
                "sha384:f5a8f202483190168f1eab305f45180e105705dba4bf76f128025dca0a67a386"
                "4948e8c84421fc6be3ff7b13fec6be23",
                343_829,
            ),
            RemoteFile(
                f"{_OMZ}/FP32/{_NAME}.bin",
                "sha384:1e3ab1e72c5085d35281c989ea41728a713072b92589f05a7f9aee8c7c1c31b0"
                "26b3646a13900a8d7edb935cc2d3c0b2",
                211_169_968,
            ),
        ),
    ),
    f"{_NAME}-fp16": Published(
        "the same, weights in half precision",
        "Apache-2.0",
        (
            RemoteFile(
                f"{_OMZ}/FP16/{_NAME}.xml",
                "sha384:a1190f6a62836d40bb77ed7585981406ed6d2e5016990de6d19030feff1cd8db"
                "a5ffa4fefd95aae88c235951c12801be",
                474_906,
            ),
            RemoteFile(
                f"{_OMZ}/FP16/{_NAME}.bin",
                "sha384:2ca0c3d9f900316b76409af3ac2caf2f6955917287ef79cfe5939302aa8c0576"
                "193cbf9e88e1d97f305444f9af0c2d23",
                105_585_120,
            ),
        ),
    ),
    # Detectron2, MODEL_ZOO.md: "any model on this page contains its md5 prefix in its file name".
    "faster_rcnn_R_101_C4_3x": Published(
        "Detectron2's dense R101-C4, 41.1 box AP",
        "CC BY-SA 3.0",
        (
            RemoteFile(
                "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/"
                "faster_rcnn_R_101_C4_3x/138204752/model_final_298dad.pkl",
                "md5:298dad",
                limit=450 * _MB,
            ),
        ),
    ),
    # torchvision, models/resnet.py; torch.hub: the name ends in the first digits of the SHA-256.
    "resnet101-v1": Published(
        "torchvision's ResNet-101 classifier, IMAGENET1K_V1, 77.4 % top-1",
        "see torchvision (BSD-3-Clause; trained on ImageNet)",
        (
            RemoteFile(
                "https://download.pytorch.org/models/resnet101-63fe2227.pth",
                "sha256:63fe2227",
                limit=200 * _MB,
            ),
        ),
        detector=False,
    ),
    "resnet101-v2": Published(
        "torchvision's ResNet-101 classifier, IMAGENET1K_V2, 81.9 % top-1",
        "see torchvision (BSD-3-Clause; trained on ImageNet)",
        (
            RemoteFile(
                "https://download.pytorch.org/models/resnet101-cd907fc2.pth",
                "sha256:cd907fc2",
                limit=200 * _MB,
            ),
        ),
        detector=False,
    ),
}
"""Name -> model. The names are their publishers' own, as far as those have one."""


Progress = Callable[[str, int, "int | None"], None]
"""Called with a file's name, the bytes that are there and those in all (None: unknown)."""


def cache_folder() -> Path:
    """SPARSEDET_CACHE, else ~/.cache/sparsedet."""
    chosen = os.environ.get("SPARSEDET_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "sparsedet"


def offline() -> bool:
    """Whether SPARSEDET_OFFLINE forbids connections: set, and not to 0."""
    return os.environ.get("SPARSEDET_OFFLINE", "0") not in ("", "0")


def published(name: str) -> Published:
    """The model of that name.

    Raises:
        InputError: there is none; the message lists the names.
    """
    if name not in PUBLISHED:
        raise InputError(f"unknown name {name!r}; there are: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def cached(name: str, folder: Path | None = None) -> bool:
    """Whether all files of a model are in the cache; their digests are not looked at."""
    folder = (folder or cache_folder()) / name
    return all((folder / file.name).is_file() for file in published(name).files)


def get(
    name: str,
    *,
    folder: Path | None = None,
    mirror: str | None = None,
    no_network: bool = False,
    patience: Patience | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> list[Path]:
    """Have a published model's files in the cache, whole and checked.

    Args:
        name: a key of `PUBLISHED`.
        folder: of the cache; default: `cache_folder()`.
        mirror: http or https address that stands for the publisher's host: what is asked for there
            is the path of the publisher's address.
        no_network: take what is in the cache or fail; also where `offline()`.
        patience, note: as for `download.fetch`.

    Returns:
        The files in the order of `Published.files`.

    Raises:
        InputError: an unknown name, a bad mirror, or a file that cannot be had.
    """
    paths = []
    for remote in published(name).files:
        target = (folder or cache_folder()) / name / remote.name
        source = remote if mirror is None else replace(remote, url=_mirrored(remote.url, mirror))
        fetch(
            source,
            target,
            offline=no_network or offline(),
            patience=patience,
            note=note,
            progress=None if progress is None else partial(progress, remote.name),
        )
        paths.append(target)
    return paths


def _mirrored(url: str, mirror: str) -> str:
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            f"mirror is {mirror!r}, expected an address as https://HOST or http://HOST"
        )
    return mirror.rstrip("/") + urlsplit(url).path


def describe_check(remote: RemoteFile) -> str:
    """What was checked of a file, in words."""
    algorithm, _, digits = remote.digest.partition(":")
    name = {"sha384": "SHA-384", "sha256": "SHA-256", "md5": "MD5"}[algorithm]
    if algorithm == "sha384":
        return f"size and {name} as published"
    return f"its {name} begins {digits} as its name says (no more of it is published)"
