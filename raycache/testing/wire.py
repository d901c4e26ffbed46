"""HTTP/1.1 messages on a socket, as much of them as a proxy has to understand: heads, and where bodies end."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

_S3_CODES = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 500: "InternalError", 503: "SlowDown"}
_HEAD_MAX = 65_536
_PIECE = 262_144


class Ended(Exception):
    """This connection is over: a side went away, a fault ended it, or what came is not HTTP."""


class Head:
    """Start line and headers of a message, with the bytes as they came."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.start, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        if self.start.count(" ") < 1:
            raise Ended

    def without(self, name: str) -> Head:
        """The same message less one header."""
        start, *lines = self.raw.split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(name.encode() + b":")]
        return Head(b"\r\n".join([start, *kept]))

    def status(self) -> int:
        """A response's status."""
        return int(self.start.split(" ")[1])

    def framing(self, response_to: str | None = None) -> int | str:
        """How the body ends: after so many bytes, ``chunked``, or with the connection (``close``)."""
        if response_to == "HEAD" or (response_to is not None and self.status() in (204, 304)):
            return 0
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return "chunked"
        length = self.headers.get("content-length")
        if length is not None:
            return int(length)
        return 0 if response_to is None else "close"

    def keeps_alive(self) -> bool:
        """Whether its sender means to keep the connection."""
        return self.headers.get("connection", "").lower() != "close" and "HTTP/1.0" not in self.start


class Stream:
    """Messages to and from a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""

    def is_stale(self) -> bool:
        """Whether the other side closed, or sent something that nobody asked for."""
        return bool(self._rest) or bool(select.select([self.connection], [], [], 0)[0])

    def send(self, data: bytes) -> None:
        """Send it all."""
        self.connection.sendall(data)

    def head(self) -> Head | None:
        """The next message's head; None when there is no further message."""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            data = self.connection.recv(_PIECE)
            if not data and not self._rest:
                return None
            if not data or len(self._rest) > _HEAD_MAX:
                raise Ended
            self._rest += data
        raw, self._rest = self._rest[: end + 4], self._rest[end + 4 :]
        return Head(raw)

    def body(self, framing: int | str) -> Iterator[bytes]:
        """The message's body in pieces, as it is on the wire."""
        if isinstance(framing, int):
            yield from self._exactly(framing)
        elif framing == "close":
            while data := self._some(_PIECE):
                yield data
        else:
            yield from self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._line()
            yield line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            yield from self._exactly(size + 2)
        while (line := self._line()) != b"\r\n":  # trailers
            yield line
        yield line

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            data = self._some(min(count, _PIECE))
            if not data:
                raise Ended
            count -= len(data)
            yield data

    def _some(self, limit: int) -> bytes:
        if not self._rest:
            return self.connection.recv(limit)
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    def _line(self) -> bytes:
        while (end := self._rest.find(b"\r\n")) < 0:
            data = self.connection.recv(_PIECE)
            if not data or len(self._rest) > _HEAD_MAX:
                raise Ended
            self._rest += data
        line, self._rest = self._rest[: end + 2], self._rest[end + 2 :]
        return line


def error_response(status: int, method: str, close: bool = False) -> bytes:
    """A response as S3 words its errors."""
    code = _S3_CODES.get(status, "InternalError")
    body = f"<Error><Code>{code}</Code><Message>this answer is the proxy's</Message></Error>"
    sent = b"" if method == "HEAD" else body.encode()
    lines = [f"HTTP/1.1 {status} {code}", "Content-Type: application/xml", f"Content-Length: {len(sent)}"]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + sent
