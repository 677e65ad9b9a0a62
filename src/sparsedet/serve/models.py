"""The models that a service knows by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..choices import DEFAULT_MODEL
from ..detector import Detector, embedded_model
from ..errors import InputError, UsageError
from ..exporters.form import Form
from .refusal import Refusal

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

FORM = Form()
"""A served model has inputs and outputs of the names and shapes of an exported one."""


def model_files(given: Sequence[str]) -> dict[str, Path]:
    """Name -> file, from `NAME=FILE` or `FILE`, which is then named as its file without suffix.

    FILE may be the name of an embedded model. Where nothing is given, the default model is served.

    Raises:
        UsageError: a name cannot stand in an address, or two are the same.
    """
    if not given:
        return {DEFAULT_MODEL: embedded_model(DEFAULT_MODEL)}
    files: dict[str, Path] = {}
    for text in given:
        name, sign, file = text.partition("=")
        if not sign or "/" in name:
            name, file = Path(text).stem, text
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"the model name {name!r} cannot stand in an address, expected letters, digits "
                "and . _ -: give --model NAME=FILE"
            )
        if name in files:
            raise UsageError(f"two models are named {name}: give --model NAME=FILE")
        files[name] = Path(file)
    return files


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A detector with the name by which requests ask for it."""

    name: str
    detector: Detector

    @property
    def input_shape(self) -> list[int]:
        """[-1, 3, H, W] of the input tensor; -1 is a length that a request chooses."""
        config = self.detector.config
        if config.resize == "shorter":
            return [-1, 3, -1, -1]
        return [-1, *FORM.input_shape(config)[1:]]

    def check_cost(self, most: float) -> None:
        """Refuse a model in which an image costs more than `most` GFLOP, before it ever runs.

        A small file may ask for a network input of 8192x8192 pixels.

        Raises:
            InputError: it does.
        """
        if (cost := self.detector.gflop) > most:
            raise InputError(
                f"the model {self.name} needs {cost:,.0f} GFLOP an image, expected at most "
                f"{most:,.0f}; allow more by --max-gflop"
            )

    @property
    def longest(self) -> int:
        """Pixels of a side of the input tensor, at most."""
        config = self.detector.config
        if config.resize == "shorter":
            return -(-config.max_size // config.divisor) * config.divisor
        return max(config.input_height, config.input_width)


def find_model(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """The model of a name; None: the first one.

    Raises:
        Refusal: 404, there is no such model.
    """
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        known = ", ".join(models)
        raise Refusal(404, f"there is no model {name[:64]!r}, expected one of {known}")
    return models[name]
