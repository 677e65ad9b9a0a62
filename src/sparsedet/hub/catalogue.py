"""The catalogue of published models: addresses, sizes, digests, licences.

Sizes and digests are the publishers' own. Where a publisher gives only the first digits of a
digest, these are checked, and `describe_check` says so. `fetch` downloads a file, `cache` a model,
and the importers convert it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import UsageError

_OMZ = (
    "https://storage.openvinotoolkit.org/repositories/open_model_zoo/2023.0/models_bin/1/"
    "faster-rcnn-resnet101-coco-sparse-60-0001"
)
_NAME = "faster-rcnn-resnet101-coco-sparse-60-0001"
_MB = 1_000_000
CHUNK = 1 << 18
"""Bytes of one read from a file or a connection."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A published file.

    Attributes:
        url: http or https address.
        digest: "ALGORITHM:HEX" with hashlib's name; the whole digest or its first digits.
        size: bytes; None where the publisher states no size.
        max_size: upper limit of bytes where no size is published.
    """

    url: str
    digest: str
    size: int | None = None
    max_size: int = 1 << 30

    @property
    def name(self) -> str:
        """File name: the last component of the address."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def host(self) -> str:
        """Host, with the port where the address names one."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A published model.

    Attributes:
        title: description, one line.
        licence: as its publisher states it.
        files: the first one is converted; the others belong beside it.
        detector: a whole detector; False: weights to start training from.
    """

    title: str
    licence: str
    files: tuple[RemoteFile, ...]
    detector: bool = True


CATALOGUE: Mapping[str, CatalogueEntry] = {
    # Source of sizes and digests: Open Model Zoo,
    # models/intel/faster-rcnn-resnet101-coco-sparse-60-0001/model.yml.
    _NAME: CatalogueEntry(
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
    f"{_NAME}-fp16": CatalogueEntry(
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
    # Source: Detectron2, MODEL_ZOO.md: "any model on this page contains its md5 prefix in its file
    # name".
    "faster_rcnn_R_101_C4_3x": CatalogueEntry(
        "Detectron2's dense R101-C4, 41.1 box AP",
        "CC BY-SA 3.0",
        (
            RemoteFile(
                "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/"
                "faster_rcnn_R_101_C4_3x/138204752/model_final_298dad.pkl",
                "md5:298dad",
                max_size=450 * _MB,
            ),
        ),
    ),
    # Source: torchvision, models/resnet.py; torch.hub: the name ends with the first digits of the
    # SHA-256.
    "resnet101-v1": CatalogueEntry(
        "torchvision's ResNet-101 classifier, IMAGENET1K_V1, 77.4 % top-1",
        "see torchvision (BSD-3-Clause; trained on ImageNet)",
        (
            RemoteFile(
                "https://download.pytorch.org/models/resnet101-63fe2227.pth",
                "sha256:63fe2227",
                max_size=200 * _MB,
            ),
        ),
        detector=False,
    ),
    "resnet101-v2": CatalogueEntry(
        "torchvision's ResNet-101 classifier, IMAGENET1K_V2, 81.9 % top-1",
        "see torchvision (BSD-3-Clause; trained on ImageNet)",
        (
            RemoteFile(
                "https://download.pytorch.org/models/resnet101-cd907fc2.pth",
                "sha256:cd907fc2",
                max_size=200 * _MB,
            ),
        ),
        detector=False,
    ),
}
"""Name -> entry. The names are their publishers' own, where those have one."""


def entry(name: str) -> CatalogueEntry:
    """The entry of a name.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    if name not in CATALOGUE:
        raise UsageError(f"unknown name {name!r}, expected one of: {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def mismatch(remote: RemoteFile, path: Path) -> str:
    """How a file differs from the published one, as a predicate; "": size and digest are right.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"has {size:,} bytes, expected {remote.size:,}"
    algorithm, _, expected = remote.digest.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    actual = digest.hexdigest()[: len(expected)]
    if actual == expected:
        return ""
    whole = len(expected) == 2 * digest.digest_size
    name = algorithm.upper() + ("" if whole else " prefix")
    return f"has {name} {actual[:16]}, expected {expected[:16]}"


def describe_check(remote: RemoteFile) -> str:
    """What a verified file was checked for, in words."""
    algorithm, _, digits = remote.digest.partition(":")
    name = {"sha384": "SHA-384", "sha256": "SHA-256", "md5": "MD5"}[algorithm]
    if algorithm == "sha384":
        return f"size and {name} as published"
    return f"{name} begins with {digits}, as its name says; the publisher gives no more digits"
