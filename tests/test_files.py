"""The one writer: whole files or none, links followed, devices and pipes written into."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.commands import tree

from sparsedet.errors import InputError
from sparsedet.files import (
    cache_folder,
    check_folder,
    check_output,
    is_stream,
    make_folder,
    write_atomic,
)

# -------------------------------------------------------------------- regular files


def test_a_file_is_written_once_and_replaced_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"one")
    with pytest.raises(InputError, match="exists already"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    write_atomic(path, b"two", overwrite=True)
    assert tree(tmp_path) == {"a.json": b"two"}


def test_the_mode_is_the_users(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        write_atomic(path, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write_atomic(path, b"again", overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "名" * 85])
def test_a_name_may_be_as_long_as_the_system_takes(name: str, tmp_path: Path) -> None:
    check_output(tmp_path / name)
    write_atomic(tmp_path / name, b"data")
    assert tree(tmp_path) == {name: b"data"}


def test_what_cannot_be_written_is_one_line_before_and_after_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "astray").symlink_to("none/x")
    before = tree(tmp_path)
    for name, words in {
        "x" * 256: "name too long",
        "file/x": "cannot be written",
        "none/x": "cannot be written",
        "astray": "cannot be written",
        "round": "cannot be written",
        ".": "folder",
        "file": "exists already",
    }.items():
        path = tmp_path / name
        with pytest.raises(InputError, match=words) as refusal:
            check_output(path)
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
        with pytest.raises(InputError, match="exists already" if name == "." else words):
            write_atomic(path, b"data")
    assert tree(tmp_path) == before
    assert (tmp_path / "round").is_symlink()


def test_the_advice_is_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"give another name or --overwrite$"):
        check_output(path)
    with pytest.raises(InputError, match=r"give another name$"):
        check_output(path, flag="")
    check_output(path, overwrite=True)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a: cannot be written \(No space left on device\)"):
        write_atomic(path, b"new", overwrite=True)
    assert tree(tmp_path) == {"a": b"old"}


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of files")
def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    import fcntl

    kept = [".a.bin.abcdefgh.partial~", ".a.bin.abc.partial", "a.bin.abcdefgh.partial", ".a.bin"]
    for name in (".a.bin.leftover.partial", ".b.bin.in_use_1.partial", *kept):
        (tmp_path / name).write_bytes(b"")
    with open(tmp_path / ".b.bin.in_use_1.partial") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        write_atomic(tmp_path / "c.bin", b"")
    assert set(tree(tmp_path)) == {*kept, ".b.bin.in_use_1.partial", "c.bin"}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_a_kill_within_a_write_leaves_the_old_file(moment: str, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from sparsedet.files import write_atomic
os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(sys.argv[1], b"new", overwrite=True)
"""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.glob(".a.*.partial"))) == 1
    write_atomic(path, b"newer", overwrite=True)
    assert tree(tmp_path) == {"a": b"newer"}


def test_a_read_only_folder_is_found_before_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "ro"
    folder.mkdir()
    folder.chmod(0o555)
    program = (  # tempfile, which is imported when asked for, may be root's alone
        "import os, sys, tempfile\n"
        "from pathlib import Path; from sparsedet.files import check_output\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "check_output(Path(sys.argv[1]))"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:  # pytest's folders are for their owner alone
        if os.geteuid() == 0 and parent.stat().st_uid == 0 and "pytest" in parent.name:
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "x")], capture_output=True, text=True
    )
    assert "x: cannot be written (Permission denied)" in done.stderr, done.stderr
    if os.geteuid() == 0:
        check_output(folder / "x")  # root may write there
    folder.chmod(0o755)


# -------------------------------------------------------------------- links


@pytest.mark.parametrize("to", ["target", "sub/target", "second"])
def test_a_link_stays_and_its_target_is_replaced(to: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "second").symlink_to("sub/target")
    real = tmp_path / ("target" if to == "target" else "sub/target")
    real.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(to)
    with pytest.raises(InputError, match="exists already"):
        write_atomic(link, b"new")
    with pytest.raises(InputError, match="exists already"):
        check_output(link)
    write_atomic(link, b"new", overwrite=True)
    assert os.readlink(link) == to and not real.is_symlink() and real.read_bytes() == b"new"
    assert {p.name for p in tmp_path.iterdir()} - {"target"} == {"link", "second", "sub"}


def test_a_dangling_link_is_filled(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere/gone")
    check_output(link)
    write_atomic(link, b"made")
    assert link.is_symlink() and (tmp_path / "elsewhere" / "gone").read_bytes() == b"made"


# -------------------------------------------------------------------- what is no regular file


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, data = tmp_path / "pipe", bytes(range(256)) * 1000  # more than a pipe holds
    os.mkfifo(pipe)
    assert is_stream(pipe)
    check_output(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, data)
    reader.join()
    assert read == [data] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_reader_that_stops_is_no_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def look() -> None:
        with open(pipe, "rb") as file:
            file.read(10)

    reader = threading.Thread(target=look)
    reader.start()
    write_atomic(pipe, bytes(1_000_000))
    reader.join()


def test_a_socket_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        assert is_stream("s")
        write_atomic("s", b"data")
        connection = server.accept()[0]
        with connection:
            assert connection.recv(10) == b"data"
    assert stat.S_ISSOCK(os.stat("s").st_mode)
    with pytest.raises(InputError, match="Connection refused"):
        write_atomic("s", b"data")


def test_devices_are_written_into_and_stay(tmp_path: Path) -> None:
    null, full = tmp_path / "null", tmp_path / "x.jpg"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        null.read_bytes()
    except OSError:
        pytest.skip("only root makes devices, and not everywhere")
    for overwrite in (False, True):
        check_output(null, overwrite=overwrite)
        write_atomic(null, b"data", overwrite=overwrite)
        with pytest.raises(InputError, match="No space left"):
            write_atomic(full, b"data", overwrite=overwrite)
    link = tmp_path / "link"
    link.symlink_to("null")
    write_atomic(link, b"data", overwrite=True)
    assert link.is_symlink()
    assert all(stat.S_ISCHR(path.stat().st_mode) for path in (null, full))


PROGRAM = """
import sys
from pathlib import Path
from sparsedet.files import check_output, write_atomic
print("before")
check_output(Path(sys.argv[1]))
write_atomic(sys.argv[1], b"data\\n")
print("after")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("kind", ["file", "appended", "pipe", "socket"])
def test_standard_output_is_written_in_order(name: str, kind: str, tmp_path: Path) -> None:
    if name == "link":
        (tmp_path / "link").symlink_to("/proc/self/fd/1")
        name = str(tmp_path / "link")
    command = [sys.executable, "-c", PROGRAM, name]
    expected = b"before\ndata\nafter\n"
    if kind == "pipe":
        assert subprocess.run(command, stdout=subprocess.PIPE).stdout == expected
    elif kind == "socket":
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert subprocess.run(command, stdout=theirs.fileno()).returncode == 0
            assert ours.recv(100) == expected
    else:
        file = tmp_path / "f"
        file.write_bytes(b"kept\n")
        with open(file, "ab" if kind == "appended" else "wb") as stdout:
            assert subprocess.run(command, stdout=stdout).returncode == 0
        assert file.read_bytes() == (b"kept\n" if kind == "appended" else b"") + expected


def test_process_substitution(tmp_path: Path) -> None:
    script = f'"$0" -c "$1" >(cat > {tmp_path}/got; echo done > {tmp_path}/end) && ' + (
        f"while [ ! -s {tmp_path}/end ]; do sleep 0.01; done"
    )
    try:
        done = subprocess.run(["bash", "-c", script, sys.executable, PROGRAM], timeout=60)
    except FileNotFoundError:
        pytest.skip("bash is not here")
    assert done.returncode == 0 and (tmp_path / "got").read_bytes() == b"data\n"


# -------------------------------------------------------------------- folders


def test_folders_to_be_made(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert tree(tmp_path) == {}
    make_folder(tmp_path / "a" / "b")
    check_folder(tmp_path / "a" / "b")
    assert tree(tmp_path) == {"a": None, "a/b": None}
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(InputError, match="cannot be used as a folder"):
            check_folder(path)
        with pytest.raises(InputError):
            make_folder(path)
    with pytest.raises(InputError, match="name too long"):
        check_folder(tmp_path / ("x" * 256))


def test_a_cache_folder_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPARSEDET_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(InputError, match="SPARSEDET_CACHE"):
        cache_folder()
