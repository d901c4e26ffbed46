"""The portable session: pyfuse3 over the vfs, read-only. Translates, delegates, translates back.

One trio thread answers what is held in memory at once; what has to be fetched goes to a bounded pool of threads.
An open file is its inode number, so that the server keeps nothing per open file.

Threading: handlers run in one thread and never wait there. pyfuse3 serves one mount per process.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pyfuse3
import trio

from raycache.errors import MountError
from raycache.fuse.errno import errno_of
from raycache.fuse.vfs import Attr, DirEntry, Vfs, WouldBlock

LIFETIME_S = 24 * 3600.0
"""How long the kernel may keep names and attributes: manifests do not change under a mount."""
MISSES_MAX = 64
"""Requests that wait for bytes at once; more than that queue in the kernel."""
_Result = TypeVar("_Result")


class Operations(pyfuse3.Operations):
    """pyfuse3's handlers."""

    def __init__(self, vfs: Vfs, owner: tuple[int, int], ready: Callable[[], None]) -> None:
        super().__init__()
        self._ready = ready
        self._vfs = vfs
        self._owner = owner
        self._limiter = trio.CapacityLimiter(MISSES_MAX)

    def init(self) -> None:
        """The kernel's first word: from now on the mount answers."""
        self._ready()

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        """An entry by name; a missing one is an answer the kernel may keep too."""
        try:
            return self._attributes(await self._ask(f"lookup {name!r}", partial(self._vfs.lookup, parent_inode, name)))
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ENOENT:
                raise
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = LIFETIME_S
            return missing

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        """Attributes of an inode."""
        return self._attributes(await self._ask(f"stat {inode:#x}", partial(self._vfs.getattr, inode)))

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        """Open for reading; the kernel may keep the pages of the last time."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND):
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> Any:
        """Bytes of a file."""
        return await self._ask(f"read {self._vfs.path(fh)}", partial(self._vfs.read, fh, off, size))

    async def opendir(self, inode: int, ctx: Any) -> int:
        """Open a directory, which like a file is its number."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """Entries with their attributes, as many as the kernel takes."""
        entries: Iterator[DirEntry] = await self._ask(f"list {fh:#x}", partial(self._vfs.readdir, fh, start_id))
        for entry in entries:
            attributes = self._attributes(entry.attr)
            if not pyfuse3.readdir_reply(token, entry.name, attributes, entry.next_offset):
                return

    async def statfs(self, ctx: Any) -> Any:
        """Size of the file system, as far as it is listed; nothing is free in a read-only one."""
        size_bytes, files = self._vfs.totals()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks, data.f_bfree, data.f_bavail = -(-size_bytes // 4096), 0, 0
        data.f_files, data.f_ffree, data.f_favail = files, 0, 0
        data.f_namemax = 255
        return data

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        """There are none."""
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        """There are none."""
        return []

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        """Only asked without default_permissions."""
        return not mode & os.W_OK

    async def release(self, fh: int) -> None:
        """Nothing is kept per open file."""

    async def releasedir(self, fh: int) -> None:
        """Nothing is kept per open directory."""

    async def flush(self, fh: int) -> None:
        """Nothing is written."""

    async def forget(self, inode_list: Any) -> None:
        """There is no table of inodes."""

    async def _ask(self, doing: str, call: Callable[..., _Result]) -> _Result:
        try:
            try:
                return call(wait=False)
            except WouldBlock:
                return await trio.to_thread.run_sync(call, limiter=self._limiter)
        except Exception as error:  # whatever it is, the kernel needs an errno and the log the cause
            self._vfs.counters.errors += 1
            raise pyfuse3.FUSEError(errno_of(error, doing)) from error

    def _attributes(self, attr: Attr) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = attr.ino
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = LIFETIME_S
        entry.st_mode = stat.S_IFDIR | 0o555 if attr.is_dir else stat.S_IFREG | 0o444
        entry.st_nlink = 2 if attr.is_dir else 1
        entry.st_uid, entry.st_gid = self._owner
        entry.st_rdev = 0
        entry.st_size = attr.size
        entry.st_blksize = 4096
        entry.st_blocks = -(-attr.size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attr.mtime_ns
        return entry


def serve(
    vfs: Vfs, mountpoint: str, source: str, *, owner: tuple[int, int], allow_other: bool, ready: Callable[[], None]
) -> None:
    """Mount, say so, and serve until unmounted or told to end by SIGTERM. Raises MountError."""
    options = set(pyfuse3.default_options) | {
        f"fsname={source}", "subtype=raycache", "ro", "nosuid", "nodev", "default_permissions",
    }  # fmt: skip
    options |= {"allow_other"} if allow_other else set()
    try:
        pyfuse3.init(Operations(vfs, owner, ready), mountpoint, options)
    except RuntimeError as error:
        raise MountError(f"cannot mount on {mountpoint}: {error}; libfuse says why in the gateway's log") from error
    try:
        trio.run(_main)
    finally:
        pyfuse3.close(unmount=True)


async def _main() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal)
        await pyfuse3.main(min_tasks=1, max_tasks=MISSES_MAX)
        nursery.cancel_scope.cancel()


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pyfuse3.terminate()
