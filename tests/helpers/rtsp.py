"""A small RTSP server on this machine: one client, H.264 over the connection itself (RFC 2326,
RFC 6184), as much of it as a client of FFmpeg needs."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from fractions import Fraction

from .videos import frame_image

_PACKET = 1400
_CLOCK = 90_000


def encode(frames: int) -> list[list[bytes]]:
    """NAL units of each frame of a video; every frame can be decoded by itself."""
    import av

    context = av.CodecContext.create("libx264", "w")
    context.width, context.height = frame_image(0).shape[1::-1]
    context.pix_fmt, context.framerate = "yuv420p", Fraction(25)
    context.options = {"tune": "zerolatency", "g": "1", "preset": "ultrafast"}
    units = []
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(frame_image(number), format="bgr24")
        for packet in context.encode(frame):
            units.append([unit for unit in re.split(b"\0\0\0?\1", bytes(packet)) if unit])
    return units


def packets(unit: bytes, last: bool, time_stamp: int, number: int) -> Iterator[bytes]:
    """RTP packets of a NAL unit: whole, or in fragments (FU-A)."""
    pieces = [unit]
    if len(unit) > _PACKET:
        body = unit[1:]
        cut = [body[place : place + _PACKET] for place in range(0, len(body), _PACKET)]
        kind = unit[0] & 31
        flags = [
            (place == 0) << 7 | (place == len(cut) - 1) << 6 | kind for place in range(len(cut))
        ]
        first = bytes([unit[0] & 0xE0 | 28])
        pieces = [first + bytes([flag]) + piece for flag, piece in zip(flags, cut, strict=True)]
    for place, piece in enumerate(pieces):
        marker = last and place == len(pieces) - 1
        header = struct.pack(
            ">BBHII", 0x80, marker << 7 | 96, (number + place) & 0xFFFF, time_stamp, 7
        )
        yield header + piece


def _answer(connection: socket.socket, frames: list[list[bytes]], rate: float) -> None:
    stream = connection.makefile("rb")
    session = "Session: 1\r\n"
    while request := stream.readline():
        method = request.split()[0].decode()
        headers = {}
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        more, body = "", ""
        if method == "OPTIONS":
            more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
            )
            more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            more = f"Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n{session}"
        elif method in ("PLAY", "TEARDOWN"):
            more = session
        reply = f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('cseq', '0')}\r\n{more}\r\n{body}"
        connection.sendall(reply.encode())
        if method == "PLAY":
            _play(connection, frames, rate)
            return
        if method == "TEARDOWN":
            return


def _play(connection: socket.socket, frames: list[list[bytes]], rate: float) -> None:
    number = 0
    for place, units in enumerate(frames):
        for unit in units:
            last = unit is units[-1]
            for packet in packets(unit, last, int(place * _CLOCK / rate), number):
                connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
                number += 1
        time.sleep(1 / rate)


@contextlib.contextmanager
def serve_rtsp(frames: int, rate: float = 25.0) -> Iterator[str]:
    """Give a video of so many frames to one client, then close the connection."""
    units = encode(frames)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    _answer(connection, units, rate)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/camera"
        server.close()
        thread.join(10)
