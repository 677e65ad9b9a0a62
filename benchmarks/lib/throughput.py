"""Images per second with several of them in flight, beside the latency of one image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from lib.peers import Rows, openvino_backend
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.model.file import ModelFile


def our_requests(engine: Engine) -> list[Rows]:
    """As many images in flight as threads, each on one of them."""
    return [engine.fork(1).run for _ in range(engine.threads)]


def openvino_requests(model: ModelFile, threads: int, precision: str) -> list[Rows]:
    """OpenVINO with its throughput hint, which chooses its streams; as many images in flight as it
    asks for.

    Args:
        precision: as of `peers.openvino_backend`.
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "AUTO"}
    backend = openvino_backend(model, threads, precision, **settings)
    count = backend.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    return [backend.fork(threads).run for _ in range(count)]


def images_per_second(
    requests: Sequence[Rows], network_input: NDArray[np.uint8], images: int
) -> float:
    """The rate of all requests at once; each runs once before, then `images` times."""

    def work(run: Rows) -> None:
        for _ in range(images):
            run(network_input)

    with ThreadPoolExecutor(len(requests)) as pool:
        list(pool.map(lambda run: run(network_input), requests))
        start = time.perf_counter()
        list(pool.map(work, requests))
        return len(requests) * images / (time.perf_counter() - start)
