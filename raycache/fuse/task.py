"""What the processes of a mount tell each other: the task of a gateway, and lines of JSON over a socket.

Small on purpose: the holder imports it, and the holder imports neither numpy nor Ray.
"""

from __future__ import annotations

import json
import select
import socket
from dataclasses import asdict, dataclass, field, replace
from typing import Any

LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """What to serve, and how. Passed on standard input, never as an argument: ``options`` may hold secrets."""

    settings: dict[str, Any]
    source: str
    """URI of a directory of a dataset that is attached already."""
    mountpoint: str
    log: str
    owner: tuple[int, int]
    allow_other: bool
    session: str
    """``kernel`` or ``pyfuse3``."""
    options: dict[str, Any] = field(default_factory=dict)
    """What reaches the source when the cluster is away."""
    direct: bool = False
    """Serve without the cluster, from the shelf and the source."""
    fd: int = -1
    """The kernel session's descriptor."""
    control_fd: int = -1
    """Socket to the holder."""
    agreed: dict[str, int] = field(default_factory=dict)
    """What INIT agreed."""
    shelf: str = ""
    """Directory for the manifests that this mount uses; this mount's alone."""
    snapshot: int | None = None
    """The change number that the mount shows everything at, for as long as it lives; None follows refreshes."""
    mode: str = "r"
    """``r``, or ``w`` for a mount that is written."""
    mount_id: str = ""
    """Of a mount that is written: names it to the master, for as long as it lives."""
    root: dict[str, Any] = field(default_factory=dict)
    """Where the mount's root is, as the first gateway found it: ``root_id``, ``source``, ``attached_ns``."""

    def line(self) -> bytes:
        """As one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes | str) -> Task:
        """The task that ``line`` wrote."""
        raw: dict[str, Any] = json.loads(line)
        return Task(**{**raw, "owner": tuple(raw["owner"])})

    def but(self, **changes: Any) -> Task:
        """A copy with other values."""
        return replace(self, **changes)


class Lines:
    """Lines of JSON over a stream socket, both ways. ``send`` never waits for long."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._rest = b""
        self.ended = False
        link.settimeout(1.0)

    def fileno(self) -> int:
        """For a selector."""
        return self.link.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message; False when nobody is there to take it."""
        try:
            self.link.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, *, wait: bool = False) -> list[dict[str, Any]]:
        """What has arrived since; sets ``ended`` when the other side is gone. ``wait``: until there is something."""
        if wait:
            select.select([self.link], [], [])
        try:
            data = self.link.recv(65_536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data or len(self._rest) > LINE_BYTES_MAX:
            self.ended = True
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def close(self) -> None:
        """Close the socket."""
        self.link.close()
