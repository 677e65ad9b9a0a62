"""`Model`: a network without detections, ready to run; an array in, arrays out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Precision
from .engine.lower import lowered
from .errors import InputError
from .images.crop import fitted
from .images.letterbox import check_image
from .model.detector_config import Config
from .model.file import NetworkFile, load_network
from .model.graph import Graph, Normalise
from .model.network import NetworkConfig
from .model.tail import run_tail

F32 = NDArray[np.float32]


def _taking_arrays(graph: Graph) -> Graph:
    """The graph without the normalisation of pixels: its image has the values of its first map."""
    first, *others = graph.operations
    attributes = first.attributes
    assert isinstance(attributes, Normalise)
    plain = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), attributes.rgb)
    return Graph(graph.image, (replace(first, attributes=plain), *others))


class Model:
    """A network without detections, ready to run: a classifier, or one of raw outputs.

    Calling it with an array returns the outputs by name, as ONNX Runtime does for the file it came
    from. Threads may share one instance: one call runs at a time.

    `Model.load("resnet50.onnx")(np.zeros((1, 3, 224, 224), np.float32))` gives
    `{"logits": array([[...]], dtype=float32)}`.

    Args:
        network: the network.
        threads, precision, isa: as of `Engine`.

    Raises:
        InputError: an argument is unknown or not supported here.
    """

    def __init__(
        self,
        network: NetworkFile,
        *,
        threads: int | None = None,
        precision: Precision = "f32",
        isa: str = "",
    ) -> None:
        self.network = network
        config = network.config
        steps = config.constants
        self._constants: Mapping[str, F32] = {name: network.tensors[name] for name in steps}
        self.engine = Engine(
            cast(Config, config),  # it reads the name
            network.tensors,
            threads=threads,
            precision=precision,
            isa=isa,
            graph=lowered(_taking_arrays(config.graph)),
            clipping_thresholds=network.clipping_thresholds,
            int8_biases=network.int8_biases,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        precision: Precision = "f32",
        isa: str = "",
        shape: tuple[int, int, int, int] | None = None,
    ) -> Model:
        """Load a model file, or convert an ONNX file in memory.

        Args:
            path: a model file (`sparsedet convert model.onnx --raw`), or an ONNX file; the latter
                needs `pip install 'sparsedet[onnx]'`.
            threads, precision, isa: as of `Detector.load`.
            shape: of the input of an ONNX file that leaves it open, [1, 3, height, width].

        Raises:
            InputError: the file is no such network, or an argument is unknown or not supported.
        """
        if Path(path).suffix.lower() == ".onnx":
            from .importers.onnx import load_onnx_network  # most models are no ONNX files

            network = load_onnx_network(path, shape=shape)
        else:
            network = load_network(path)
        return cls(network, threads=threads, precision=precision, isa=isa)

    @property
    def config(self) -> NetworkConfig:
        return self.network.config

    def __call__(self, array: NDArray[Any]) -> dict[str, F32]:
        """The outputs for a batch of inputs.

        Args:
            array: [B, 3, height, width], in the form that the network reads: for a file from ONNX
                that of the ONNX file. Images of a batch run one after the other.

        Returns:
            Output name -> float32, joined along the first axis.

        Raises:
            InputError: the array has another shape or type.
        """
        image = self.config.graph.image
        expected = (3, *image.size)
        given: Any = array
        if not isinstance(given, np.ndarray) or given.ndim != 4 or given.shape[1:] != expected:
            shape = getattr(given, "shape", type(given).__name__)
            raise InputError(
                f"the input is {shape}, expected an array of shape (B, 3, H, W) with "
                f"H and W {image.height} and {image.width}"
            )
        if given.dtype.kind not in "fui" or not len(given):
            raise InputError(f"the input is {given.dtype} {given.shape}, expected numbers")
        attributes = self.config.graph.only(Normalise)[1]
        pixels = given[:, ::-1] if attributes.rgb else given
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1), dtype=np.float32)
        runs = [self._run(one) for one in pixels]
        names = [name for name, _ in self.config.outputs]
        return {name: np.concatenate([run[i] for run in runs]) for i, name in enumerate(names)}

    def _run(self, pixels: F32) -> list[F32]:
        """The outputs for one image [H, W, 3], whose channels are those of `Normalise`."""
        config = self.config
        values = self.engine.values(pixels, config.read)
        return run_tail(config.steps, values, self._constants, [v for _, v in config.outputs])

    def classify(self, image: NDArray[np.uint8], top: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes of an image.

        Args:
            image: (H, W, 3) uint8 BGR, as `read_image` returns it.
            top: number of classes, at least 1.

        Returns:
            Names and scores 0..1, best first. A network whose file has no names calls its classes
            by their numbers, from 0 on.

        Raises:
            InputError: the network is no classifier, or an argument is wrong.
        """
        check_image(image)
        count = self.config.class_count
        if not count:
            raise InputError(f"{self.config.name} is no classifier: its output is no row of scores")
        if not isinstance(top, int) or top < 1:
            raise InputError(f"top is {top!r}, expected a number of classes, at least 1")
        attributes = self.config.graph.only(Normalise)[1]
        pixels = fitted(image, self.config).astype(np.float32)
        mean, std = (np.asarray(n, np.float32) for n in (attributes.mean, attributes.std))
        pixels = (pixels - mean) / std
        logits = self._run(np.ascontiguousarray(pixels))[0].reshape(-1).astype(np.float64)
        scores = logits
        if logits.min() < 0 or abs(logits.sum() - 1) > 1e-3:  # not scores yet
            powers = np.exp(logits - logits.max())
            scores = powers / powers.sum()
        names = self.config.class_names or tuple(map(str, range(count)))
        return [(names[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:top]]
