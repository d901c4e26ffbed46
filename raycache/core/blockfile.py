"""A block as a file: what its header says, and how its bytes are known to be the ones that were written.

A file describes itself::

    prefix       magic, format version, bytes of the header, xxh3_64 of the rest of the header up to the padding
    about        block id, dataset, size, holes, number of chunks: one line of JSON, blank-padded
    lengths      of each chunk of the block, little-endian
    checksums    lower half of the xxh3_64 of each chunk, little-endian
    padding      zeros, up to a multiple of 4096 that has room for as many chunks as there may be
    the block

A range is read and checked as a whole number of chunks. So each member of a block, a file or a piece of one, has chunks
of its own, and is read without its neighbours; only what is small shares one with what comes next.

The length of a file follows from the block's size and its dataset alone, so that it can be reserved before the block
is there. The header is whole pages, so that a range can be read past the page cache (O_DIRECT).

Pure: bytes in, bytes out. In ``core``, because workers write these files and clients of the same node read them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from raycache.core.values import Buffer

MAGIC = b"RCBLOCK\n"
VERSION = 3
CHUNK_BYTES = 32 * 2**10
"""About what one checksum covers where a member is larger: what a range of it may cost too much."""
SMALL_BYTES = 16 * 2**10
"""What is smaller shares its checksum with what comes next. So a block of 32 MiB has 2048 chunks at most."""
HOLES_MAX = 32
"""A block with more holes is not written: its directory wants a refresh."""
PAGE_BYTES = 4096
"""What O_DIRECT asks offsets, lengths and memory to be multiples of, on the disks there are."""
_PREFIX = struct.Struct("<8sIIQ")
_HOLE_CHARS = 44
_CHUNK_HEADER_BYTES = 8
_LOW = 2**32 - 1
HEADER_BYTES_MAX = 64 * 2**20
"""What a reader believes: the checksums of a block of a quarter of a terabyte."""

Hole = tuple[int, int]
Ends = NDArray[np.int64]
"""Where each chunk of a block ends."""


class BadFile(Exception):
    """Not a block file, a torn one, or one whose bytes are not those that were written."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a block file says about itself."""

    block_id: bytes
    dataset: str
    size_bytes: int
    holes: tuple[Hole, ...]
    header_bytes: int
    """In the file."""
    used_bytes: int
    """Of them, those before the padding: all that ``decode`` needs."""
    ends: Ends
    checksums: NDArray[np.uint32]

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.header_bytes + self.size_bytes

    def chunks(self, offset: int, length: int) -> tuple[int, int]:
        """Start and stop, in the block, of the chunks that a range touches."""
        if not length:
            return offset, offset
        first = self.ends.searchsorted(offset, "right")
        last = self.ends.searchsorted(offset + length - 1, "right")
        return int(self.ends[first - 1]) if first else 0, int(self.ends[last])

    def meets_hole(self, offset: int, length: int) -> bool:
        """Whether a range wants bytes that the source did not have."""
        return any(start < offset + length and offset < stop for start, stop in self.holes)

    def check(self, start: int, data: Buffer | bytearray) -> None:
        """Whether ``data``, whole chunks from ``start`` on, is what was written. Raises BadFile."""
        if not data:
            return
        first, last = self.ends.searchsorted((start, start + len(data) - 1), "right").tolist()
        ends = (self.ends[first : last + 1] - start).tolist()
        found, written = _checksums(data, ends), self.checksums[first : last + 1].tolist()
        if found != written:
            number = next(n for n, pair in enumerate(zip(found, written, strict=True)) if pair[0] != pair[1])
            raise BadFile(f"bytes up to {start + ends[number]} are not those that were written")


def chunk_ends(size_bytes: int, starts: Iterable[int] = ()) -> Ends:
    """The chunks of a block, by where its members start."""
    ends: list[int] = []
    begin = 0
    for stop in (*starts, size_bytes):
        length = stop - begin
        if length >= SMALL_BYTES or (length and stop == size_bytes):
            count = max(1, (length + CHUNK_BYTES // 2) // CHUNK_BYTES)
            ends += [begin + length * number // count for number in range(1, count + 1)]
            begin = stop
    return np.array(ends, np.int64)


def file_bytes(size_bytes: int, dataset: str) -> int:
    """Length of the file of a block."""
    return _header_bytes(size_bytes, dataset) + size_bytes


def encode(
    block_id: bytes, dataset: str, block: Buffer | bytearray, holes: tuple[Hole, ...], ends: Ends | None = None
) -> bytes:
    """The header of a block, to be followed by the block. Raises BadFile when it has too many holes.

    ``ends``: see chunk_ends; None where the members of the block are not known.
    """
    if len(holes) > HOLES_MAX:
        raise BadFile(f"{len(holes)} files of the block are gone from the source; at most {HOLES_MAX} may be")
    size_bytes = len(block)
    ends = chunk_ends(size_bytes) if ends is None else ends
    about = _about(block_id.hex(), dataset, size_bytes, holes, len(ends))
    lengths = np.diff(ends, prepend=0).astype("<u4").tobytes()
    checksums = np.array(_checksums(block, ends.tolist()), dtype="<u4").tobytes()
    rest = about.ljust(_about_bytes(dataset) - 1).encode() + b"\n" + lengths + checksums
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
    """The header that these bytes begin with. Raises BadFile when it is cut short or not what was written."""
    length = header_bytes(header)
    end = header.find(b"\n", PREFIX_BYTES)
    try:
        about = json.loads(header[PREFIX_BYTES:end])
        count = about["chunks"]
        stop = end + 1 + _CHUNK_HEADER_BYTES * count
        if len(header) < stop:
            raise BadFile("its header is cut short")
        digest = xxhash.xxh3_64_intdigest(header[PREFIX_BYTES:stop])
        if (length, digest) != (_header_bytes(about["size_bytes"], about["dataset"]), _PREFIX.unpack_from(header)[3]):
            raise BadFile("its header is not the one that was written")
        lengths, checksums = np.frombuffer(header, dtype="<u4", count=2 * count, offset=end + 1).reshape(2, count)
        holes = tuple((start, stop) for start, stop in about["holes"])
        return Header(
            bytes.fromhex(about["block_id"]), about["dataset"], about["size_bytes"], holes, length, stop,
            lengths.cumsum(dtype=np.int64), checksums,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"its header is not the one that was written: {error}") from error


PREFIX_BYTES = _PREFIX.size


def _about(block_id: str, dataset: str, size_bytes: int, holes: tuple[Hole, ...], chunks: int) -> str:
    return json.dumps(
        {"block_id": block_id, "dataset": dataset, "size_bytes": size_bytes, "chunks": chunks, "holes": holes}
    )


def _about_bytes(dataset: str) -> int:
    """Room for the longest line about a block of this dataset: an id of 64 bytes, and HOLES_MAX holes."""
    return len(_about("", dataset, 0, (), 0)) + 128 + 40 + HOLES_MAX * _HOLE_CHARS + 1


def _header_bytes(size_bytes: int, dataset: str) -> int:
    used = PREFIX_BYTES + _about_bytes(dataset) + _CHUNK_HEADER_BYTES * (size_bytes // SMALL_BYTES + 1)
    return -(-used // PAGE_BYTES) * PAGE_BYTES


def _checksums(data: Buffer | bytearray, ends: list[int]) -> list[int]:
    view = memoryview(data)
    return [xxhash.xxh3_64_intdigest(view[start:end]) & _LOW for start, end in zip([0, *ends], ends, strict=False)]
