"""Reads of files that the kernel makes beside the caller: begun without waiting, told of by a descriptor to poll.

Responsible for: asking Linux for such reads, past the page cache (io_submit(2): io_uring is refused in many
containers), and keeping the memory that it reads into. Not responsible for: what the bytes mean, or what to do when a
read does not end.

One thread keeps many reads under way, and none has to be woken for each. A read for which the kernel would have to wait
is not made (RWF_NOWAIT), so that ``begin`` comes back whatever the disk does.

Bounds: reads under way by ``depth``. Threading: one thread, or its owner locks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

_NUMBERS = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}
"""Of io_setup, io_submit and io_getevents, by machine: the C library has no functions for them."""
_IOCB = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQqq")
_PREAD = 0
_TELL_EVENTFD = 1
_NO_WAIT = os.RWF_NOWAIT


class Ended(NamedTuple):
    """A read that has ended."""

    ticket: int
    outcome: int
    """Bytes that came, or less than nothing: an error number; EAGAIN where the kernel would have had to wait."""


class DiskReads:
    """See the module. Lives as long as its process: to end it would mean to wait for what a disk may never answer."""

    def __init__(self, depth: int) -> None:
        """Raises OSError where the kernel makes no such reads."""
        if platform.machine() not in _NUMBERS or sys.byteorder != "little":
            raise OSError(errno.ENOSYS, "not known for this machine")
        setup, submit, events = _NUMBERS[platform.machine()]
        context = ctypes.c_ulong()
        _check(_function(ctypes.c_uint, ctypes.c_void_p)(setup, depth, ctypes.addressof(context)))
        self._context = context.value
        self._numbers = submit, events
        self._submit = _function(ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p)
        self._get = _function(ctypes.c_ulong, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Can be read when a read has ended."""
        self._depth = depth
        self._free = list(range(depth))
        self._memory: dict[int, memoryview] = {}
        self._iocbs = bytearray(depth * _IOCB.size)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._iocbs))
        self._pointers = (ctypes.c_void_p * depth)(*(first + number * _IOCB.size for number in range(depth)))
        self._each = [ctypes.addressof(self._pointers) + number * 8 for number in range(depth)]
        self._events = bytearray(depth * _EVENT.size)
        self._events_at = ctypes.addressof(ctypes.c_char.from_buffer(self._events))

    def begin(self, fd: int, memory: memoryview, address: int, offset: int) -> int | None:
        """Begin to read into ``memory``, which is at ``address``; its ticket. All as O_DIRECT wants it, and ``fd`` is
        open so. None: too many are under way. Raises OSError."""
        if not self._free:
            return None
        ticket = self._free.pop()
        _IOCB.pack_into(
            self._iocbs, ticket * _IOCB.size, ticket, 0, _NO_WAIT, _PREAD, 0, fd, address, len(memory), offset, 0,
            _TELL_EVENTFD, self.fd,
        )  # fmt: skip
        if self._submit(self._numbers[0], self._context, 1, self._each[ticket]) == 1:
            self._memory[ticket] = memory
            return ticket
        self._free.append(ticket)
        if ctypes.get_errno() == errno.EAGAIN:
            return None
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def ended(self) -> list[Ended]:
        """Reads that have ended since the last time. Does not wait."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        count = _check(self._get(self._numbers[1], self._context, 0, self._depth, self._events_at, None))
        found: list[Ended] = []
        for number in range(count):
            ticket, _, outcome, _ = _EVENT.unpack_from(self._events, number * _EVENT.size)
            del self._memory[ticket]
            self._free.append(ticket)
            found.append(Ended(ticket, outcome))
        return found


def _function(*arguments: Any) -> Callable[..., int]:
    """syscall(2) with arguments of these types."""
    function = ctypes.CDLL(None, use_errno=True)["syscall"]
    function.argtypes = [ctypes.c_long, *arguments]
    function.restype = ctypes.c_long
    return function


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
