"""The holder's processes: gateways, and the nursery that forks the direct ones.

Responsible for: starting, telling, killing and burying them. Not responsible for: who serves when (``holder``).
Imports neither numpy nor Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

from raycache.errors import MountError
from raycache.fuse.task import Lines, Task

SPAWN_S = 1.0
"""How long the nursery may take to fork; it does nothing else."""


class Gateway:
    """One gateway process, as the holder sees it.

    ready, serving, stopping  where it is in its life
    ended                     why it says it stopped serving
    heard                     when it last said anything, on the monotonic clock
    """

    def __init__(self, pid: int, lines: Lines, *, direct: bool, process: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.lines = lines
        self.direct = direct
        self.ready = False
        self.serving = False
        self.stopping = False
        self.told_to_stop = 0.0
        self.ended: str | None = None
        self.heard = time.monotonic()
        self.counters: dict[str, int] = {}
        self.pidfd = os.pidfd_open(pid)
        self._process = process

    def serve(self, *, resend: bool, since: int) -> None:
        """Tell it to serve. ``since``: up to which change of listings its predecessor had followed."""
        self.serving = True
        self.heard = time.monotonic()
        self.lines.send({"do": "serve", "resend": resend, "since": since})

    def stop(self) -> None:
        """Tell it to stop serving and end."""
        self.stopping = True
        self.told_to_stop = time.monotonic()
        self.lines.send({"do": "stop"})

    def wait(self, timeout_s: float) -> None:
        """Until it has ended, or for so long."""
        select.select([self.pidfd], [], [], timeout_s)

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of a dead one, without waiting for a thread of it that is still in the kernel."""
        if self._process is not None:
            self._process.poll()
        self.lines.close()
        os.close(self.pidfd)


def start_joined(task: Task) -> Gateway:
    """Start a gateway that will join the cluster."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = _python("raycache.fuse.gateway", task.but(control_fd=theirs.fileno()), theirs.fileno())
    return Gateway(process.pid, Lines(ours), direct=False, process=process)


class Nursery:
    """A process that has imported everything a direct gateway needs and forks one in milliseconds."""

    def __init__(self, task: Task) -> None:
        ours, theirs = socket.socketpair()
        self._link = ours
        self.ready = False
        with theirs:
            self._process = _python("raycache.fuse.nursery", task.but(control_fd=theirs.fileno()), theirs.fileno())
        self.pidfd = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """For a selector: readable once it is ready, and when it has died."""
        return self._link.fileno()

    def heard(self) -> None:
        """It says that it is ready, or nothing any more."""
        with contextlib.suppress(OSError):
            self.ready = bool(self._link.recv(64, socket.MSG_DONTWAIT))

    def spawn(self, task: Task) -> Gateway:
        """Fork a direct gateway. Raises MountError when the nursery does not answer; then it is of no more use."""
        ours, theirs = socket.socketpair()
        self._link.settimeout(SPAWN_S)
        try:
            with theirs:
                socket.send_fds(self._link, [json.dumps({"root": task.root}).encode()], [theirs.fileno()])
            pid = json.loads(self._link.recv(64) or b"{}")["pid"]
            return Gateway(pid, Lines(ours), direct=True, process=None)
        except (OSError, KeyError, ValueError) as error:
            ours.close()
            raise MountError(f"the nursery does not fork: {error}") from error

    def close(self) -> None:
        """End it. Its gateways live on."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SPAWN_S)
        self._link.close()
        os.close(self.pidfd)


def _python(module: str, task: Task, control_fd: int) -> subprocess.Popen[bytes]:
    with open(task.log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(task.fd, control_fd),
            cwd="/",
        )
    assert process.stdin is not None
    with process.stdin, contextlib.suppress(BrokenPipeError):  # one that died at once is noticed by its pidfd
        process.stdin.write(task.line())
    return process
