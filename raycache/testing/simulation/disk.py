"""A disk in memory, for store.directory: what was not synced may be lost or torn when the power goes.

A process that is killed leaves the files as they are, half-written ones too. When the power goes, a name survives for
certain once its directory was synced, and bytes once their file was; of the rest some does, as the seed says. Faults
are errors, a full disk, bytes that flip at rest, and slowness.
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from raycache.core.values import Buffer
from raycache.store.fileops import FileOps
from raycache.store.origins import NAME as ORIGINS
from raycache.testing.simulation.machinery import Killed, Process

_WRITE_BYTES = 2048


class _File:
    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = b""


class Disk:
    """The disk of a node; it outlives the processes that use it."""

    def __init__(self, quota_bytes: int) -> None:
        self.quota_bytes = quota_bytes
        """What the cache may use of it, at any moment."""
        self.files: dict[Path, _File] = {}
        self.durable: dict[Path, _File] = {}
        self.errors: dict[str, int] = {}
        """Error numbers by verb, raised as long as they are here."""
        self.delay_s = 0.0
        self.owner: Process | None = None
        """Who holds the lock."""

    @property
    def used_bytes(self) -> int:
        """Bytes of all files that count in the quota: of what is not a block there is little."""
        return sum(len(file.data) for path, file in self.files.items() if not path.name.startswith(ORIGINS))

    def lose_power(self, random: Any) -> None:
        """Keep what was synced, and some of the rest."""
        names = {**self.durable}
        for path in [*self.files, *self.durable]:
            if self.files.get(path) is not self.durable.get(path) and random.random() < 0.5:
                names.pop(path, None)
                if path in self.files:
                    names[path] = self.files[path]
        for file in names.values():
            if file.data != file.synced and random.random() < 0.7:
                file.data = bytearray(file.data[: int(random.random() * len(file.data))])
                file.synced = bytes(file.data)
        self.files, self.durable = names, dict(names)

    def flip(self, random: Any) -> str | None:
        """Change one byte of some file; its name, or None when there is no file."""
        candidates = [path for path, file in self.files.items() if file.data]
        if not candidates:
            return None
        path = random.choice(candidates)
        file = self.files[path]
        file.data[int(random.random() * len(file.data))] ^= 1 << int(random.random() * 8)
        return str(path.name)


class _Info(NamedTuple):
    st_mtime: float
    st_size: int
    st_mode: int


class _DirEntry:
    def __init__(self, path: Path, file: _File | None, number: int) -> None:
        self.name, self.path, self._file, self._number = path.name, str(path), file, number

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._file is None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._file is not None

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        size_bytes = len(self._file.data) if self._file else 0
        return _Info(float(self._number), size_bytes, stat_bits.S_IFREG if self._file else stat_bits.S_IFDIR)


class SimulatedFiles(FileOps):
    """FileOps of one process on a Disk. Each verb takes a while, in which others run."""

    def __init__(self, process: Process, disk: Disk) -> None:
        self._process = process
        self._disk = disk
        self._open: dict[int, _File] = {}
        self._next_fd = 1000

    def make_private(self, path: Path) -> None:
        """See FileOps. Directories are where files are."""
        self._do("make_private")

    def take_lock(self, path: Path, wait_s: float) -> int:
        """See FileOps."""
        self._do("lock")
        owner = self._disk.owner
        if owner is not None and owner.alive and owner is not self._process:
            raise BlockingIOError(errno.EAGAIN, "another worker uses it", str(path))
        self._disk.owner = self._process
        return 0

    def scan(self, path: Path) -> Iterator[Any]:
        """See FileOps."""
        self._do("scan")
        found: dict[Path, _DirEntry] = {}
        for number, (each, file) in enumerate(self._disk.files.items()):
            if each.parent == path:
                found[each] = _DirEntry(each, file, number)
            elif each.parent.parent == path:
                found.setdefault(each.parent, _DirEntry(each.parent, None, number))
        yield from found.values()

    def names(self, path: Path) -> list[str]:
        """See FileOps."""
        self._do("scan")
        return [each.name for each in self._disk.files if each.parent == path]

    def open_to_read(self, path: Path) -> tuple[int, int]:
        """See FileOps."""
        self._do("open")
        file = self._disk.files.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._next_fd += 1
        self._open[self._next_fd] = file
        return self._next_fd, len(file.data)

    def close(self, fd: int) -> None:
        """See FileOps. A killed process's descriptors go with it."""
        if fd == 0 and self._disk.owner is self._process:
            self._disk.owner = None
        self._open.pop(fd, None)

    def is_gone(self, fd: int) -> bool:
        """See FileOps."""
        return all(file is not self._open[fd] for file in self._disk.files.values())

    def pread(self, fd: int, length: int, offset: int) -> bytearray:
        """See FileOps."""
        self._do("pread")
        return self._open[fd].data[offset : offset + length]

    def read(self, path: Path) -> bytes:
        """See FileOps."""
        self._do("open")
        file = self._disk.files.get(path)
        return b"" if file is None else bytes(file.data)

    def append_synced(self, path: Path, data: bytes) -> None:
        """See FileOps."""
        self._do("open")
        file = self._disk.files.setdefault(path, _File())
        self._do("write")
        file.data += data
        self._do("sync")
        file.synced = bytes(file.data)

    def write_synced(self, path: Path, *parts: Buffer | bytearray) -> None:
        """See FileOps."""
        self._do("open")
        file = self._disk.files[path] = _File()
        for part in parts:
            for at in range(0, len(part), _WRITE_BYTES):
                self._do("write")
                file.data += part[at : at + _WRITE_BYTES]
                used_bytes, quota_bytes = self._disk.used_bytes, self._disk.quota_bytes
                self._process.simulation.require(
                    used_bytes <= quota_bytes, f"{used_bytes} bytes on a disk that may have {quota_bytes}"
                )
        self._do("sync")
        file.synced = bytes(file.data)

    def publish(self, temporary: Path, path: Path) -> None:
        """See FileOps."""
        self._do("rename")
        self._disk.files[path] = self._disk.files.pop(temporary)
        self._do("sync")
        for each in [one for one in self._disk.durable if one.parent == path.parent]:
            del self._disk.durable[each]
        self._disk.durable.update({one: file for one, file in self._disk.files.items() if one.parent == path.parent})

    def remove(self, path: Path) -> None:
        """See FileOps. Durable when the directory is synced next, but for the bytes, which are gone."""
        self._do("remove")
        file = self._disk.files.pop(path, None)
        if file is not None:
            self._do("truncate")
            file.data, file.synced = bytearray(), b""

    def _do(self, verb: str) -> None:
        """One step of the disk."""
        if not self._process.alive:
            raise Killed
        self._process.sleep(self._disk.delay_s + self._process.simulation.random.random() * 1e-3)
        number = self._disk.errors.get(verb)
        if number is not None:
            raise OSError(number, os.strerror(number), verb)
