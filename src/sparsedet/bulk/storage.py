"""Files where a bulk run finds and leaves them: on this machine's disks, or in S3 (`s3://`).

Whatever speaks S3's protocol will do: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names another server,
AWS_REGION the region; credentials come from where AWS's tools look for them.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import make_folder, write_atomic
from ..images.read import MAX_FILE_BYTES
from ..sinks.parquet import arrow
from ..sources.folder import walk

S3 = "s3://"


def is_remote(address: str) -> bool:
    """Whether an address is in S3."""
    return address.startswith(S3)


def join(folder: str, name: str) -> str:
    """The address of a file of a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


@lru_cache(maxsize=1)
def _s3(process: int) -> Any:
    """The file system; one for each process, because connections do not survive a fork."""
    arrow()
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings = {"endpoint_override": endpoint, "region": region}
    return fs.S3FileSystem(**{key: value for key, value in settings.items() if value})


def _remote(address: str) -> tuple[Any, str]:
    """The file system, and the path in it."""
    path = address.removeprefix(S3)
    if not path.strip("/"):
        raise InputError(f"{address}: no bucket, expected s3://BUCKET/FOLDER")
    return _s3(os.getpid()), path


def _problem(address: str, error: OSError) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = error.strerror or (lines[0] if lines else type(error).__name__)
    return InputError(f"{address}: {text[:300]}")


def list_files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Addresses of the files of a folder and its subfolders, sorted; hidden ones are left out.

    Args:
        suffixes: of the files, in lower case.

    Raises:
        InputError: the folder, or one below it, cannot be read.
    """
    if not is_remote(folder):
        found = []
        for one in walk(Path(folder), suffixes, recursive=True):
            if isinstance(one, InputError):
                raise one
            found.append(str(one))
        return found
    from pyarrow import fs

    system, path = _remote(folder)
    try:
        infos = system.get_file_info(fs.FileSelector(path.rstrip("/"), recursive=True))
    except OSError as error:
        raise _problem(folder, error) from None
    return sorted(
        S3 + info.path
        for info in infos
        if info.is_file
        and info.path.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in info.path[len(path) :].split("/"))
    )


def is_folder(address: str) -> bool:
    """Whether an address is a folder, of any content.

    Raises:
        InputError: the server does not answer.
    """
    if is_remote(address):
        return bool(_info(address).type.name == "Directory")
    return os.path.isdir(address)


def exists(address: str) -> bool:
    """Whether there is a file.

    Raises:
        InputError: the server does not answer.
    """
    return bool(_info(address).is_file) if is_remote(address) else os.path.exists(address)


def _info(address: str) -> Any:
    """What the server knows of an address."""
    system, path = _remote(address)
    try:
        return system.get_file_info(path.rstrip("/"))
    except OSError as error:
        raise _problem(address, error) from None


def read_bytes(address: str, most: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file.

    Raises:
        InputError: it cannot be read, or is larger than `most`.
    """
    try:
        if not is_remote(address):
            size = os.stat(address).st_size
            if size <= most:
                return Path(address).read_bytes()
        else:
            system, path = _remote(address)
            with system.open_input_file(path) as file:
                size = file.size()
                if size <= most:
                    data: bytes = file.read()
                    return data
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if isinstance(error, OSError):
            raise _problem(address, error) from None
        raise InputError(f"{address}: {error}") from None
    raise InputError(f"{address}: the file has {size} bytes, expected at most {most}")


def open_parquet(address: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        InputError: it cannot be read, or is no Parquet file.
    """
    pa = arrow()
    try:
        if not is_remote(address):
            return pa.parquet.ParquetFile(address, memory_map=True)
        system, path = _remote(address)
        return pa.parquet.ParquetFile(system.open_input_file(path))
    except pa.ArrowInvalid as error:
        raise InputError(f"{address}: not a Parquet file ({str(error)[:100]})") from None
    except OSError as error:
        raise _problem(address, error) from None


def write_bytes(address: str, data: bytes) -> None:
    """Write a file, all of it or nothing; an older one is replaced.

    Raises:
        InputError: it cannot be written.
    """
    if not is_remote(address):
        make_folder(Path(address).parent)
        write_atomic(address, data, overwrite=True)
        return
    system, path = _remote(address)
    try:
        with system.open_output_stream(path) as stream:  # there when it is closed
            stream.write(data)
    except OSError as error:
        raise _problem(address, error) from None
