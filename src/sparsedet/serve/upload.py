"""The image in the body of a request: the body itself, or the file of a form (multipart)."""

from __future__ import annotations

from ..errors import InputError

MAX_PARTS = 20
"""Parts of a form. Source: choice; a form has one file, and few other fields."""


def uploaded(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Name and bytes of the image file in a body.

    Args:
        content_type: of the request; anything but multipart/form-data is the image itself, whose
            format its bytes tell.

    Raises:
        InputError: the form is damaged, or has no file, or several.
    """
    if not content_type.lower().startswith("multipart/"):
        return "image", body
    files = [part for part in _parts(content_type, body) if part[0]]
    if len(files) != 1:
        raise InputError(f"the form has {len(files)} files, expected one image")
    return files[0]


def _parts(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """(file name or "", content) of each part."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    parts: list[tuple[str, bytes]] = []
    chunks: list[bytes] = []
    headers: list[tuple[bytearray, bytearray]] = []

    def begin() -> None:
        if len(parts) == MAX_PARTS:
            raise InputError(f"the form has more than {MAX_PARTS} parts")
        chunks.clear()
        headers.clear()
        headers.append((bytearray(), bytearray()))

    def field(data: bytes, start: int, end: int) -> None:
        headers[-1][0].extend(data[start:end])

    def value(data: bytes, start: int, end: int) -> None:
        headers[-1][1].extend(data[start:end])

    def end_header() -> None:
        headers.append((bytearray(), bytearray()))

    def content(data: bytes, start: int, end: int) -> None:
        chunks.append(data[start:end])

    def end() -> None:
        found = {bytes(name).lower(): bytes(text) for name, text in headers}
        _, given = parse_options_header(found.get(b"content-disposition", b""))
        name = given.get(b"filename", b"").decode("utf-8", "replace")
        parts.append((name[:255], b"".join(chunks)))

    ended: list[bool] = []
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": field,
                "on_header_value": value,
                "on_header_end": end_header,
                "on_part_data": content,
                "on_part_end": end,
                "on_end": lambda: ended.append(True),
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the form is damaged ({error})") from None
    if not ended:
        raise InputError("the form is truncated")
    return parts
