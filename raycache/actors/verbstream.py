"""The master's socket for verbs, used by one thread that does not wait for answers: a gateway's serving one.

Responsible for: sending calls and taking answers apart. Not responsible for: making connections (``verblink``, whose
idle ones it takes: to connect would mean to wait), what to do when none is to be had (``fuse.beside``).

Bounds: MESSAGE_BYTES_MAX an answer; what is sent and has not gone out is bounded by the caller. Threading: one thread.
"""

from __future__ import annotations

import pickle
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from raycache.actors.verblink import LENGTH, MESSAGE_BYTES_MAX, VerbLink
from raycache.core.inode import Verb
from raycache.core.values import Failed

_PIECE_BYTES = 2**18


class VerbStream:
    """See the module, and ``fuse.beside.VerbStream``."""

    def __init__(self, link: VerbLink) -> None:
        self._link = link
        self._poll = select.epoll()
        self.fd = self._poll.fileno()
        self._socket: socket.socket | None = None
        self._data = bytearray()
        """Come, and not taken apart."""
        self._out = bytearray()
        """Sent, and not gone out."""

    def send(self, verbs: Sequence[Verb]) -> bool:
        """See the protocol."""
        if not self._connect():
            return False
        message = pickle.dumps(list(verbs), pickle.HIGHEST_PROTOCOL)
        self._out += LENGTH.pack(len(message)) + message
        return self._push()

    def answers(self) -> list[list[Any | Failed] | Failed] | None:
        """See the protocol."""
        if self._socket is None:
            return []
        if self._out and not self._push():
            return None
        found = self._taken_apart() if self._receive() else None
        if found is None:
            self._lose()
        return found

    def abandon(self) -> None:
        """See the protocol. The connection is closed, whatever it is at."""
        if self._socket is not None:
            with suppress(OSError):
                self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None
        self._data.clear()
        self._out.clear()

    def _connect(self) -> bool:
        if self._socket is None:
            self._socket = self._link.take_idle()
            if self._socket is not None:
                self._socket.setblocking(False)
                self._poll.register(self._socket, select.EPOLLIN)
        return self._socket is not None

    def _receive(self) -> bool:
        """Take what has come; whether there is more to be expected."""
        assert self._socket is not None
        try:
            while piece := self._socket.recv(_PIECE_BYTES):
                self._data += piece
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _taken_apart(self) -> list[list[Any | Failed] | Failed] | None:
        """The answers that are whole; None where they cannot be read."""
        found: list[list[Any | Failed] | Failed] = []
        while len(self._data) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._data)
            if length > MESSAGE_BYTES_MAX:
                return None
            if len(self._data) < LENGTH.size + length:
                break
            try:
                found.append(pickle.loads(self._data[LENGTH.size : LENGTH.size + length]))
            except Exception:  # noqa: BLE001 - what it says of one request; threads ask for each anew, and say it there
                return None
            del self._data[: LENGTH.size + length]
        return found

    def _push(self) -> bool:
        """Have the kernel take what it has room for; whether there still is a connection."""
        assert self._socket is not None
        try:
            del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._lose()
            return False
        self._poll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if self._out else 0))
        return True

    def _lose(self) -> None:
        """The master is gone, or soon will be."""
        self.abandon()
        self._link.lose()
