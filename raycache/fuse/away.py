"""The session of a mount that is written while its cluster is away: requests wait for the gateway that comes next.

Nothing can be answered, and nothing is refused before its deadline: whoever takes over from here is sent again all that
waits. Answering by refusals would tell the kernel that this mount cannot do what it can.

Threading: as in ``session``.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

from raycache.fuse import wire, wirewrite
from raycache.fuse.misses import Limits
from raycache.fuse.session import Session
from raycache.fuse.wire import Agreed, Malformed, Op
from raycache.fuse.wirewrite import Ask

_log = logging.getLogger(__name__)


class AwaySession(Session[Ask]):
    """Keeps requests waiting."""

    profile = wirewrite.WRITING

    def __init__(self, fd: int, agreed: Agreed, limits: Limits) -> None:
        super().__init__(fd, agreed, replace(limits, threads=0))  # nobody works: all wait for their deadline

    def dispatch(self, buffer: memoryview, length: int) -> None:
        """See Session."""
        try:
            opcode, _ = wire.peek(buffer, length)
            ask = wirewrite.parse(buffer, min(length, wire.IN_HEADER_BYTES + wirewrite.INTERRUPT_IN.size))
            if opcode == Op.INTERRUPT:
                self._misses.interrupt(wirewrite.fields(wirewrite.INTERRUPT_IN, ask)[0])
            elif opcode == Op.DESTROY:
                self._reply(ask.unique, b"")
            elif opcode not in (Op.FORGET, Op.BATCH_FORGET):
                self._misses.submit(ask)
        except Malformed as error:
            _log.error("a message of the kernel makes no sense: %s", error)
            if error.unique is not None:
                self._refuse(error.unique, errno.EINVAL)

    def _answer_late(self, request: Ask) -> None:
        """Nobody calls it."""

    def _answer_never(self, request: Ask, killed: bool) -> None:
        if not killed:
            _log.warning("the cluster was away for too long; a program sees an I/O error")
        self._refuse(request.unique, errno.EINTR if killed else errno.EIO)
