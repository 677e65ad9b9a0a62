"""The bearer token that a service may ask for."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError

VARIABLE = "SPARSEDET_TOKEN"
"""Environment variable with the token."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*")
"""Source: RFC 6750, `b68token`, which is what a header can carry; the length is a choice."""


def read_token(path: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of a file, else of the environment, else None.

    Raises:
        InputError: the file cannot be read, or the token has characters that no header carries.
    """
    if path is None:
        if VARIABLE not in environment:
            return None
        text, origin = environment[VARIABLE], VARIABLE
    else:
        origin = str(path)
        try:
            with open(path, "rb") as file:
                text = file.read(1024).decode("ascii", "replace").strip()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
    if not _TOKEN.fullmatch(text):  # the token itself stays out of the message
        raise InputError(
            f"{origin}: expected a token of 1 to 512 letters, digits and -._~+/ on one line"
        )
    return text


def is_allowed(token: str | None, authorization: str) -> bool:
    """Whether the header `Authorization` carries the token; None: there is none to carry.

    The comparison takes as long for a wrong token as for a nearly right one.
    """
    if token is None:
        return True
    scheme, _, given = authorization.partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    return same and scheme.lower() == "bearer"
