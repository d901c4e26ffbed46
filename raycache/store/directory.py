"""A directory of block files under a quota: the disk tier. Found again by whoever opens it next.

Responsible for: the files, their accounting, what to do when the disk lies, is full or fails. Not responsible for: the
format (``blockfile``), the order of tiers (``tiers``).

* A block is written to a temporary name beside its own, synced, renamed, and its directory synced.
* Headers are read when a block is first touched. Files that are not ours are left alone.
* Bytes are read with ``pread``, not mapped: a disk that fails is then an error, where a map would kill the process.
  Each read is checked against the checksums; a block that fails is dropped, counted, and reads as a miss.
* Files are found in the background, names and sizes only; until all are, a block is looked for by its name and nothing
  new is written.
* Calls to the disk have a deadline (``core.lane``). While one is overdue the directory serves nothing: its blocks are
  read from the source. What was being written is undone when the call comes back, and holds its bytes until then.
* An error that is the directory's (EIO, EROFS ...) takes it out of service until the next start; a full disk only makes
  it refuse blocks for a while.

One process at a time: a lock file, which the kernel lets go of when its holder dies, however it dies. So no identity of
a node or host is needed, which a restart might change.

Threading: safe; one lock for the books, files are used outside it.
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raycache.config import Tier
from raycache.core import blockfile
from raycache.core.blockfile import BadFile, Ends, Hole
from raycache.core.lane import Lane, Overdue
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Buffer, Filed, Origin
from raycache.store.accounts import Accounts
from raycache.store.fileops import FileOps, medium
from raycache.store.ledger import Ledger, Reservation
from raycache.store.openblock import OpenBlock, open_block
from raycache.store.origins import Origins, key_of
from raycache.store.survey import TEMPORARY, Found, file_path, find_key, survey

LOCK_WAIT_S = 5.0
"""How long to wait for the lock: a worker that was killed holds it until the kernel has taken it apart."""
FULL_PAUSE_S = 30.0
"""How long a disk that was full is asked for nothing."""
OPEN_FILES = 128
READS, READ_DEADLINE_S = 8, 10.0
"""Reads of the disk under way, and how long one may take."""
WRITES, WRITE_DEADLINE_S = 4, 60.0
"""Files written or deleted at once; a disk that syncs may take its time."""
_ENTER_AT_ONCE = 1000
_FULL = {errno.ENOSPC, errno.EDQUOT}
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of this process, not of the directory."""
_log = logging.getLogger("raycache.store")


@dataclass
class Figures:
    """What happened in a directory since it was opened."""

    hits: int = 0
    corrupt: int = 0
    """Blocks dropped because their bytes were not those that were written."""
    torn: int = 0
    """Files that were no whole block: dropped."""
    refused: int = 0
    """Blocks not written: the disk was full before the quota was."""
    foreign: int = 0
    """Files found at start that are not ours: left alone and not counted in the quota."""
    evicted: int = 0


class Directory:
    """See the module. ``open`` before use, ``close`` after."""

    def __init__(
        self,
        path: Path,
        quota_bytes: int,
        accounts: Accounts,
        files: FileOps | None = None,
        scheduler: Scheduler = THREADS,
    ) -> None:
        self.path = path
        self._files = files or FileOps()
        self._scheduler = scheduler
        self._clock = scheduler.monotonic
        self._lock = scheduler.lock()
        self._reads = Lane(READS, READ_DEADLINE_S, "disk-read", scheduler)
        self._writes = Lane(WRITES, WRITE_DEADLINE_S, "disk-write", scheduler)
        self._leaving: set[bytes] = set()
        """Blocks whose files are being deleted."""
        self._free = scheduler.condition(self._lock)
        self._late: set[Reservation] = set()
        """Those whose file is being written by a call that is overdue."""
        self._ledger = Ledger(quota_bytes, accounts)
        self._origins = Origins(path, self._files, scheduler)
        self._open: OrderedDict[bytes, OpenBlock] = OrderedDict()
        self._figures = Figures()
        self._lock_fd: int | None = None
        self._medium: str | None = None
        self._full_until = 0.0
        self._out_of_service: str | None = "not opened"
        self._looking = False
        """Whether there may be blocks that are not in the ledger yet."""
        self._dropped: set[bytes] = set()
        """Those that went while looking."""

    def open(self, lock_wait_s: float = LOCK_WAIT_S, *, wait: bool = True) -> None:
        """Take the directory and find what is in it; with ``wait=False`` in the background. One that cannot be used is
        out of service, and says why."""
        self._out_of_service, self._looking = None, True
        try:
            self._reads.call(lambda: self._take(lock_wait_s))
        except Overdue:
            self._out_of_service = "it did not answer; see that it works, then restart the worker"
        except OSError as error:
            self._fail(error)
        if wait:
            self._look()
        else:
            self._scheduler.spawn(self._look, "look")

    def _take(self, lock_wait_s: float) -> None:
        self._files.make_private(self.path)
        self._lock_fd = self._files.take_lock(self.path / "lock", lock_wait_s)
        self._medium = medium(self.path)
        self._origins.read()

    def _look(self) -> None:
        try:
            if self.in_service:
                found = survey(self.path, self._files, self._origins, self._ledger.quota_bytes)
                self._figures.foreign = found.foreign
                self._enter(found.fitting, found.beyond)
        except OSError as error:
            self._fail(error)
        with self._lock:
            self._looking = False
            self._dropped.clear()

    def close(self) -> None:
        """Let go of the lock; the files stay."""
        with self._lock:
            self._open.clear()
            self._out_of_service = self._out_of_service or "closed"
            if self._lock_fd is not None:
                self._files.close(self._lock_fd)
                self._lock_fd = None

    @property
    def in_service(self) -> bool:
        """Whether it can be used."""
        return self._out_of_service is None

    @property
    def looking(self) -> bool:
        """Whether there may be blocks that were not found yet."""
        return self._looking

    @property
    def quota_bytes(self) -> int:
        """What its files may take."""
        return self._ledger.quota_bytes

    def has(self, block_id: bytes) -> bool:
        """Whether a block is known to be here."""
        with self._lock:
            return block_id in self._ledger and self._may_have(block_id)

    def __contains__(self, block_id: bytes) -> bool:
        """As far as is known without looking: True while it is not known."""
        with self._lock:
            return self._may_have(block_id)

    def reserve(self, block_id: bytes, size_bytes: int, origin: Origin, *, evict: bool = True) -> Reservation | None:
        """Bytes for the file of a block, or None when it is not to come here. ``evict``: see Ledger."""
        with self._lock:
            if self._out_of_service or self._looking or self._hanging or self._clock() < self._full_until:
                return None
            file_bytes = blockfile.file_bytes(size_bytes, origin.dataset)
            return self._ledger.reserve(block_id, file_bytes, origin, evict=evict)

    def cancel(self, reservation: Reservation) -> None:
        """The block does not come. Where its file is being written still, its bytes are free when that has ended."""
        with self._lock:
            if reservation not in self._late:
                self._ledger.cancel(reservation)

    def write(
        self, reservation: Reservation, block: Buffer | bytearray, holes: tuple[Hole, ...], ends: Ends | None = None
    ) -> bool:
        """Make the file, its victims gone before. False when it could not be: then ``cancel`` the reservation.

        ``ends``: see blockfile.encode.
        """
        origin = reservation.origin

        def make() -> None:
            self._make(reservation, blockfile.encode(reservation.block_id, origin.dataset, block, holes, ends), block)

        try:
            self._writes.call(make, late=lambda: self._undo(reservation))
        except Overdue as overdue:
            if overdue.begun:
                with self._lock:
                    self._late.add(reservation)
            return False
        except (BadFile, OSError) as error:
            self._fail(error)
            return False
        with self._lock:
            if self._out_of_service:
                return False
            self._figures.evicted += len(reservation.victims)
            self._ledger.commit(reservation, self._clock())
        return True

    def _make(self, reservation: Reservation, header: bytes, block: Buffer | bytearray) -> None:
        """Drop the victims and write the file. Raises OSError."""
        path = self._path(reservation.block_id, reservation.origin)
        temporary = path.with_name(path.name + TEMPORARY)
        for victim in reservation.victims:
            self._remove(victim)  # a file that stays would be one too many
        self._files.make_private(path.parent)
        self._origins.keep(reservation.origin)
        try:
            self._files.write_synced(temporary, header, block)
            self._files.publish(temporary, path)
        except OSError:
            self._files.remove(temporary)
            raise

    def _undo(self, reservation: Reservation) -> None:
        """A file was written, or was not, after its caller had given up."""
        try:
            self._files.remove(self._path(reservation.block_id, reservation.origin))
        except OSError as error:
            self._fail(error)
        with self._lock:
            self._late.discard(reservation)
            self._ledger.cancel(reservation)

    def find(self, block_id: bytes) -> OpenBlock | None:
        """A block that is here and whole as far as its header says. Reads the header when it is not open yet."""
        with self._lock:
            if not self._may_have(block_id):
                return None
            self._ledger.touch(block_id, self._clock())
            block = self._open.get(block_id)
            if block is not None:
                self._open.move_to_end(block_id)
                return block
        block = self._open_file(block_id)
        with self._lock:
            if block is None or not self._may_have(block_id):
                return None
            self._open[block_id] = block
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return block

    def read(self, block: OpenBlock, offset: int, length: int) -> memoryview | None:
        """Checked bytes, or None when they are not what was written, or cannot be read: the block is then gone."""
        try:
            data = self._reads.call(lambda: block.read(offset, length))
        except Overdue:
            return None
        except BadFile as error:
            if self._files.is_gone(block.fd):  # dropped while it was read: what is missing was cut off by us
                with self._lock:
                    if self._open.get(block.header.block_id) is block:
                        del self._open[block.header.block_id]
                return None
            with self._lock:
                self._figures.corrupt += 1
            self._discard(block.header.block_id, error)
            return None
        except OSError as error:
            self._fail(error)
            return None
        with self._lock:
            self._figures.hits += 1
        return data

    def name(self, block: OpenBlock) -> Filed:
        """Where a client of this node reads the block by itself."""
        with self._lock:
            self._figures.hits += 1
        return Filed(str(block.path), block.packed)

    def touch(self, block_ids: Iterable[bytes]) -> None:
        """Blocks were read by clients; those that are not here are passed over."""
        with self._lock:
            now = self._clock()
            for block_id in block_ids:
                self._ledger.touch(block_id, now)

    def drop(self, block_id: bytes) -> bool:
        """Delete a block's file and give its bytes back; False when it cannot be deleted."""
        try:
            self._writes.call(lambda: self._remove(block_id))
        except Overdue:
            return False
        except OSError as error:
            self._fail(error)
            return False
        return True

    def _remove(self, block_id: bytes) -> None:
        """Delete a file; while it is on the disk, nothing may be written in its place. Raises OSError.

        Nobody else takes a block out of the books, and this one at a time: once it is out it may be written anew, and
        who had begun before would take out the new one. In a lane: when one hangs, so may those that wait for it.
        """
        with self._lock:
            self._free.wait_for(lambda: block_id not in self._leaving)
            self._leaving.add(block_id)
        try:
            self._files.remove(self._place(block_id)[0])
            with self._lock:
                self._open.pop(block_id, None)
                self._ledger.drop(block_id)
        except FileNotFoundError:
            pass  # it is in no books
        finally:
            with self._lock:
                if self._looking:
                    self._dropped.add(block_id)
                self._leaving.discard(block_id)
                self._free.notify_all()

    def set_spare(self, block_id: bytes, spare: bool) -> None:
        """See Ledger."""
        with self._lock:
            self._ledger.set_spare(block_id, spare)

    def apply(self) -> None:
        """What datasets may keep has changed: see the accounts."""
        with self._lock:
            self._ledger.apply()

    def surplus(self, limit: int) -> list[bytes]:
        """See Ledger."""
        with self._lock:
            return self._ledger.surplus(self._clock(), limit)

    def held(self) -> list[tuple[bytes, Origin, int]]:
        """See Ledger."""
        with self._lock:
            return self._ledger.held()

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``."""
        with self._lock:
            return {
                "directory": str(self.path),
                "medium": self._medium,
                "quota_bytes": self._ledger.quota_bytes,
                "used_bytes": self._ledger.held_bytes,
                "blocks": len(self._ledger),
                "datasets": self._ledger.datasets(),
                **self._figures.__dict__,
                "looking": self._looking,
                "overdue": self._reads.overdue + self._writes.overdue,
                "out_of_service": self._out_of_service or ("a call to it has not come back" if self._hanging else None),
            }

    def check(self) -> None:
        """Invariants, for tests."""
        with self._lock:
            self._ledger.check()
            assert self._looking or all(block_id in self._ledger for block_id in self._open)

    @property
    def _hanging(self) -> bool:
        return bool(self._reads.overdue or self._writes.overdue)

    def _may_have(self, block_id: bytes) -> bool:
        """Whether a block is here, or may be. The lock is held."""
        if self._out_of_service or self._hanging:
            return False
        return block_id in self._ledger or (self._looking and block_id not in self._dropped)

    def _enter(self, fitting: list[Found], beyond: list[Found]) -> None:
        """Enter what was found into the books. Raises OSError."""
        for start in range(0, len(fitting), _ENTER_AT_ONCE):
            with self._lock:
                for one in fitting[start : start + _ENTER_AT_ONCE]:
                    if one.block_id not in self._dropped:
                        reservation = self._ledger.reserve(one.block_id, one.size_bytes, one.origin)
                        if reservation is None:  # one block under two names
                            beyond.append(one)
                        else:
                            self._ledger.commit(reservation, self._clock())
        for one in beyond:
            self._files.remove(self._path(one.block_id, one.origin))

    def _open_file(self, block_id: bytes) -> OpenBlock | None:
        """None when it is not there, torn (then it is dropped), or the directory fails."""
        try:
            return self._reads.call(lambda: open_block(self._files, *self._place(block_id), block_id, self._clock()))
        except Overdue:
            return None
        except FileNotFoundError:
            self.drop(block_id)
        except BadFile as error:
            with self._lock:
                self._figures.torn += 1
            self._discard(block_id, error)
        except OSError as error:
            self._fail(error)
        return None

    def _place(self, block_id: bytes) -> tuple[Path, Origin]:
        """The file of a block, and where it comes from. Raises FileNotFoundError, OSError."""
        with self._lock:
            if self._out_of_service:  # its books are empty then, and the file may well be there
                raise OSError(errno.EIO, self._out_of_service)
            origin, looking = self._ledger.origin(block_id), self._looking
        if origin is None and looking:
            key = find_key(self.path, self._files, block_id)
            origin = None if key is None else self._origins.find(key)
        if origin is None:
            raise FileNotFoundError(errno.ENOENT, "it was dropped")
        return self._path(block_id, origin), origin

    def _path(self, block_id: bytes, origin: Origin) -> Path:
        return file_path(self.path, block_id, key_of(origin))

    def _discard(self, block_id: bytes, error: BadFile) -> None:
        _log.warning("%s: block %s: %s; it is dropped and fetched again", self.path, block_id.hex(), error)
        self.drop(block_id)

    def _fail(self, error: OSError | BadFile) -> None:
        """Draw the consequence of an error: nothing, a pause, or the end of service."""
        if isinstance(error, BadFile) or error.errno in _OURS:
            _log.warning("%s: %s", self.path, error)
            return
        with self._lock:
            if error.errno in _FULL:
                self._figures.refused += 1
                self._full_until = self._clock() + FULL_PAUSE_S
                _log.warning("%s: %s; the quota is larger than what the disk has free", self.path, error)
                return
            if self._out_of_service is None:
                self._out_of_service = f"{error.strerror or error}; see that it works, then restart the worker"
                _log.error("%s is out of service: %s", self.path, error)
            self._open.clear()
            self._ledger.clear()


def open_directories(
    tiers: Iterable[Tier], namespace: str, accounts: Accounts, *, wait: bool = True
) -> list[Directory]:
    """The directories of one worker, open: in each tier's a directory for the cache's namespace."""
    name = "blocks-" + quote(namespace, safe="")
    directories = [Directory(tier.directory / name, tier.quota_bytes, accounts) for tier in tiers]
    for directory in directories:
        directory.open(wait=wait)
    return directories
