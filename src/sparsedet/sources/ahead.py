"""Work that overlaps: reading ahead in a thread, and threads whose results stay in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


def read_ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The same items, up to `count` of them taken ahead in a thread of its own.

    An error of `items` is raised in its place. Whoever stops early closes the iterator, and so
    stops the thread at the next item.
    """
    queue: Queue[Any] = Queue(count)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                pass
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:  # a file, a capture
                close()

    # A daemon: a camera that says nothing more must not keep the process from ending.
    thread = threading.Thread(target=fill, name="sparsedet source", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends, and starts no more threads
        yield from items
        return
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        try:
            while True:
                queue.get_nowait()  # images are large
        except Empty:
            pass


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) in order, `workers` of them at once.

    At most twice as many items as workers are taken ahead.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                pending.append((item, _submit(pool, function, item)))
                if len(pending) >= 2 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[tuple[Item, Result]]:
    """As `map_in_order`, with `items` read in a thread; a result comes as soon as it is there.

    Args:
        ahead: items that are taken before the caller asks for them, those at work included.
    """
    pool = ThreadPoolExecutor(workers)

    def submitted() -> Iterator[tuple[Item, Future[Result]]]:
        for item in items:
            yield item, _submit(pool, function, item)

    reader = read_ahead(submitted(), ahead)
    try:
        for item, future in reader:
            yield item, future.result()
    finally:
        reader.close()  # type: ignore[attr-defined]
        pool.shutdown(wait=False, cancel_futures=True)


def _submit(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], item: Item
) -> Future[Result]:
    try:
        return pool.submit(function, item)
    except RuntimeError:  # a daemon thread while the interpreter ends: no helpers
        future: Future[Result] = Future()
        future.set_result(function(item))
        return future
