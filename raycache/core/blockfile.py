"""A block as a file: what its header says, and how its bytes are known to be the ones that were written.

A file describes itself::

    prefix       magic, format version, bytes of the header, xxh3_64 of the rest of the header
    about        block id, dataset, size, holes, bytes of a chunk: one line of JSON, blank-padded
    checksums    lower half of the xxh3_64 of each chunk of the block, little-endian
    padding      zeros up to a multiple of 4096
    the block

The length of a file follows from the block's size and its dataset alone, so that it can be reserved before the block
is there. Header and chunks are whole pages, so that a range can be read past the page cache (O_DIRECT).

Pure: bytes in, bytes out. In ``core``, because workers write these files and clients of the same node read them.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from raycache.core.values import Buffer

MAGIC = b"RCBLOCK\n"
VERSION = 2
CHUNK_BYTES = 16 * 2**10
"""What one checksum covers. A read is checked as a whole number of chunks, so that this is what it may cost too much:
with 64 KiB, a file of 100 KB would read 164 KB on average. 16 KiB make 8 KiB of checksums for a block of 32 MiB."""
HOLES_MAX = 32
"""A block with more holes is not written: its directory wants a refresh."""
PAGE_BYTES = 4096
"""What O_DIRECT asks offsets, lengths and memory to be multiples of, on the disks there are."""
_PREFIX = struct.Struct("<8sIIQ")
_HOLE_CHARS = 44
_CHECKSUM_BYTES = 4
_LOW = 2**32 - 1
HEADER_BYTES_MAX = 64 * 2**20
"""What a reader believes: the checksums of a block of a quarter of a terabyte."""

Hole = tuple[int, int]


class BadFile(Exception):
    """Not a block file, a torn one, or one whose bytes are not those that were written."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a block file says about itself."""

    block_id: bytes
    dataset: str
    size_bytes: int
    holes: tuple[Hole, ...]
    chunk_bytes: int
    header_bytes: int
    checksums: NDArray[np.uint32]

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.header_bytes + self.size_bytes

    def chunks(self, offset: int, length: int) -> tuple[int, int]:
        """Start and stop, in the block, of the chunks that a range touches."""
        start = offset // self.chunk_bytes * self.chunk_bytes
        stop = -(-(offset + length) // self.chunk_bytes) * self.chunk_bytes
        return start, min(stop, self.size_bytes)

    def meets_hole(self, offset: int, length: int) -> bool:
        """Whether a range wants bytes that the source did not have."""
        return any(start < offset + length and offset < stop for start, stop in self.holes)

    def check(self, start: int, data: Buffer | bytearray) -> None:
        """Whether ``data``, whole chunks from ``start`` on, is what was written. Raises BadFile."""
        first = start // self.chunk_bytes
        found = _checksums(data, self.chunk_bytes)
        written = self.checksums[first : first + len(found)].tolist()
        if found != written:
            number = first + next(n for n, pair in enumerate(zip(found, written, strict=True)) if pair[0] != pair[1])
            raise BadFile(f"bytes from {number * self.chunk_bytes} on are not those that were written")


def file_bytes(size_bytes: int, dataset: str) -> int:
    """Length of the file of a block."""
    return _header_bytes(size_bytes, dataset) + size_bytes


def encode(block_id: bytes, dataset: str, block: Buffer | bytearray, holes: tuple[Hole, ...]) -> bytes:
    """The header of a block, to be followed by the block. Raises BadFile when it has too many holes."""
    if len(holes) > HOLES_MAX:
        raise BadFile(f"{len(holes)} files of the block are gone from the source; at most {HOLES_MAX} may be")
    size_bytes = len(block)
    about = _about(block_id.hex(), dataset, size_bytes, holes).ljust(_about_bytes(dataset) - 1).encode() + b"\n"
    rest = about + np.array(_checksums(block, CHUNK_BYTES), dtype="<u4").tobytes()
    header_bytes = _header_bytes(size_bytes, dataset)
    prefix = _PREFIX.pack(MAGIC, VERSION, header_bytes, xxhash.xxh3_64_intdigest(rest))
    return (prefix + rest).ljust(header_bytes, b"\0")


def header_bytes(prefix: bytes | bytearray) -> int:
    """Bytes of the header that begins like this, at least PREFIX_BYTES of it. Raises BadFile."""
    if len(prefix) < PREFIX_BYTES:
        raise BadFile("shorter than any block file")
    magic, version, length, _ = _PREFIX.unpack_from(prefix)
    if magic != MAGIC:
        raise BadFile("not a block file")
    if version != VERSION:
        raise BadFile(f"format version {version}, and this raycache knows {VERSION}")
    if not PREFIX_BYTES < length <= HEADER_BYTES_MAX:
        raise BadFile(f"a header of {length} bytes")
    return int(length)


def decode(header: bytes | bytearray) -> Header:
    """The header in its ``header_bytes``. Raises BadFile when it is cut short or not what was written."""
    length = header_bytes(header)
    if len(header) < length:
        raise BadFile("its header is cut short")
    end = header.find(b"\n", PREFIX_BYTES)
    try:
        about = json.loads(header[PREFIX_BYTES:end])
        count = _chunk_count(about["size_bytes"], about["chunk_bytes"])
        stop = end + 1 + _CHECKSUM_BYTES * count
        if xxhash.xxh3_64_intdigest(header[PREFIX_BYTES:stop]) != _PREFIX.unpack_from(header)[3]:
            raise BadFile("its header is not the one that was written")
        checksums = np.frombuffer(header, dtype="<u4", count=count, offset=end + 1)
        holes = tuple((start, stop) for start, stop in about["holes"])
        return Header(
            bytes.fromhex(about["block_id"]), about["dataset"], about["size_bytes"], holes, about["chunk_bytes"],
            length, checksums,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise BadFile(f"its header is not the one that was written: {error}") from error


PREFIX_BYTES = _PREFIX.size


def _about(block_id: str, dataset: str, size_bytes: int, holes: tuple[Hole, ...]) -> str:
    return json.dumps(
        {"block_id": block_id, "dataset": dataset, "size_bytes": size_bytes, "chunk_bytes": CHUNK_BYTES, "holes": holes}
    )


def _about_bytes(dataset: str) -> int:
    """Room for the longest line about a block of this dataset: an id of 64 bytes, and HOLES_MAX holes."""
    return len(_about("", dataset, 0, ())) + 128 + 20 + HOLES_MAX * _HOLE_CHARS + 1


def _chunk_count(size_bytes: int, chunk_bytes: int) -> int:
    return -(-size_bytes // chunk_bytes)


def _header_bytes(size_bytes: int, dataset: str) -> int:
    used = PREFIX_BYTES + _about_bytes(dataset) + _CHECKSUM_BYTES * _chunk_count(size_bytes, CHUNK_BYTES)
    return -(-used // PAGE_BYTES) * PAGE_BYTES


def _checksums(data: Buffer | bytearray, chunk_bytes: int) -> list[int]:
    view = memoryview(data)
    return [xxhash.xxh3_64_intdigest(view[at : at + chunk_bytes]) & _LOW for at in range(0, len(view), chunk_bytes)]
