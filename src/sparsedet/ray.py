"""Detection on a cluster, by Ray Data (`pip install 'sparsedet[ray]'`).

`DetectImages` is for pipelines of your own; `run_on_ray` does the parts of a bulk run. Each worker
loads one detector and keeps it. Ray is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bulk import PartDone, Wanted, do_part, load_plan
from .detections import Detections
from .detector import Detector
from .errors import InputError
from .images.read import decode_image


def require_ray() -> Any:
    """The module ray, with ray.data.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"a cluster needs: pip install 'sparsedet[ray]' ({error})") from None
    return ray


class DetectImages:
    """Detects in batches of images; for `ray.data.Dataset.map_batches`.

    Each batch keeps its columns and gets width, height, names, labels, scores and boxes (of each
    image a list; boxes are x0, y0, x1, y1 in pixels), and error: why an image has none, or None.
    The image is the column `bytes`, an image file, as `ray.data.read_binary_files` gives it; or
    `image`, (H, W, 3) uint8 RGB, as `ray.data.read_images` does. The column `bytes` is dropped.

        files = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
        found = files.map_batches(DetectImages, batch_size=16, concurrency=4, num_cpus=1)

    Leave a CPU or two of the cluster to the tasks that read: workers hold theirs until the end.

    Args:
        model: model file that all workers can read; or the name of an embedded one; default: the
            default model.
        score: ignore detections with a lower score, 0..1.
        threads: CPU threads of this worker, each for an image of its own; as `num_cpus`.
        settings: of `Detector.load`.
    """

    def __init__(
        self, model: str | None = None, *, score: float = 0.5, threads: int = 1, **settings: Any
    ) -> None:
        self.score = score
        self.detector = Detector.load(model, threads=threads, streams=threads, **settings)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """A batch of columns to one with more columns.

        Raises:
            InputError: it has no column of images.
        """
        if "bytes" in batch:
            images: Iterable[Any] = batch["bytes"]
        elif "image" in batch:
            images = batch["image"]
        else:
            raise InputError(f"the batch has {', '.join(batch)}, expected bytes or image")
        results = list(self._results(images))
        found = [result if isinstance(result, Detections) else None for result in results]
        kept = {name: values for name, values in batch.items() if name != "bytes"}
        return {
            **kept,
            "width": [None if one is None else one.letterbox.width for one in found],
            "height": [None if one is None else one.letterbox.height for one in found],
            "names": [[] if one is None else one.names for one in found],
            "labels": [[] if one is None else one.labels.tolist() for one in found],
            "scores": [[] if one is None else one.scores.tolist() for one in found],
            "boxes": [[] if one is None else one.boxes.tolist() for one in found],
            "error": [result if isinstance(result, str) else None for result in results],
        }

    def _results(self, images: Iterable[Any]) -> Iterable[Detections | str]:
        from .sources.ahead import map_in_order

        def look(image: Any) -> Detections | str:
            try:
                if isinstance(image, bytes):
                    pixels = decode_image(image, "image")
                else:
                    pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])  # RGB -> BGR
                return self.detector(pixels, self.score)
            except InputError as error:
                return str(error)

        for _, result in map_in_order(look, images, self.detector.streams + 1):
            yield result


class DoParts:
    """Does parts of a plan; for `map_batches`.

    Args:
        output: folder of the results, which all workers can reach, with the plan.
        settings: of `Detector.load`, threads and streams of this worker among them.
        wanted: which detections are kept.
    """

    def __init__(self, output: str, settings: dict[str, Any], wanted: Wanted) -> None:
        self.plan = load_plan(output)
        settings = dict(settings)
        self.detector = Detector.load(settings.pop("path"), **settings)
        self.detect = wanted.of(self.detector)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        done = [
            do_part(self.plan, int(part), self.detect, self.detector.streams)
            for part in batch["part"]
        ]
        names = ("part", "images", "failed", "detections")
        return {name: np.array([getattr(one, name) for one in done]) for name in names}


def run_on_ray(
    output: str,
    settings: dict[str, Any],
    wanted: Wanted,
    *,
    workers: int | None = None,
    address: str | None = None,
    tell: Callable[[PartDone], None] = lambda done: None,
) -> None:
    """Do what is missing of a bulk run on a Ray cluster.

    A worker that dies is started again, and its part is done again: as a part is written last and
    at once, nothing is lost or doubled.

    Args:
        output: as of `DoParts`.
        settings, wanted: as of `DoParts`; `threads` of the settings are the CPUs of a worker.
        workers: default: as many as the cluster has CPUs for.
        address: of the cluster; "auto": the one that this machine belongs to; None: one of its
            own on this machine, unless ray is initialised already.
        tell: told of each part that is done.

    Raises:
        InputError: ray is not installed, or there is no such cluster.
    """
    ray = require_ray()
    plan = load_plan(output)
    missing = plan.missing()
    if not missing:
        return
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise InputError(f"no Ray cluster at {address}: {lines[0][:200]}") from None
    try:
        threads = int(settings["threads"])
        most = max(int(ray.cluster_resources().get("CPU", 1)) // threads, 1)
        ray.data.DataContext.get_current().enable_progress_bars = False
        parts = ray.data.from_items(
            [{"part": part} for part in missing], override_num_blocks=len(missing)
        )
        done = parts.map_batches(
            DoParts,
            fn_constructor_args=(output, settings, wanted),
            batch_size=1,
            concurrency=min(workers or most, len(missing)),
            num_cpus=threads,
        )
        for row in done.iter_rows():
            tell(PartDone(**{name: int(value) for name, value in row.items()}))
    finally:
        if started:
            ray.shutdown()
