"""Engines in a process that forks, and in one that ends while threads still use them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from sparsedet import Detector, InputError
from sparsedet.engine import Engine

START = """
import os, sys, threading, time
import numpy as np
from sparsedet import Detector
path = sys.argv[1]
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    # From Python 3.12 on a fork with threads warns of what these tests prove to work.
    allowed = ["-W", "ignore:This process:DeprecationWarning"]
    return subprocess.run(
        [sys.executable, *allowed, "-c", START + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )


def assert_silent(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ------------------------------------------------------------------------- the end of a process

ENDLESS = {
    "loads": "while True: Detector.load(threads=2)",
    "detects": "while True: detector.infer(canvas)",
    "packs from a cache": "while True: Detector.load(path, threads=2, cache=sys.argv[3])",
    "streams": "while True: list(detector.stream([canvas[0]] * 5))",
    "resizes": "while True: detector(photo)",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_the_process_ends_while_a_daemon_thread_works(
    what: str, small_model: Path, tmp_path: Path
) -> None:
    """Five moments for each kind of work: exit code 0, and nothing is printed."""
    program = f"""
detector = Detector.load(path, threads=2, streams=2)
canvas, photo = np.zeros((1, 64, 96, 3), np.uint8), np.zeros((1500, 2000, 3), np.uint8)
def work():
    {ENDLESS[what]}
threading.Thread(target=work, daemon=True).start()
time.sleep(float(sys.argv[2]))
"""
    for wait in (0.01, 0.05, 0.1, 0.2, 0.3):
        assert_silent(run(program, small_model, wait, tmp_path))


def test_an_exit_hook_may_wait_for_the_thread(small_model: Path) -> None:
    """The thread is not held up before the interpreter is on its way out."""
    program = """
import atexit
stop, detector = threading.Event(), Detector.load(path, threads=2)
canvas = np.zeros((1, 64, 96, 3), np.uint8)
def work():
    while not stop.is_set(): detector(canvas[0])
thread = threading.Thread(target=work, daemon=True)
def end():
    detector(canvas[0])
    stop.set()
    thread.join()
atexit.register(end)
thread.start()
time.sleep(0.1)
"""
    assert_silent(run(program, small_model))


def test_a_leak_without_such_a_thread_is_still_reported(small_model: Path) -> None:
    program = """
import ctypes
detector = Detector.load(path, threads=2)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(detector.engine.native))
"""
    assert "leaked 1 instances" in run(program, small_model).stderr


# ------------------------------------------------------------------------------------- forks

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
FORK = """
def fork(body, seconds=20):
    \"\"\"Run `body` in a forked process; its exit code, or "hangs".\"\"\"
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    end = time.time() + seconds
    while time.time() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"

canvas = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)).astype(np.uint8)
"""


@needs_fork
@pytest.mark.parametrize(("threads", "streams"), [(1, 1), (2, 1), (2, 2)])
def test_a_fork_while_other_threads_detect(small_model: Path, threads: int, streams: int) -> None:
    program = f"""{FORK}
detector = Detector.load(path, threads={threads}, streams={streams})
expected, stop = detector.infer(canvas), threading.Event()
other = np.ascontiguousarray(canvas[:, :48, :80])  # so that memory is planned over and over
def busy(blob):
    while not stop.is_set(): detector.infer(blob)
workers = [threading.Thread(target=busy, args=(blob,)) for blob in (canvas, other, other)]
for worker in workers: worker.start()
time.sleep(0.1)
def detect():
    for _ in range(3):
        assert np.array_equal(detector.infer(canvas), expected)
    assert len(list(detector.stream([canvas[0]] * 3))) == 3
    assert fork(detect_once) == 0  # a fork of a fork
def detect_once():
    assert np.array_equal(detector.infer(canvas), expected)
codes = []
for _ in range(5):
    codes.append(fork(detect))
    time.sleep(0.013)
stop.set()
for worker in workers: worker.join()
assert np.array_equal(detector.infer(canvas), expected)  # the parent goes on
assert codes == [0] * 5, codes
"""
    assert_silent(run(program, small_model))


@needs_fork
def test_a_fork_with_nothing_in_flight(small_model: Path) -> None:
    program = f"""{FORK}
import resource
detector = Detector.load(path, threads=3)
expected = detector.infer(canvas)
threads = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 3
def detect():
    global detector
    native = detector.engine.native
    assert np.array_equal(detector.infer(canvas), expected)
    assert detector.engine.native is native and threads() == 3  # the pool started anew
    del native, detector  # joins no thread of the parent
    assert threads() in (1, 3)
def drop():
    global detector
    del detector  # before it ran here
assert [fork(detect), fork(drop)] == [0, 0]
assert np.array_equal(detector.infer(canvas), expected)
"""
    assert_silent(run(program, small_model))


@needs_fork
def test_a_forked_process_ends_silently(small_model: Path) -> None:
    """Also where the interpreter ends in the usual way, with what the parent's threads held."""
    program = f"""{FORK}
detector, stop = Detector.load(path, threads=2), threading.Event()
def busy():
    while not stop.is_set(): detector.infer(canvas)
worker = threading.Thread(target=busy)
worker.start()
time.sleep(0.1)
child = os.fork()
if child == 0:
    detector.infer(canvas)
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
worker.join()
"""
    assert_silent(run(program, small_model))


@needs_fork
@pytest.mark.parametrize(
    "name", ["openvino", "onnxruntime", pytest.param("torch", marks=pytest.mark.slow)]
)
def test_other_runtimes_say_at_once_that_they_do_not_work(name: str, small_model: Path) -> None:
    pytest.importorskip(name)
    program = f"""{FORK}
detector, stop = Detector.load(path, threads=2, backend=sys.argv[2]), threading.Event()
def busy():
    while not stop.is_set(): detector.infer(canvas)
worker = threading.Thread(target=busy)
worker.start()
time.sleep(0.3)
print(fork(lambda: detector.infer(canvas)))
stop.set()
worker.join()
"""
    lines = run(program, small_model, name).stdout.splitlines()
    assert len(lines) == 2 and lines[1] == "1"
    assert name in lines[0] and "load the detector in this process" in lines[0]


@needs_fork
@pytest.mark.slow
def test_torch_with_threads_of_its_own_says_so_after_any_fork(small_model: Path) -> None:
    pytest.importorskip("torch")
    program = f"""{FORK}
for threads in (1, 2):
    detector = Detector.load(path, threads=threads, backend="torch")
    detector.infer(canvas)
    print(fork(lambda: detector.infer(canvas)))
"""
    first, message, second = run(program, small_model).stdout.splitlines()
    assert (first, second) == ("0", "1") and "with threads=1" in message


# ----------------------------------------------------------------------------------- threads


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory")
def test_more_threads_than_the_system_starts(small_model: Path) -> None:
    program = """
import resource
from sparsedet import InputError
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
for streams in (1, 1000):
    try:
        Detector.load(path, threads=1000, streams=streams)
    except InputError as error:
        print(error)
detector = Detector.load(path, threads=1)
print(len(detector.infer(np.zeros((1, 64, 96, 3), np.uint8))))
"""
    done = run(program, small_model)
    first, *_, last = done.stdout.splitlines()
    assert "threads is 1000, but the system does not start as many" in first
    assert last == "20" and done.returncode == 0


def test_an_engine_says_that_it_does_not_pickle(small_model: Path) -> None:
    engine = Detector.load(small_model, threads=1).engine
    assert isinstance(engine, Engine)
    with pytest.raises(InputError, match="cannot be pickled") as refused:
        pickle.dumps(engine)
    assert "\n" not in str(refused.value)
