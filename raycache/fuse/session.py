"""A session: one kernel connection, whatever is asked on it.

Responsible for: reading requests, sending answers, ending, telling the kernel what became stale, giving what takes
long to ``misses``. Not responsible for: what is answered (``kernel`` for mounts that are read, ``writesession`` for
those that are written), bytes on the wire (``wire``), mounting (``device``), keeping the descriptor alive when this
process dies (the holder).

Invariants
* Each request is answered once, except FORGET and its kind, which nobody waits for.
* What can be answered from memory is answered by the serving thread, and so is what comes beside it; all else goes to
  ``misses``.

Threading: one thread calls ``serve``. ``stop`` and ``invalidate`` may be called from any other, never from one that
answers requests: an invalidation may wait for locks that are held until an answer comes. While it serves, threads of
the whole process take turns more often (SWITCH_S).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum
from typing import Generic

from raycache.core.values import Buffer
from raycache.errors import MountError
from raycache.fuse import device, wire
from raycache.fuse.misses import Limits, Misses, R
from raycache.fuse.wire import Agreed

_log = logging.getLogger(__name__)

SWITCH_S = 0.0002
"""How long a thread of ``misses`` may keep the interpreter from the serving one. With Python's own 5 ms, four busy
threads made a hit wait 20 ms and more; with this, about 1 ms."""

LOOK_S = 60e-6
"""How long to look for the next request before sleeping, letting others run in between. To be woken on another
processor takes longer than to answer: one reader of small files got 13,000 a second without this, 24,000 with it."""
IN_A_ROW_S = 200e-6
"""Requests as near as this come from a program that goes from one to the next; after a lone one nobody looks."""

TOGETHER_MAX = 16
"""Requests that are taken in before what they want from elsewhere is asked for, where one comes after the other."""
OVERDUE_LOOK_MS = 1000
"""How often to look whether what comes beside has been under way for too long."""


class Ended(Enum):
    """Why ``serve`` returned."""

    UNMOUNTED = "unmounted"
    STOPPED = "stopped"


class Session(ABC, Generic[R]):
    """Serves one mount."""

    profile = wire.READING
    """What to agree with the kernel."""

    def __init__(
        self,
        fd: int,
        agreed: Agreed | None = None,
        limits: Limits | None = None,
        hanging: Callable[[], bool] = lambda: False,
    ) -> None:
        """``fd``: from ``device.mount``, or a copy of it; stays the caller's. ``agreed``: what INIT agreed, when that
        was before; None leaves the handshake to ``begin`` or ``serve``. ``hanging``: see Misses."""
        self._fd = fd
        self._agreed = agreed
        self._stopped = False
        self._lock = threading.Lock()
        self._wake: int | None = None
        self._misses: Misses[R] = Misses(self._answer_late, self._answer_never, limits or Limits(), hanging=hanging)

    def begin(self) -> Agreed:
        """What INIT agreed; on a new mount, agree now. Raises MountError."""
        if self._agreed is None:
            self._agreed = device.handshake(self._fd, self.profile)
        return self._agreed

    def serve(self) -> Ended:
        """Answer requests until the mount ends or ``stop`` is called."""
        self.begin()
        with self._lock:
            self._wake = os.eventfd(int(self._stopped), os.EFD_CLOEXEC)
        # Not to sleep in a read that only a request ends: ``stop`` must end it as well. All copies of the descriptor
        # share this setting.
        os.set_blocking(self._fd, False)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        beside = self._begin_beside()
        if beside is not None:
            poll.register(beside, select.POLLIN)
        switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            return self._serve(poll)
        finally:
            sys.setswitchinterval(switch_s)
            self._misses.close()
            with self._lock:
                os.close(self._wake)
                self._wake = None

    def _serve(self, poll: select.poll) -> Ended:
        fd, buffer = self._fd, bytearray(self.profile.request_bytes)
        view, into = memoryview(buffer), [buffer]
        answered = look_until = 0.0
        unasked = 0
        while not self._stopped:
            ready = poll.poll(0)
            if not ready or unasked >= TOGETHER_MAX:
                self._ask_beside()
                unasked = 0
            if not ready:
                if time.monotonic() < look_until:
                    os.sched_yield()
                    continue
                ready = poll.poll(OVERDUE_LOOK_MS if self._waits_beside() else None)
            if self._waits_beside() and self._end_beside():
                answered = time.monotonic()
            if all(each != fd for each, _ in ready):
                look_until = answered + LOOK_S if not self._waits_beside() else 0.0
                continue
            unasked += 1
            try:
                length = os.readv(fd, into)
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return Ended.UNMOUNTED
                # ENOENT: the request was taken back while it was copied. The others cannot last.
                if error.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    raise MountError(f"cannot read {device.DEVICE}: {error.strerror}") from error
                continue
            in_a_row = time.monotonic() - answered < IN_A_ROW_S
            self.dispatch(view, length)
            answered = time.monotonic()
            look_until = answered + LOOK_S if in_a_row and not self._waits_beside() else 0.0
        return Ended.STOPPED

    def stop(self) -> None:
        """Make ``serve`` return. The mount stays; what is unanswered waits for whoever serves it next."""
        self._misses.close()
        with self._lock:
            self._stopped = True
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    def resend(self) -> None:
        """Have the kernel send again what a dead process had read and not answered. Before ``serve``."""
        self._notify(wire.pack_resend())

    def invalidate(self, entries: Iterable[tuple[int, bytes]], inodes: Iterable[int]) -> None:
        """Make the kernel forget names, as ``(directory, name)``, and bytes, attributes or listings of inodes.

        Returns when it has. What the kernel does not know of is none of its concern, nor ours.
        """
        for parent, name in entries:
            self._notify(wire.pack_inval_entry(parent, name))
        for ino in inodes:
            self._notify(wire.pack_inval_inode(ino))

    # Requests whose answers come from elsewhere, without a thread.

    def _begin_beside(self) -> int | None:
        """A descriptor that is readable when some have ended."""
        return None

    def _waits_beside(self) -> bool:
        """Whether there are any."""
        return False

    def _ask_beside(self) -> None:
        """Ask for what can be asked for together; nothing else is there to be done at the moment."""

    def _end_beside(self) -> bool:
        """Answer those that have ended; whether there were any."""
        return False

    @abstractmethod
    def dispatch(self, buffer: memoryview, length: int) -> None:
        """Answer the request in ``buffer``, now or later. Never raises, whatever is in it."""

    @abstractmethod
    def _answer_late(self, request: R) -> None:
        """In a thread of ``misses``: answer with waiting."""

    @abstractmethod
    def _answer_never(self, request: R, killed: bool) -> None:
        """There is no answer: the deadline is over, or (``killed``) nobody wants one any more."""

    def _reply(self, unique: int, body: Buffer) -> None:
        try:
            os.writev(self._fd, (wire.pack_header(unique, len(body)), body))
        except OSError as error:
            self._not_sent(unique, error)

    def _refuse(self, unique: int, number: int) -> None:
        try:
            os.write(self._fd, wire.pack_error(unique, number))
        except OSError as error:
            self._not_sent(unique, error)

    def _not_sent(self, unique: int, error: OSError) -> None:
        """ENOENT: taken back, as its program was killed or the mount ended. Anything else must not leave it waiting."""
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return
        _log.error("the kernel did not take an answer: %s", error.strerror)
        with suppress(OSError):  # the first refusal may have ended the request all the same
            os.write(self._fd, wire.pack_error(unique, errno.EIO))

    def _notify(self, message: bytes) -> None:
        try:
            os.write(self._fd, message)
        except OSError as error:
            # ENOENT: not cached. ENODEV and ENOTCONN: the mount is gone, and with it whatever was stale.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
                raise MountError(f"cannot notify the kernel: {error.strerror}") from error
