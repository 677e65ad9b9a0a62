"""What `sparsedet serve` gives and bears, with a client on the same cores.

    python benchmarks/bench_service.py --minutes 10 --json docs/results/bench_service.json

The service is a process of its own on 127.0.0.1, its requests are JPEGs of 640x480 made from the
example photographs. In this order:

- start: from the start of the process to the answer of its first `POST /detect`; then it is
  killed, and started again;
- alone: one request after the other: its time, and how much of it is not detection
  (`Server-Timing`);
- throughput: a request more at once than the service has threads, with a stream for each CPU,
  beside `Detector.stream` with as many streams on the same images in memory, in turns;
- overload: for so many minutes, requests begin at fixed times, at four times the rate that the
  service can answer. Each is answered by 200 or 429, or it is counted as lost. The memory of the
  process is read each second.

Prints the figures; exits with 1 when a request was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_bulk import write_views
from lib import records
from lib.processes import installed_environment

from sparsedet.detector import Detector
from sparsedet.images.read import read_image

IMAGES = 16
OVERLOAD = 4
CONNECTIONS = 64
"""Clients of the overload; more than the service has room for, so that none of them is late."""


@dataclass
class Served:
    """A service that runs: its process, its address without http://."""

    process: subprocess.Popen[str]
    address: str
    begun: float

    def memory(self) -> float:
        """Its memory in MB (resident set), as Linux counts it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextlib.contextmanager
def service(arguments: argparse.Namespace, streams: int) -> Iterator[Served]:
    """`sparsedet serve` until the end of the block; then it is killed."""
    command = [sys.executable, "-m", "sparsedet", "serve", "--port", "0"]
    command += ["--threads", str(arguments.threads), "--streams", str(streams)]
    command += ["--model", str(arguments.model)]
    begun = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=arguments.env) as process:
        assert process.stderr is not None
        log = threading.Thread(target=process.stderr.read, daemon=True)
        try:
            first = json.loads(process.stderr.readline())
            log.start()
            yield Served(process, first["address"].removeprefix("http://"), begun)
        finally:
            process.kill()
            if log.is_alive():
                log.join()  # else it would read what is closed


def ask(client: http.client.HTTPConnection, data: bytes) -> tuple[int, float, str]:
    """Status, seconds and `Server-Timing` of a request."""
    start = time.perf_counter()
    client.request("POST", "/detect", data)
    answer = client.getresponse()
    answer.read()
    return answer.status, time.perf_counter() - start, answer.getheader("Server-Timing") or ""


def detection_seconds(timing: str) -> float:
    """The step `detect` of a `Server-Timing`."""
    steps = dict(step.strip().split(";dur=") for step in timing.split(","))
    return float(steps["detect"]) / 1000


def starts(arguments: argparse.Namespace, data: bytes) -> list[float]:
    """Seconds from the start of the process to its first answer."""
    found = []
    for _ in range(arguments.starts + 1):
        with service(arguments, 1) as served:
            client = http.client.HTTPConnection(served.address, timeout=60)
            assert ask(client, data)[0] == 200
            found.append(time.perf_counter() - served.begun)
            client.close()
    return found[1:]  # the first one reads files from the disk


def alone(arguments: argparse.Namespace, served: Served, bodies: list[bytes]) -> dict[str, Any]:
    """One request after the other."""
    client = http.client.HTTPConnection(served.address, timeout=60)
    ask(client, bodies[0])
    answers = [ask(client, bodies[i % len(bodies)]) for i in range(arguments.requests)]
    client.close()
    assert all(status == 200 for status, _, _ in answers)
    above = [seconds - detection_seconds(timing) for _, seconds, timing in answers]
    return {
        "milliseconds": 1000 * statistics.median(seconds for _, seconds, _ in answers),
        "milliseconds_above_detection": 1000 * statistics.median(above),
    }


def answered(served: Served, bodies: list[bytes], clients: int, count: int) -> float:
    """Images a second, of so many clients that each wait for their answer."""
    todo = iter(range(count))
    lock = threading.Lock()

    def work(client_number: int) -> None:
        client = http.client.HTTPConnection(served.address, timeout=60)
        while True:
            with lock:
                number = next(todo, None)
            if number is None:
                client.close()
                return
            status, _, _ = ask(client, bodies[number % len(bodies)])
            assert status == 200, status

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return count / (time.perf_counter() - start)


def throughput(
    arguments: argparse.Namespace, served: Served, bodies: list[bytes], images: list[Any]
) -> dict[str, Any]:
    """Images a second of the service, beside those of the engine itself."""
    threads, count = arguments.threads, arguments.requests
    detector = Detector.load(arguments.model, threads=threads, streams=threads)
    many = [images[i % len(images)] for i in range(count)]
    rates: dict[str, list[float]] = {"service": [], "engine": []}
    for _ in range(arguments.rounds + 1):
        rates["service"].append(answered(served, bodies, threads + 1, count))
        start = time.perf_counter()
        for _ in detector.stream(iter(many), 0.5):
            pass
        rates["engine"].append(count / (time.perf_counter() - start))
    service_rates, own = rates["service"][1:], rates["engine"][1:]
    shares = [rate / mine for rate, mine in zip(service_rates, own, strict=True)]
    return {
        "images_per_second": statistics.median(service_rates),
        "engine_images_per_second": statistics.median(own),
        "share_of_engine": statistics.median(shares),
        "isa": detector.isa,
    }


@dataclass
class Load:
    """What became of requests that begin at fixed times."""

    statuses: Counter[str] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    late: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, status: str, seconds: float, late: float) -> None:
        with self.lock:
            self.statuses[status] += 1
            self.late = max(self.late, late)
            if status == "200":
                self.accepted.append(seconds)


def overload(
    served: Served, bodies: list[bytes], rate: float, seconds: float
) -> tuple[Load, list[float]]:
    """Requests at `rate` a second, whatever becomes of the earlier ones; and the memory of each
    second in MB."""
    load, memory = Load(), []
    begun = time.perf_counter()
    todo = iter(range(int(rate * seconds)))

    def work(client_number: int) -> None:
        client = http.client.HTTPConnection(served.address, timeout=60)
        while True:
            with load.lock:
                number = next(todo, None)
            if number is None:
                client.close()
                return
            due = begun + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            late = time.perf_counter() - due
            try:
                status, took, _ = ask(client, bodies[number % len(bodies)])
                load.note(str(status), took, late)
            except (OSError, http.client.HTTPException) as error:
                load.note(type(error).__name__, 0.0, late)
                client.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        running = [pool.submit(work, i) for i in range(CONNECTIONS)]
        while not all(one.done() for one in running):
            memory.append(served.memory())
            time.sleep(1)
        for one in running:
            one.result()
    return load, memory


def under_overload(
    arguments: argparse.Namespace, served: Served, bodies: list[bytes], found: dict[str, Any]
) -> dict[str, Any]:
    """The figures of the overload, and the limit of its p99: three times the latency of a request
    alone, times the requests that may be inside."""
    rate = OVERLOAD * found["throughput"]["images_per_second"]
    load, memory = overload(served, bodies, rate, 60 * arguments.minutes)
    if not load.accepted:
        raise SystemExit(f"no request was accepted: {dict(load.statuses)}")
    tenth = max(len(memory) // 10, 1)
    room = arguments.threads + 1 + 16  # work.py: its threads, and --queue
    return {
        "minutes": arguments.minutes,
        "requests_per_second": rate,
        "statuses": dict(load.statuses),
        "lost": sum(count for status, count in load.statuses.items() if status not in OK),
        "accepted_per_second": len(load.accepted) / (60 * arguments.minutes),
        "p50_milliseconds": 1000 * float(np.percentile(load.accepted, 50)),
        "p99_milliseconds": 1000 * float(np.percentile(load.accepted, 99)),
        "p99_limit_milliseconds": 3 * room * found["alone_with_streams"]["milliseconds"],
        "latest_start_milliseconds": 1000 * load.late,
        # The first tenth fills buffers and pools.
        "memory_mb": {
            "second_tenth": statistics.median(memory[tenth : 2 * tenth] or memory),
            "last_tenth": statistics.median(memory[-tenth:]),
            "most": max(memory),
        },
    }


OK = ("200", "429")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    write_views(folder, IMAGES)
    paths = sorted(folder.glob("*.jpg"))
    bodies = [path.read_bytes() for path in paths]
    images = [read_image(path) for path in paths]
    begun = starts(arguments, bodies[0])
    found: dict[str, Any] = {
        "start_to_first_answer": {"seconds": statistics.median(begun), "most": max(begun)}
    }
    with service(arguments, 1) as served:
        found["alone"] = alone(arguments, served, bodies)
    with service(arguments, arguments.threads) as served:
        found["alone_with_streams"] = alone(arguments, served, bodies)
        found["throughput"] = throughput(arguments, served, bodies, images)
        if arguments.minutes:
            found["overload"] = under_overload(arguments, served, bodies, found)
    return found


def show(found: dict[str, Any]) -> None:
    start = found["start_to_first_answer"]
    print(f"start to first answer: {start['seconds']:.2f} s, at most {start['most']:.2f} s")
    for name, words in (("alone", "one stream"), ("alone_with_streams", "one stream a thread")):
        one = found[name]
        print(
            f"one request after the other, {words}: {one['milliseconds']:.1f} ms, "
            f"{one['milliseconds_above_detection']:.1f} ms above detection"
        )
    rates = found["throughput"]
    print(
        f"throughput: {rates['images_per_second']:.2f} images/s, "
        f"{rates['share_of_engine']:.3f} of the engine's {rates['engine_images_per_second']:.2f}"
    )
    if "overload" in found:
        over = found["overload"]
        memory = over["memory_mb"]
        print(
            f"overload, {over['minutes']:g} minutes at {over['requests_per_second']:.0f} requests/s"
            f": {over['statuses']}, {over['accepted_per_second']:.2f} accepted a second; p50 "
            f"{over['p50_milliseconds']:.0f} ms, p99 {over['p99_milliseconds']:.0f} ms (limit "
            f"{over['p99_limit_milliseconds']:.0f}); memory {memory['second_tenth']:.0f} -> "
            f"{memory['last_tenth']:.0f} MB, at most {memory['most']:.0f}; a request began "
            f"{over['latest_start_milliseconds']:.0f} ms late at most"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("r50half-c4"), help="model file or name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--starts", type=int, default=5, help="of the process")
    parser.add_argument("--requests", type=int, default=100, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of service and engine in turn")
    parser.add_argument("--minutes", type=float, default=10, help="of overload; 0: none")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        arguments.env = installed_environment(Path(folder, "compiled"))
        photos = Path(folder, "photos")
        photos.mkdir()
        found = measure(arguments, photos)
    show(found)
    if arguments.json:
        conditions = records.describe(found["throughput"].pop("isa"), arguments.threads)
        records.save(arguments.json, {"machine": conditions, **found})
    return 1 if found.get("overload", {}).get("lost") else 0


if __name__ == "__main__":
    sys.exit(main())
