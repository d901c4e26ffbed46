"""How a manifest stores its columns: small, and each value still found without its neighbours.

Names keep what all of them begin and end with only once. Versions that are MD5s take 16 bytes, without offsets. Times
of whole seconds, or near each other, take 4 bytes. The index from a name to its row takes about 6 bytes per row.

Each class packs a plain column (``of``), gives the arrays to store (``stored``), and is made again from those and the
few values beside them (``about``). Immutable, so safe for threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

DIGEST_BYTES = 16
BUCKET_ROWS = 4
"""Rows per bucket of the index, on average."""
_LONGEST = 65_536
"""Beyond any name. Arrow's binary_slice fails on an open end (measured with 26.0)."""
UNITS_NS = (10**9, 10**6, 1)
_STEP = 16_384
"""Rows that are worked on at one time, so that what is made of them stays in the processor's cache, and names are
Python objects for no longer than that."""

_HEX_VALUES = np.full(256, 255, np.uint8)
_HEX_VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

Stored = dict[str, Any]
"""Arrow arrays by column name."""
About = dict[str, bytes]
"""Values beside the columns, as Arrow keeps them with a schema."""


class Names:
    """Names of rows. The middles lie in one buffer; what all names begin and end with stands beside it."""

    def __init__(self, middles: pa.BinaryArray, prefix: bytes, suffix: bytes) -> None:
        self._middles = middles
        self._prefix, self._suffix = prefix, suffix
        self._at, self._bytes = binary_views(middles)

    @staticmethod
    def of(names: pa.BinaryArray) -> Names:
        """Pack a plain column."""
        if not len(names):
            return Names(names, b"", b"")
        least, most = (each.as_py() for each in pc.min_max(names).values())
        shorter = min(len(least), len(most))
        differs = next((at for at in range(shorter) if least[at] != most[at]), shorter)
        prefix = least[:differs]
        dot = least.rfind(b".")
        suffix = least[dot:] if dot >= 0 else b""
        if not pc.all(pc.ends_with(names, pattern=suffix)).as_py():
            suffix = b""
        # In the shortest name they must not overlap.
        prefix = prefix[: pc.min(pc.binary_length(names)).as_py() - len(suffix)]
        if not prefix and not suffix:
            return Names(names, b"", b"")
        return Names(pc.binary_slice(names, len(prefix), -len(suffix) or _LONGEST), prefix, suffix)

    def stored(self) -> Stored:
        """See the module."""
        return {"names": self._middles}

    def about(self) -> About:
        """See the module."""
        return {"prefix": self._prefix, "suffix": self._suffix}

    def __len__(self) -> int:
        return len(self._at) - 1

    def __getitem__(self, row: int) -> bytes:
        return self._prefix + bytes(self._bytes[self._at[row] : self._at[row + 1]]) + self._suffix

    def slice(self, start: int, stop: int) -> pa.BinaryArray:
        """Whole names of consecutive rows."""
        return self._whole(self._middles.slice(start, stop - start))

    def take(self, rows: NDArray[np.integer]) -> pa.BinaryArray:
        """Whole names of some rows."""
        return self._whole(self._middles.take(pa.array(rows)))

    def _whole(self, middles: pa.BinaryArray) -> pa.BinaryArray:
        if not self._prefix and not self._suffix:
            return middles
        return pc.binary_join_element_wise(pa.scalar(self._prefix), middles, pa.scalar(self._suffix), b"")

    def match(self, rows: NDArray[np.int64], wanted: Wanted, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row has just the name that ``which`` picks of those wanted."""
        at = np.asarray(self._at)
        begins, lengths = at[rows].astype(np.int64), wanted.lengths[which] - len(self._prefix) - len(self._suffix)
        # A name without our prefix and suffix has no place here, whatever is between.
        same: NDArray[np.bool_] = (at[rows + 1] - begins == lengths) & self._fits(wanted, which)
        lengths = np.where(same, lengths, 0)
        ours = np.frombuffer(self._bytes, np.uint8)[_runs(begins, lengths)]
        theirs = wanted.bytes[_runs(wanted.begins[which] + len(self._prefix), lengths)]
        wrong = np.flatnonzero(ours != theirs)
        same[np.searchsorted(np.cumsum(lengths), wrong, side="right")] = False
        return same

    def _fits(self, wanted: Wanted, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether wanted names begin and end as all names here do."""
        begins, lengths = wanted.begins[which], wanted.lengths[which]
        fits: NDArray[np.bool_] = lengths >= len(self._prefix) + len(self._suffix)
        for part, start in ((self._prefix, begins), (self._suffix, begins + lengths - len(self._suffix))):
            rows = np.flatnonzero(fits)
            columns = start[rows, None] + np.arange(len(part))
            fits[rows] = (wanted.bytes[columns] == np.frombuffer(part, np.uint8)).all(axis=1)
        return fits


class Wanted:
    """Names that are looked for together, in one buffer."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self.lengths = np.fromiter(map(len, names), np.int64, len(names))
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.bytes = np.frombuffer(b"".join(names), np.uint8)
        self.hashes = hash_names(names)


class Etags:
    """Versions of rows in the under file system, packed as ``pack_etags`` does; all MD5s or of any kind."""

    def __init__(self, packed: Any) -> None:
        self._packed = packed
        self._is_digests = pa.types.is_fixed_size_binary(packed.type)
        if self._is_digests:
            data = packed.buffers()[1]
            self._bytes = memoryview(b"" if data is None else data)
            self._first = packed.offset
        else:
            self._at, self._bytes = binary_views(packed)

    @staticmethod
    def of(packed: pa.BinaryArray) -> Etags:
        """Choose how to store a column that ``pack_etags`` packed."""
        at, data = binary_views(packed)
        lengths = np.diff(np.asarray(at))
        if not len(lengths) or not (lengths == DIGEST_BYTES).all():
            return Etags(packed)
        digests = pa.py_buffer(data[at[0] : at[-1]])
        return Etags(pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), len(packed), [None, digests]))

    def stored(self) -> Stored:
        """See the module. Which of the two columns has the rows says how they are stored."""
        nothing, no_digest = pa.array([], pa.binary()), pa.array([], pa.binary(DIGEST_BYTES))
        if self._is_digests:
            return {"etags": nothing, "digests": self._packed}
        return {"etags": self._packed, "digests": no_digest}

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, row: int) -> str:
        if self._is_digests:
            at = (self._first + row) * DIGEST_BYTES
            return f'"{self._bytes[at : at + DIGEST_BYTES].hex()}"'
        packed = bytes(self._bytes[self._at[row] : self._at[row + 1]])
        return f'"{packed.hex()}"' if len(packed) == DIGEST_BYTES else packed.removeprefix(b"\0").decode()

    def begin_with(self, text: bytes) -> NDArray[np.bool_]:
        """Which rows have a version that begins with a text, other than a digest."""
        if self._is_digests:
            return np.zeros(len(self), bool)
        found: NDArray[np.bool_] = pc.or_(
            pc.starts_with(self._packed, text), pc.starts_with(self._packed, b"\0" + text)
        ).to_numpy(zero_copy_only=False)
        return found

    def slice(self, start: int, stop: int) -> pa.BinaryArray:
        """Packed versions of consecutive rows."""
        rows = self._packed.slice(start, stop - start)
        return rows.cast(pa.binary()) if self._is_digests else rows


class Times:
    """Modification times: ``base_ns + unit_ns * stored``."""

    def __init__(self, stored: Any, base_ns: int, unit_ns: int) -> None:
        self._stored = stored
        self._view = numbers(stored).data
        self._base_ns, self._unit_ns = base_ns, unit_ns

    @staticmethod
    def of(mtimes_ns: Any) -> Times:
        """Pack a plain column: int64, nanoseconds since 1970."""
        values = numbers(mtimes_ns)
        if len(values):
            base_ns, most_ns = int(values.min()), int(values.max())
            unit_ns = next(unit for unit in UNITS_NS if unit == 1 or not ((values - base_ns) % unit).any())
            if (most_ns - base_ns) // unit_ns < 2**32:
                return Times(pa.array(((values - base_ns) // unit_ns).astype(np.uint32)), base_ns, unit_ns)
        return Times(mtimes_ns, 0, 1)

    def stored(self) -> Stored:
        """See the module. Which of the two columns has the rows says how they are stored."""
        if self._stored.type == pa.uint32():
            return {"mtimes_ns": pa.array([], pa.int64()), "mtimes": self._stored}
        return {"mtimes_ns": self._stored, "mtimes": pa.array([], pa.uint32())}

    def about(self) -> About:
        """See the module."""
        return {"mtime_base_ns": str(self._base_ns).encode(), "mtime_unit_ns": str(self._unit_ns).encode()}

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, row: int) -> int:
        return self._base_ns + self._unit_ns * self._view[row]

    def slice(self, start: int, stop: int) -> NDArray[np.int64]:
        """Nanoseconds of consecutive rows."""
        return self._base_ns + self._unit_ns * np.asarray(self._view[start:stop]).astype(np.int64)

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Nanoseconds of some rows."""
        found: NDArray[np.int64] = self._base_ns + self._unit_ns * np.asarray(self._view)[rows].astype(np.int64)
        return found


class Index:
    """From a name's hash to the rows that may have it.

    Rows are in buckets by the upper half of their hash, ``starts`` says where in ``slots`` each bucket begins, and
    ``prints`` has one byte of the lower half for each slot, so that a row that is not meant is seldom looked at.
    """

    def __init__(self, slots: Any, prints: Any, starts: Any) -> None:
        self._arrays = {"slots": slots, "prints": prints, "starts": starts}
        self._slots, self._prints, self._starts = (numbers(each).data for each in (slots, prints, starts))
        self._buckets = len(starts) - 1

    @staticmethod
    def of(names: Names) -> Index:
        """Index all rows."""
        hashes = np.empty(len(names), dtype=np.uint64)
        for start in range(0, len(names), _STEP):
            chunk = names.slice(start, min(len(names), start + _STEP)).to_pylist()
            hashes[start : start + len(chunk)] = hash_names(chunk)
        count = max(1, len(names) // BUCKET_ROWS)
        buckets = _buckets_of(hashes, count)
        # Sorted as one number, which is several times faster than an argsort: the bucket above, the row below.
        order = np.sort(buckets << np.uint64(32) | np.arange(len(hashes), dtype=np.uint64))
        slots = order.astype(np.uint32)
        starts = np.searchsorted(order >> np.uint64(32), np.arange(count + 1, dtype=np.uint64))
        prints = (hashes & np.uint64(0xFF)).astype(np.uint8)[slots]
        return Index(pa.array(slots), pa.array(prints), pa.array(starts.astype(np.uint32)))

    def stored(self) -> Stored:
        """See the module."""
        return self._arrays

    def __len__(self) -> int:
        return len(self._slots)

    def candidates(self, name: bytes) -> list[int]:
        """Rows whose hash agrees with a name's as far as it is kept: the one that has it, and seldom others. The newest
        first, as what is before it may be its tombstones."""
        wanted = name_hash(name)
        bucket = (wanted >> 32) * self._buckets >> 32
        start, stop = self._starts[bucket], self._starts[bucket + 1]
        prints, byte = bytes(self._prints[start:stop]), wanted & 0xFF
        found: list[int] = []
        at = prints.rfind(byte)
        while at >= 0:
            found.append(self._slots[start + at])
            at = prints.rfind(byte, 0, at)
        return found

    def first_match(self, names: Names, wanted: Wanted, is_dead: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Row of each wanted name, -1 where there is none. ``is_dead``: one flag per row, None when all live."""
        found = np.full(len(wanted.lengths), -1, np.int64)
        starts = np.asarray(self._starts)
        buckets = _buckets_of(wanted.hashes, self._buckets).astype(np.int64)
        begins = starts[buckets].astype(np.int64)
        lengths = starts[buckets + 1] - begins
        prints = (wanted.hashes & np.uint64(0xFF)).astype(np.uint8)
        # All slots of all buckets side by side, and no more than that at once: a name that was written over a
        # thousand times has a thousand tombstones in its bucket.
        parts = np.flatnonzero(np.diff(np.cumsum(lengths) // _STEP, prepend=0))
        for some in np.split(np.arange(len(found)), parts):
            slots, which = _runs(begins[some], lengths[some]), np.repeat(some, lengths[some])
            hits = np.flatnonzero(np.asarray(self._prints)[slots] == prints[which])
            rows = np.asarray(self._slots)[slots[hits]].astype(np.int64)
            if is_dead is not None:
                live = ~is_dead[rows]
                rows, hits = rows[live], hits[live]
            which = which[hits]
            right = names.match(rows, wanted, which)
            found[which[right]] = rows[right]
        return found


def _runs(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers that follow one another from each beginning, as many as it has, one run behind the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))


def name_hash(name: bytes) -> int:
    """64-bit hash under which a name is filed."""
    return xxhash.xxh3_64_intdigest(name)


def hash_names(names: Sequence[bytes]) -> NDArray[np.uint64]:
    """Hashes of names, uint64."""
    return np.fromiter(map(name_hash, names), np.uint64, len(names))


def _buckets_of(hashes: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    buckets: NDArray[np.uint64] = (hashes >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
    return buckets


def pack_etags(etags: pa.BinaryArray) -> pa.BinaryArray:
    """Halve the usual version name, an MD5 in quotes: 16 bytes of digest in place of 34 characters.

    A text that happens to be 16 bytes long, or to begin with a zero byte, gets a zero byte in front, so that length
    16 always means a digest and a leading zero is never part of a text.
    """
    etags = etags.fill_null(b"")
    is_md5, digests = _digests(etags)
    offsets = np.arange(0, digests.size + 1, DIGEST_BYTES, dtype=np.int32)
    packed = pa.Array.from_buffers(pa.binary(), len(digests), [None, pa.py_buffer(offsets), pa.py_buffer(digests)])
    if is_md5.all():
        return packed
    texts = etags.filter(pa.array(~is_md5)).to_pylist()
    escaped = pa.array([b"\0" + text if len(text) == 16 or text[:1] == b"\0" else text for text in texts], pa.binary())
    order = np.empty(len(etags), np.int64)
    order[np.concatenate([np.flatnonzero(is_md5), np.flatnonzero(~is_md5)])] = np.arange(len(etags))
    return pa.concat_arrays([packed, escaped]).take(pa.array(order))


def _digests(etags: pa.BinaryArray) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Which versions are MD5s, and those in binary: 16 columns, a row for each."""
    at, data = binary_views(etags)
    characters, begins = np.frombuffer(data, np.uint8), np.asarray(at)[:-1]
    is_md5: NDArray[np.bool_] = np.diff(np.asarray(at)) == 34
    rows = np.flatnonzero(is_md5)
    in_a_row = len(rows) == len(etags)  # then they are one matrix as they lie there
    whole = characters[at[0] : at[-1]].reshape(-1, 34) if in_a_row else characters
    digests = np.empty((len(rows), DIGEST_BYTES), np.uint8)
    for start in range(0, len(rows), _STEP):
        some = slice(start, start + _STEP)
        texts = whole[some] if in_a_row else whole[begins[rows[some], None].astype(np.int64) + np.arange(34)]
        values = _HEX_VALUES[texts[:, 1:33]]
        is_md5[rows[some]] = (values.max(axis=1) < 16) & (texts[:, 0] == ord('"')) & (texts[:, 33] == ord('"'))
        np.bitwise_or(values[:, ::2] << np.uint8(4), values[:, 1::2], out=digests[some])
    return is_md5, digests if is_md5[rows].all() else digests[is_md5[rows]]


def numbers(column: Any) -> NDArray[Any]:
    """A column of numbers, without a copy."""
    values: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return values


def binary_views(column: Any) -> tuple[memoryview, memoryview]:
    """Offsets (int32, length + 1) and bytes of a binary column."""
    _, offsets, data = column.buffers()
    if offsets is None or not len(column):
        return np.zeros(1, np.int32).data, memoryview(b"")
    at = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return at.data, memoryview(b"" if data is None else data)


def number_from(about: Mapping[str, bytes], name: str) -> int:
    """A number that stands beside the columns."""
    return int(about[name])
