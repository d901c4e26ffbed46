"""A block file that is open: its header is known to be whole, and every read of its bytes is checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raycache.core import blockfile
from raycache.core.blockfile import BadFile, Header
from raycache.core.values import Origin
from raycache.store.fileops import FileOps


@dataclass(eq=False)
class OpenBlock:
    """See the module. The descriptor is closed with the last reference: a reader's outlives the file."""

    path: Path
    fd: int
    origin: Origin
    header: Header
    packed: bytes
    """The header as it is in the file, without its padding."""
    since: float
    """When its header was read, on the monotonic clock: holes are believed from then on."""
    files: FileOps

    def read(self, offset: int, length: int) -> memoryview:
        """Bytes that were checked. Raises BadFile, OSError."""
        start, stop = self.header.chunks(offset, length)
        data = self.files.pread(self.fd, stop - start, self.header.header_bytes + start)
        if len(data) < stop - start:
            raise BadFile("it was cut short")
        self.header.check(start, data)
        return memoryview(data)[offset - start : offset - start + length]

    def __del__(self) -> None:
        self.files.close(self.fd)


def open_block(files: FileOps, path: Path, origin: Origin, block_id: bytes, now: float) -> OpenBlock:
    """Open a block file and read its header. Raises BadFile when it is not that of the block, OSError."""
    fd, size_bytes = files.open_to_read(path)
    try:
        length = blockfile.header_bytes(files.pread(fd, blockfile.PREFIX_BYTES, 0))
        packed = bytes(files.pread(fd, length, 0))
        header = blockfile.decode(packed)
        if size_bytes != header.file_bytes or header.block_id != block_id:
            raise BadFile(f"{size_bytes} bytes, where its header says {header.file_bytes}")
    except BaseException:  # an interrupt too must not leak the descriptor
        files.close(fd)
        raise
    return OpenBlock(path, fd, origin, header, packed[: header.used_bytes], now, files)
