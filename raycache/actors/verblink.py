"""Verbs upon the tree over a socket of the master's: an answer takes a fifth of the time that it takes through Ray.

A file system that is written asks the master at every step, and a program waits for each answer; so what a call costs
is what writing costs. Everything else goes through Ray, and so do verbs while the socket cannot be reached.

A message is its length and a pickle: verbs one way, answers the other. Where Ray asks for a token, so does this, before
it looks at anything else; where it does not, who reaches the port may do what who reaches Ray's may.

Bounds: CONNECTIONS_MAX connections, MESSAGE_BYTES_MAX a message, a deadline for each call. Threading: safe.
"""

from __future__ import annotations

import hmac
import logging
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any

from raycache.actors.transport import cluster_token
from raycache.core.inode import Verb
from raycache.core.values import Failed

CONNECTIONS_MAX = 512
MESSAGE_BYTES_MAX = 256 * 2**20
AVOID_S = 2.0
"""How long a master that could not be reached this way is asked through Ray."""
CONNECT_S = 2.0
LENGTH = struct.Struct("!Q")
_log = logging.getLogger("raycache.master")
Apply = Callable[[Sequence[Verb]], list[Any | Failed]]


class LinkLost(Exception):
    """There is no answer this way. What was asked may have been done."""


class VerbServer:
    """The master's side. ``start`` it; it ends with its process."""

    def __init__(self, host: str, apply: Apply) -> None:
        self._apply = apply
        self._token = cluster_token() or ""
        self._turns = threading.BoundedSemaphore(CONNECTIONS_MAX)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.address = (host, int(self._listener.getsockname()[1]))

    def start(self) -> None:
        """Serve in the background."""
        threading.Thread(target=self._accept, name="verbs", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError as error:  # out of descriptors: callers go through Ray meanwhile
                _log.warning("cannot take a connection: %s", error)
                time.sleep(1)
                continue
            if not self._turns.acquire(blocking=False):
                link.close()
                continue
            threading.Thread(target=self._serve, args=(link,), name="verbs-of-one", daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        try:
            with closing(link), suppress(OSError, LinkLost):
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.settimeout(CONNECT_S)
                if not hmac.compare_digest(_receive(link, len(self._token)), self._token.encode()):
                    return
                link.settimeout(None)
                while True:
                    _send(link, self._answer(_receive(link)))
        finally:
            self._turns.release()

    def _answer(self, message: bytes) -> bytes:
        try:
            found: Any = self._apply(pickle.loads(message))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's to know
            found = Failed(error)
        return pickle.dumps(found, pickle.HIGHEST_PROTOCOL)


class VerbLink:
    """A client's side: connections that are made when they are needed, and kept."""

    def __init__(self, find: Callable[[], tuple[str, int]]) -> None:
        """``find``: the address of the master's socket; asked anew when that is not reached."""
        self._find = find
        self._token = (cluster_token() or "").encode()
        self._lock = threading.Lock()
        self._address: tuple[str, int] | None = None
        self._idle: list[socket.socket] = []
        self._avoid_until = 0.0

    def apply(self, verbs: Sequence[Verb], timeout_s: float) -> list[Any | Failed]:
        """See TreeApi. Raises LinkLost, and what ``find`` raises."""
        if time.monotonic() < self._avoid_until:
            raise LinkLost
        link = self._connected()
        try:
            link.settimeout(timeout_s)
            _send(link, pickle.dumps(list(verbs), pickle.HIGHEST_PROTOCOL))
            answers = pickle.loads(_receive(link))
        except (OSError, LinkLost, pickle.UnpicklingError) as error:
            link.close()
            self.lose()
            raise LinkLost from error
        with self._lock:
            self._idle.append(link)
        if isinstance(answers, Failed):
            raise answers.error
        return answers  # type: ignore[no-any-return]

    def take_idle(self) -> socket.socket | None:
        """A connection that is open already and of no use to anybody at the moment: the caller's from now on."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connected(self) -> socket.socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            address = self._address = self._address or self._find()
            link = socket.create_connection(address, CONNECT_S)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall(LENGTH.pack(len(self._token)) + self._token)
        except OSError as error:
            self.lose()
            raise LinkLost from error
        return link

    def lose(self) -> None:
        """All connections are to a master that is gone, or soon will be."""
        with self._lock:
            idle, self._idle, self._address = self._idle, [], None
            self._avoid_until = time.monotonic() + AVOID_S
        for link in idle:
            link.close()


def _send(link: socket.socket, message: bytes) -> None:
    link.sendall(LENGTH.pack(len(message)) + message if len(message) < 65_536 else LENGTH.pack(len(message)))
    if len(message) >= 65_536:
        link.sendall(message)


def _receive(link: socket.socket, at_most: int = MESSAGE_BYTES_MAX) -> bytes:
    (length,) = LENGTH.unpack(_exactly(link, LENGTH.size))
    if length > at_most:
        raise LinkLost
    return _exactly(link, length)


def _exactly(link: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = link.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise LinkLost
        data += piece
    return bytes(data)
