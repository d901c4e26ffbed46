"""The holder: a small process that keeps a mount alive whatever happens to those who serve it.

It owns the mount, the ``/dev/fuse`` descriptor and what INIT agreed; it starts gateways, of which one serves and others
stand by, and puts one in the place of one that dies, stops beating or is upgraded. What the dead one had read and not
answered the kernel sends again. ``python -m raycache.fuse.holder``, started by ``fuse.mount``.

Two kinds stand by: one joined to the cluster, and a *direct* one that needs no Ray, so that a mount goes on when the
cluster ends under it. While a direct one serves, a gateway for the cluster is tried again and again, and takes over as
soon as it is ready.

Invariants
* At most one gateway serves: a successor is told to only when its predecessor is dead.
* This process imports neither numpy nor Ray and answers no request, so little can kill it.

Threading: one thread, one selector; nothing here waits without a limit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raycache.errors import MountError, RaycacheError
from raycache.fuse import device, wire, wirewrite
from raycache.fuse.children import Gateway, Nursery, start_joined
from raycache.fuse.records import (
    MountRecord,
    control_path,
    forget_record,
    is_runnable,
    process_started,
    write_record,
)
from raycache.fuse.task import Lines, Task

UPGRADE = b"upgrade"
"""The command that swaps the gateway."""
BEAT_S = 0.25
"""How often a gateway says that it lives."""
SILENT_S = 2.0
"""A serving gateway that said nothing for so long is replaced: stopped, or stuck."""
STARVED_S = 10.0
"""The same for one that wants to run: on a machine with too much to do its successor would not be sooner, and might be
a direct one, which cannot read all."""
PREPARE_S = 60.0
"""How long a gateway may take to be ready."""
END_S = 10.0
"""How long a gateway may take to end its mount."""
RETRY_S = (1.0, 10.0)
"""First and longest pause before a gateway for the cluster is tried again after it failed."""
READ_AHEAD_KIB = 1024
"""One request per small file instead of three; the kernel sends at most 1 MiB at once."""
_log = logging.getLogger("raycache.holder")


class Backoff:
    """Pauses between attempts, each twice as long as the last, up to a limit."""

    def __init__(self) -> None:
        self._until = 0.0
        self._pause_s = RETRY_S[0]

    @property
    def over(self) -> bool:
        """Whether it is time to try."""
        return time.monotonic() >= self._until

    def failed(self) -> None:
        """An attempt failed."""
        self._until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, RETRY_S[1])


class Holder:
    """Keeps one mount."""

    def __init__(self, task: Task, answer: Any) -> None:
        self._task = task
        self._answer = answer
        self._selector = selectors.DefaultSelector()
        self._gateways: list[Gateway] = []
        self._nursery: Nursery | None = None
        self._restarts = 0
        self._followed = 0
        self._over = False
        self._told_to_end = False
        self._can_resend = False
        self._backoff = {False: Backoff(), True: Backoff()}
        """Of joined (False) and direct (True) gateways: one kind that cannot start does not hold up the other."""
        self._upgrading: Lines | None = None
        self._record: MountRecord | None = None
        self._notes: tuple[str, ...] = ()
        self._state_dir = Path(task.settings["state_dir"])

    def run(self) -> None:
        """Mount, serve through gateways, and return when the mount has ended. Raises MountError.

        SIGTERM ends the mount, lazily.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)
        writable = self._task.mode == "w"
        fd = device.mount(
            self._task.source, self._task.mountpoint, allow_other=self._task.allow_other, writable=writable
        )
        try:
            agreed = device.handshake(fd, wirewrite.WRITING if writable else wire.READING)
            self._task = self._task.but(fd=fd, agreed=agreed.to_json())
            self._can_resend = agreed.can_resend
            if not agreed.can_resend:
                self._notes += (
                    "this kernel cannot resend requests (Linux 6.9 can): a gateway that dies ends its mount",
                )
            try:
                device.set_read_ahead(self._task.mountpoint, READ_AHEAD_KIB)
            except MountError as error:
                self._notes += (str(error),)
            with self._listen():
                self._adopt(start_joined(self._task))
                while not self._over:
                    self._turn(fd)
        finally:
            self._end(fd)

    def _on_sigterm(self, *_: object) -> None:
        self._over = self._told_to_end = True

    def _turn(self, fd: int) -> None:
        for key, _ in self._selector.select(BEAT_S):
            _survive(key.data)
        _survive(self._check_time)
        _survive(self._fill_roles)
        self._over = self._over or _is_unmounted(fd)

    def _adopt(self, gateway: Gateway) -> None:
        self._gateways.append(gateway)
        self._selector.register(gateway.pidfd, selectors.EVENT_READ, lambda: self._died(gateway))
        self._selector.register(gateway.lines, selectors.EVENT_READ, lambda: self._heard(gateway))

    def _heard(self, gateway: Gateway) -> None:
        for message in gateway.lines.receive():
            gateway.heard = time.monotonic()
            event = message["event"]
            if event == "ready":
                self._is_ready(gateway, message)
            elif event == "beat":
                gateway.counters = message["counters"]
                if gateway.serving:
                    self._followed = message["followed"]
                    self._publish(gateway)
            elif event == "ended":
                gateway.ended = message["why"]
            elif event == "failed":
                self._failed(message)
        if gateway.lines.ended:
            with contextlib.suppress(KeyError):
                self._selector.unregister(gateway.lines)

    def _is_ready(self, gateway: Gateway, message: dict[str, Any]) -> None:
        gateway.ready = True
        if not gateway.direct:
            self._task = self._task.but(root=message["root"])
        self._backoff[gateway.direct] = Backoff()

    def _failed(self, message: dict[str, Any]) -> None:
        """A gateway says that it cannot; the first one's reason is the mount's."""
        _log.warning("a gateway cannot serve %s: %s", self._task.mountpoint, message["error"])
        if self._answer is not None:
            self._reply({"error": message["error"], "kind": message["kind"]})
            self._over = True

    def _died(self, gateway: Gateway) -> None:
        if gateway not in self._gateways:
            return
        _survive(lambda: self._heard(gateway))
        self._gateways.remove(gateway)
        for key in (gateway.pidfd, gateway.lines):
            with contextlib.suppress(KeyError):
                self._selector.unregister(key)
        gateway.close()
        if gateway.serving and (gateway.ended == "unmounted" or not self._can_resend):
            self._over = True
        elif gateway.serving and not gateway.stopping:
            self._restarts += 1
            _log.warning("gateway %d died", gateway.pid)
        elif not gateway.ready:
            self._backoff[gateway.direct].failed()
            if self._answer is not None and not self._gateways:
                self._failed({"error": f"the gateway died while starting; see {self._task.log}", "kind": "MountError"})

    def _fill_roles(self) -> None:
        """One that serves, and one of each kind that stands by."""
        if self._over:
            return
        serving = next((one for one in self._gateways if one.serving), None)
        joined, direct = self._standing_by(False), self._standing_by(True)
        if serving is None:
            successor = next((one for one in (joined, direct) if one is not None and one.ready), None)
            if successor is not None:
                self._promote(successor)
                joined, direct = self._standing_by(False), self._standing_by(True)
        elif (serving.direct or self._upgrading) and joined is not None and joined.ready and not serving.stopping:
            serving.stop()
        if self._answer is not None or not self._can_resend:
            return
        if joined is None and self._backoff[False].over:
            self._begin(False, lambda: self._adopt(start_joined(self._task)))
        if direct is None and self._task.root and self._backoff[True].over:
            self._begin(True, self._fork_direct)

    def _standing_by(self, direct: bool) -> Gateway | None:
        return next((one for one in self._gateways if one.direct == direct and not one.serving), None)

    def _begin(self, direct: bool, start: Callable[[], None]) -> None:
        """Start a process, or try again later: memory and descriptors run out, and a directory may be gone."""
        try:
            start()
        except (OSError, MountError) as error:
            _log.warning("cannot start a gateway for %s: %s", self._task.mountpoint, error)
            self._backoff[direct].failed()

    def _fork_direct(self) -> None:
        if self._nursery is None:
            nursery = self._nursery = Nursery(self._task)
            self._selector.register(nursery, selectors.EVENT_READ, nursery.heard)
            self._selector.register(nursery.pidfd, selectors.EVENT_READ, self._nursery_died)
        elif self._nursery.ready:
            # What it says from now on is the answer to a request, which `spawn` waits for.
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._nursery)
            try:
                self._adopt(self._nursery.spawn(self._task))
            except (OSError, MountError):
                self._lose_nursery()
                raise

    def _nursery_died(self) -> None:
        self._backoff[True].failed()
        self._lose_nursery()

    def _lose_nursery(self) -> None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            for key in (nursery, nursery.pidfd):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(key)
            nursery.close()

    def _promote(self, gateway: Gateway) -> None:
        gateway.serve(resend=self._answer is None, since=self._followed)
        self._publish(gateway)
        if self._answer is not None:
            self._reply({"pid": gateway.pid, "holder_pid": os.getpid(), "session": "kernel"})
        if self._upgrading is not None and not gateway.direct:
            self._upgrading.send({"gateway_pid": gateway.pid})
            self._upgrading.close()
            self._upgrading = None

    def _check_time(self) -> None:
        now = time.monotonic()
        for gateway in list(self._gateways):
            if process_started(gateway.pid) is None:
                # A zombie: its pidfd is silent while a thread of it waits in the kernel, perhaps for an answer that
                # only its successor can give. It will run no more of its code.
                self._died(gateway)
                continue
            limit_s = SILENT_S if gateway.serving or gateway.ready else PREPARE_S
            if now - gateway.heard > limit_s < STARVED_S and is_runnable(gateway.pid):
                limit_s = STARVED_S
            if now - gateway.heard > limit_s or (gateway.stopping and now - gateway.told_to_stop > SILENT_S):
                _log.warning("gateway %d was silent for %g s and is replaced", gateway.pid, limit_s)
                gateway.kill()
                gateway.heard = gateway.told_to_stop = now + PREPARE_S  # once is enough

    def _publish(self, gateway: Gateway) -> None:
        record = MountRecord(
            self._task.mountpoint,
            self._task.source,
            "kernel",
            gateway.pid,
            process_started(gateway.pid) or 0,
            self._task.log,
            self._notes,
            gateway.counters,
            os.getpid(),
            process_started(os.getpid()) or 0,
            self._restarts,
            str(self._task.settings["namespace"]),
            gateway.direct,
            self._task.snapshot,
            self._task.mode,
        )
        if record != self._record:
            try:
                write_record(self._state_dir, record)
            except OSError as error:  # a full disk: status falls behind, the mount goes on
                _log.warning("cannot record the state of %s: %s", self._task.mountpoint, error)
            self._record = record

    @contextlib.contextmanager
    def _listen(self) -> Any:
        """Take commands on a socket of the state directory, which only its owner can reach."""
        with control_path(self._state_dir, self._task.mountpoint) as path, socket.socket(socket.AF_UNIX) as listener:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a holder that was killed
            listener.bind(path)
            listener.listen(4)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, lambda: self._command(listener))
            try:
                yield
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _command(self, listener: socket.socket) -> None:
        link, _ = listener.accept()
        link.settimeout(1.0)
        if link.recv(4096) == UPGRADE:
            self._upgrading = Lines(link)
            self._lose_nursery()
            for gateway in self._gateways:
                if not gateway.serving:  # it has the old code
                    gateway.kill()
        else:
            link.close()

    def _reply(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._answer.write(json.dumps(message) + "\n")
            self._answer.close()
        self._answer = None

    def _end(self, fd: int) -> None:
        # Unmount first: a gateway that waits in the kernel comes free by it.
        with contextlib.suppress(MountError):
            if self._record is None or self._told_to_end:  # it never came to be, or is not wanted any more
                device.unmount(self._task.mountpoint, lazy=True)
        self._lose_nursery()
        for gateway in self._gateways:
            if gateway.serving and self._task.mode == "w":
                gateway.wait(END_S)  # what was written and not committed is, now
            gateway.kill()
            gateway.close()
        os.close(fd)
        shutil.rmtree(self._task.shelf, ignore_errors=True)
        if self._record is not None:
            forget_record(self._state_dir, self._task.mountpoint, self._record.gateway_pid)


def _survive(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception:  # noqa: BLE001 - whatever it is, it must not take the mount along; gateways may be of other versions
        _log.exception("the holder goes on after")


def _is_unmounted(fd: int) -> bool:
    """Whether the mount of a descriptor has ended, also while nobody reads from it."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def main() -> None:
    """Hold one mount."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = Task.from_line(sys.stdin.readline())
    holder = Holder(task, answer)
    try:
        holder.run()
    except RaycacheError as error:
        with contextlib.suppress(OSError, ValueError):
            answer.write(json.dumps({"error": str(error), "kind": type(error).__name__, "errno": error.errno}) + "\n")
            answer.close()
    _log.info("no longer holding %s", task.mountpoint)


if __name__ == "__main__":
    main()
