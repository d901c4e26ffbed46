"""A mount for a test: this process mounts and keeps the descriptor, another one serves, a third one reads.

The process that mounts must never look into the mount: it would wait for itself. ``reading.Reader`` does.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from raycache.errors import MountError
from raycache.fuse import device

SERVER = Path(__file__).with_name("serve_tree.py")
READ_AHEAD_KIB = 1024


class Server:
    """A process that runs ``serve_tree``."""

    def __init__(self, fd: int, options: dict[str, Any], program: Path = SERVER) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(program), json.dumps({**options, "socket_fd": theirs.fileno()})],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            socket.send_fds(ours, [b"fd"], [fd])
        self.agreed: dict[str, int] = self.event("serving", 60.0)["agreed"]

    def event(self, name: str, timeout_s: float = 20.0) -> dict[str, Any]:
        """The next line that it writes, which must be of this kind."""
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], timeout_s)[0]
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise AssertionError(f"no {name!r} from the server within {timeout_s:g} s: {self.close()[-2000:]}")
        event: dict[str, Any] = json.loads(line)
        assert event["event"] == name
        return event

    def command(self, word: str, event: str) -> dict[str, Any]:
        """Ask for something, and wait until it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.event(event)

    def close(self) -> str:
        """Kill it, and return what it logged."""
        self.process.kill()
        _, log = self.process.communicate(timeout=20)
        return log


class Mounted:
    """A directory shown in another place. ``options`` are those of ``serve_tree``."""

    program = SERVER
    writable = False

    def __init__(self, source: Path, mountpoint: Path, *, allow_other: bool = False, **options: Any) -> None:
        self.path = str(mountpoint)
        mountpoint.mkdir(exist_ok=True)
        self._options = {"source": str(source), "owner": (os.getuid(), os.getgid()), **options}
        self._fd: int | None = device.mount(
            f"file://{source}", self.path, allow_other=allow_other, writable=self.writable
        )
        try:
            self.server = Server(self._fd, self._options, self.program)
            device.set_read_ahead(self.path, READ_AHEAD_KIB)
        except BaseException:  # whatever it is, no mount stays behind
            self._end()
            raise

    def join(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def kill_server(self) -> None:
        """As a crash does."""
        self.server.close()

    def start_server(self, **options: Any) -> None:
        """A successor with the same descriptor, and nothing else."""
        assert self._fd is not None
        agreed = self.server.agreed
        self.server = Server(self._fd, {**self._options, **options, "agreed": agreed}, self.program)

    def release(self) -> None:
        """Close this process's copy of the descriptor: the mount lives only as long as its server now."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> str:
        """End all of it, and return what the server logged."""
        self._end()
        log = self.server.close()
        left = device.find_mount(self.path)
        assert left is None or left.fstype != device.FSTYPE
        return log

    def _end(self) -> None:
        with suppress(MountError):  # a test may have unmounted it
            device.unmount(self.path, lazy=True)
        # With the last copy closed the kernel fails whatever still waits: nothing stays in D state.
        self.release()


class MountedToWrite(Mounted):
    """The same, to be written. ``options`` are those of ``serve_written``."""

    program = Path(__file__).with_name("serve_written.py")
    writable = True
