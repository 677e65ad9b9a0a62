"""`Detector`: a model, ready to run; an image in, detections out. Never imports torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .backends import Backend, Name, load
from .choices import DEFAULT_MODEL, EMBEDDED
from .detections import Detections, check_threshold, contract_rows, from_rows
from .engine import Precision, default_threads
from .engine.process import finished_before_exit, remake_after_fork
from .errors import InputError, warn_renamed
from .images.letterbox import as_blob, prepare
from .model.detector_config import Config, build_graph, mask_pasting, with_form
from .model.file import ModelFile

if TYPE_CHECKING:
    import asyncio

    from .sources import Frame
    from .sources.values import ImageLike

Result = TypeVar("Result")

READ_AHEAD = 4
"""Images of a file, address or camera that wait, decoded, for the network."""


def embedded_model(name: str) -> Path:
    """Path of a model inside the package, one of `choices.EMBEDDED`."""
    return Path(__file__).parent / "models" / EMBEDDED[name]


def model_path(path: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The file that a user means by a file, the name of an embedded model, or None: the default.

    A file of such a name comes first.
    """
    name = os.fspath(DEFAULT_MODEL if path is None else path)
    if path is not None and os.path.exists(path):
        return path
    if name == "embedded":  # as `serve` and `compare` called it
        warn_renamed("embedded", name := "r50half-c4")
    return embedded_model(name) if name in EMBEDDED or path is None else path


class Detector:
    """A model, ready to run.

    Calling it with an image returns `Detections`. Threads may share one instance: it runs one call
    per stream at a time, others wait. A forked process may use its parent's instance, also if
    another thread was detecting during the fork; a backend other than native then refuses, because
    its runtime would hang. An instance from `load` pickles as its path and arguments: the other
    process loads the same file again.

    Args:
        model: the model that `engine` runs; for a graph file it has no tensors.
        engine: the first stream's engine, native or another backend.
        streams: images that may run at once; each further stream shares the weights and has as
            many threads as the first.
    """

    def __init__(self, model: ModelFile, engine: Backend, streams: int = 1) -> None:
        self.model = model
        self.engine = engine
        self.streams = streams
        self._engines = [engine, *(engine.fork(engine.threads) for _ in range(1, streams))]
        self._free = _queue(self._engines)
        self._broken = False
        self._source: dict[str, Any] | None = None  # the arguments of `load`
        self._sparsity: float | None = None
        remake_after_fork(self)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        streams: int = 1,
        precision: Precision = "full",
        isa: str = "",
        resize: Literal["letterbox", "stretch", "fit"] | None = None,
        tuning: str | os.PathLike[str] | None = None,
        cache: bool | str | os.PathLike[str] = False,
        backend: Name = "native",
        num_threads: int | None = None,
        plan: str | os.PathLike[str] | None = None,
    ) -> Detector:
        """Load a model file.

        Args:
            path: model file, or the name of an embedded one, "picodet-s" (the default) or
                "r50half-c4". Or an ONNX file of a detector, which is converted in memory
                (`pip install 'sparsedet[onnx]'`). For the backends openvino and onnxruntime also
                a graph file: the published .xml, or an exported one.
            threads: CPU threads of all streams together; default: the CPUs that this process
                may use, `engine.default_threads`.
            streams: images that run at once; they divide the threads among them. One stream
                gives the lowest latency, one stream a thread the highest throughput (`stream`).
            precision: a format, "f32", "bf16" or "int8", or a promise. "bf16" is faster where the
                CPU multiplies it natively, and changes the scores slightly. "int8" needs a file
                written by `sparsedet quantize`, and is fast for models pruned in 1x4 blocks.
                "full" gives results of float32's accuracy, "close" takes bf16 too where it is
                faster ("auto" is another name of it), "fastest" int8 too if the file has what it
                needs; see `engine.explain_precision` and `precision_reason`.
            isa: instruction set of the native engine, one of `sparsedet.available_isas()`;
                default: SPARSEDET_ISA from the environment, else the best of this CPU.
            resize: "letterbox" keeps the aspect ratio, "stretch" fills the network input;
                default: the model's.
            tuning: file written by `sparsedet info --autotune`, for the native engine; default:
                its cost model chooses how each operation runs.
            cache: True or a folder: the native engine keeps its packed weights in a file, so that
                the next load is faster and processes share memory. True is the folder `packed` of
                `files.cache_folder()`. Not for int8.
            backend: "native" is the sparse engine. "openvino", "onnxruntime" and "torch" run the
                model densely, with the same detections (`pip install 'sparsedet[export]'`, for
                torch `[train]`).
            num_threads, plan: deprecated names of `threads` and `tuning` (so is "fit", of
                "letterbox").

        Raises:
            InputError: the file is not a model, or an argument is unknown or not supported here.
        """
        if num_threads is not None:
            warn_renamed("num_threads", "threads")
            threads = num_threads
        if plan is not None:
            warn_renamed("plan", "tuning")
            tuning = plan
        if resize == "fit":
            warn_renamed("resize 'fit'", "'letterbox'")
            resize = "letterbox"
        asked = threads
        threads = default_threads() if threads is None else threads
        if streams != 1:
            if not isinstance(streams, int) or not 1 <= streams <= threads:
                raise InputError(f"streams is {streams!r}, expected 1..{threads}, the threads")
            threads //= streams
        if resize not in (None, "letterbox", "stretch"):
            raise InputError(f"resize is {resize!r}, expected 'letterbox' or 'stretch'")
        file = model_path(path)
        model, engine = load(
            backend,
            file,
            threads=threads,
            streams=streams,
            precision=precision,
            isa=isa,
            tuning=tuning,
            cache=cache,
        )
        if resize is not None:
            model = replace(model, config=with_form(model.config, resize=resize))
        detector = cls(model, engine, streams)
        detector._source = {
            # Not the file of an embedded model: another process may have it elsewhere.
            "path": os.path.abspath(file) if file is path else path,
            "threads": asked,
            "streams": streams,
            "precision": precision,
            "isa": isa,
            "resize": resize,
            "tuning": None if tuning is None else os.path.abspath(tuning),
            "cache": cache if isinstance(cache, bool) else os.path.abspath(cache),
            "backend": backend,
        }
        return detector

    def _run(self, run: Callable[[Backend], Result]) -> Result:
        """What `run` makes of the engine of a free stream."""
        if self._broken:
            raise InputError(
                f"this process was forked while the backend {self.backend!r} was detecting, and "
                "its runtime does not survive that: load the detector in this process"
            )
        free = self._free
        engine = free.get()
        try:
            return run(engine)
        finally:
            free.put(engine)

    def _after_fork(self) -> None:
        """In a new process: all streams are free, for the threads that had them are not here."""
        in_flight = len(self._free.queue) < self.streams  # qsize() would wait for a lock
        self._broken = self._broken or (in_flight and self.backend != "native")
        self._free = _queue(self._engines)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise InputError(
                "a Detector made of objects cannot be pickled, only one from Detector.load: "
                "load it in the other process"
            )
        return partial(type(self).load, **self._source), ()

    @property
    def config(self) -> Config:
        return self.model.config

    @property
    def backend(self) -> str:
        """Name of the backend that runs the network, one of `backends.NAMES`."""
        return getattr(self.engine, "name", "native")

    @property
    def isa(self) -> str:
        """The instruction set of the native engine, "" for another backend."""
        return self.engine.isa

    @property
    def runtime(self) -> str:
        """How it runs, in words: instruction set or backend, precision, threads."""
        return f"{self.isa or self.backend}, {self.engine.precision}, {self.engine.threads} threads"

    @property
    def precision_reason(self) -> str:
        """Why a promise became the precision that runs; "" where a format was asked for."""
        return str(getattr(self.engine, "precision_reason", ""))

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights and biases, 0..1.

        Raises:
            InputError: the model is a graph file.
        """
        if not self.model.tensors:
            raise InputError("sparsity is not counted in a graph: convert it (sparsedet convert)")
        if self._sparsity is None:
            from .model.sparsity import sparsity_report

            self._sparsity = sparsity_report(self.config, self.model.tensors).sparsity
        return self._sparsity

    @property
    def gflop(self) -> float:
        """What one image costs at most: GFLOP of convolutions and fully connected layers, as many
        as if nothing were pruned. A service that runs strangers' models sets a limit.

        An image whose size decides that of the network input is counted at the largest.
        """
        config, size = self.config, None
        if config.resize == "shorter":
            side = -(-config.max_size // config.divisor) * config.divisor
            size = side, side
        graph = build_graph(config, size)
        return graph.flops(graph.rois) / 1e9

    def __call__(self, image: ImageLike, score_threshold: float | None = None) -> Detections:
        """Detect objects in an image.

        >>> Detector.load()("examples/beach.jpg", 0.9)
        <Detections in 640x427: 5 person 0.93..1.00>

        Args:
            image: (H, W, 3) uint8 BGR, as `read_image` and OpenCV return it; or a PIL image, or
                the path or the bytes of an image file.
            score_threshold: minimum score, 0..1; default: the model's own (0.05 in all presets).
                A value below the model's has no effect.

        Raises:
            InputError: the image has another shape or type, or the threshold is no number.
        """
        if score_threshold is not None:  # before the work
            check_threshold(score_threshold)
        config = self.config
        with finished_before_exit():
            if not isinstance(image, np.ndarray):
                from .sources.values import to_image

                image = to_image(image)
            network_input, letterbox = prepare(image, config)
        content = None
        if config.resize == "shorter":  # other conventions end boxes at the network input
            content = letterbox.resized_height, letterbox.resized_width

        def run(engine: Backend) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
            if engine.masks:
                return engine.run_with_masks(network_input, content)
            return engine.run(network_input, content), None

        rows, masks = self._run(run)
        names = config.class_names, config.category_ids
        pasting = mask_pasting(config)
        found = from_rows(rows, letterbox, *names, score_threshold, masks, pasting)
        return found.remember(image)

    @overload
    def stream(
        self, source: Any, score_threshold: float | None = None, *, frames: Literal[False] = False
    ) -> Iterator[Detections]: ...
    @overload
    def stream(
        self, source: Any, score_threshold: float | None = None, *, frames: Literal[True]
    ) -> Iterator[tuple[Frame, Detections]]: ...
    def stream(
        self, source: Any, score_threshold: float | None = None, *, frames: bool = False
    ) -> Iterator[Any]:
        """Detect objects in images, `streams` of them at once.

        >>> detector = Detector.load()
        >>> for frame, found in detector.stream("examples", 0.9, frames=True):
        ...     print(frame.name, found)
        examples/beach.jpg <Detections in 640x427: 5 person 0.93..1.00>
        examples/frisbee.jpg <Detections in 640x457: 5 person 0.91..1.00>

        Args:
            source: what `sources.open_source` takes: images, paths, videos, addresses, or
                several; or an `ImageSource`, whose `bad_images` says what happens to bad ones.
            score_threshold: as of a call.
            frames: give each image's `Frame` (name, image, time, number) beside its detections.

        Yields:
            Detections of each image, in order; decoding and detection overlap. At most twice as
            many images as streams are read ahead, and of all but iterators four more.

        Raises:
            InputError: an image cannot be read, or `__call__` refuses it.
        """

        from .sources import ImageSource, open_source  # one image needs none of it
        from .sources.ahead import map_ahead, map_in_order

        def detect(frame: Frame) -> Detections:
            return self(frame.image, score_threshold)

        read = iter(open_source(source))
        if isinstance(source, str | os.PathLike | ImageSource | list | tuple):
            results = map_ahead(detect, read, self.streams, READ_AHEAD + self.streams)
        else:  # a program's own iterators may belong to its thread
            results = map_in_order(detect, read, self.streams)
        for frame, found in results:
            yield (frame, found) if frames else found

    async def stream_async(
        self, images: AsyncIterable[NDArray[np.uint8]], score_threshold: float | None = None
    ) -> AsyncIterator[Detections]:
        """`stream` for an asynchronous source; does not block the event loop."""
        import asyncio  # here, because importing it takes longer than loading a cached model

        with ThreadPoolExecutor(self.streams) as workers:
            pending: deque[asyncio.Future[Detections]] = deque()
            loop = asyncio.get_running_loop()
            try:
                async for image in images:
                    pending.append(loop.run_in_executor(workers, self, image, score_threshold))
                    if len(pending) >= 2 * self.streams:
                        yield await pending.popleft()
                while pending:
                    yield await pending.popleft()
            finally:
                for future in pending:
                    future.cancel()

    def infer(self, blob: NDArray[Any], *, four_d: bool = False) -> NDArray[np.float32]:
        """Run network inputs by the published contract: a blob in, rows of seven out.

        Args:
            blob: [B, 3, H, W] or [B, H, W, 3], BGR, whole numbers 0..255, of any size H x W.
            four_d: return [1, 1, N, 7] instead of [N, 7].

        Returns:
            N = B * max_detections rows (image_id, class_id, confidence, x0, y0, x1, y1): image_id
            is the index in the batch, coordinates are divided by W and H. Images are in order, with
            the best detection first; padding rows with image_id -1 follow.

        Raises:
            InputError: the blob has another shape or other values.
        """
        batch = as_blob(blob)
        outputs = []
        for index, network_input in enumerate(batch):
            rows = self._run(methodcaller("run", network_input))
            rows[:, 0] = index
            outputs.append(rows)
        return contract_rows(
            np.concatenate(outputs), len(batch) * self.config.max_detections, four_d
        )


def _queue(engines: list[Backend]) -> LifoQueue[Backend]:
    queue: LifoQueue[Backend] = LifoQueue()
    for engine in engines:
        queue.put(engine)
    return queue
