"""Listings of directories for the kernel, packed from columns: thousands of entries without a Python object for any.

Responsible for: the records of READDIR and READDIRPLUS, of which ``wire`` has the layout. Not responsible for: ``.``
and ``..``, which are no rows.

Threading: pure functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raycache.fuse import wire
from raycache.fuse.vfs import Entries

KNOWN_AT_ONCE = 250_000
"""Entries of a directory that its listing makes known to the kernel, at 1 KB of kernel memory and some 4 us each. That
pays when one in five is opened or looked at afterwards, as is usual; of a larger directory it would push out pages."""
_WORD = 8
_SECOND_NS = np.int64(10**9)
_DIRENT = np.dtype([("ino", "=u8"), ("off", "=u8"), ("namelen", "=u4"), ("type", "=u4")])
_TIMES = ("atime", "mtime", "ctime")
_DIRENTPLUS = np.dtype(
    [
        ("nodeid", "=u8"), ("generation", "=u8"), ("entry_valid", "=u8"), ("attr_valid", "=u8"),
        ("entry_valid_nsec", "=u4"), ("attr_valid_nsec", "=u4"),
        ("attr_ino", "=u8"), ("size", "=u8"), ("blocks", "=u8"),
        *((name, "=i8") for name in _TIMES), *((f"{name}_nsec", "=u4") for name in _TIMES),
        ("mode", "=u4"), ("nlink", "=u4"), ("uid", "=u4"), ("gid", "=u4"), ("rdev", "=u4"), ("blksize", "=u4"),
        ("flags", "=u4"),
        *_DIRENT.descr,
    ]
)  # fmt: skip
assert (_DIRENT.itemsize, _DIRENTPLUS.itemsize) == (wire.DIRENT_BYTES, wire.DIRENTPLUS_BYTES)


def pack_plain(entries: Entries, size: int) -> bytes:
    """READDIR: as many of the entries as fit into ``size`` bytes."""
    fits = _fitting(entries, _DIRENT.itemsize, size)
    records = np.zeros(fits, _DIRENT)
    _fill(records, entries)
    return _spread(records, entries)


def pack_plus(entries: Entries, size: int, owner: tuple[int, int]) -> bytes:
    """READDIRPLUS: the same with attributes, each a LOOKUP that need not be asked. ``owner``: uid and gid to show.

    Of a directory larger than KNOWN_AT_ONCE only names and kinds are told (a node of 0 says so).
    """
    fits = _fitting(entries, _DIRENTPLUS.itemsize, size)
    records = np.zeros(fits, _DIRENTPLUS)
    _fill(records, entries)
    is_dir = entries.is_dir[:fits]
    records["attr_ino"] = entries.ino[:fits]
    if entries.directory_rows <= KNOWN_AT_ONCE:
        records["nodeid"] = entries.ino[:fits]
    records["entry_valid"] = records["attr_valid"] = wire.LIFETIME_S
    records["size"] = entries.size[:fits]
    records["blocks"] = (entries.size[:fits] + np.uint64(511)) // np.uint64(512)
    seconds, nsec = np.divmod(entries.mtime_ns[:fits], _SECOND_NS)
    for name in _TIMES:
        records[name], records[f"{name}_nsec"] = seconds, nsec
    records["mode"] = np.where(is_dir, wire.DIRECTORY_MODE, wire.FILE_MODE)
    records["nlink"] = np.where(is_dir, 2, 1)
    records["uid"], records["gid"] = owner
    records["blksize"] = wire.PAGE_BYTES
    return _spread(records, entries)


def _fitting(entries: Entries, head_bytes: int, size: int) -> int:
    return int(np.searchsorted(np.cumsum(_lengths(entries.name_length, head_bytes)), size, side="right"))


def _lengths(name_length: NDArray[np.int64], head_bytes: int) -> NDArray[np.int64]:
    """Bytes of whole records: head, name, and zeros up to a multiple of 8."""
    return head_bytes + (name_length + (_WORD - 1)) // _WORD * _WORD


def _fill(records: NDArray[np.void], entries: Entries) -> None:
    fits = len(records)
    records["ino"] = entries.ino[:fits]
    records["off"] = entries.next_offset[:fits] + np.uint64(wire.DOTS)
    records["namelen"] = entries.name_length[:fits]
    records["type"] = np.where(entries.is_dir[:fits], wire.DIRECTORY_TYPE, wire.FILE_TYPE)


def _spread(records: NDArray[np.void], entries: Entries) -> bytes:
    """Heads and names in turn. Everything is moved at once: heads word by word, names byte by byte."""
    head_bytes, name_length = records.itemsize, entries.name_length[: len(records)]
    ends = np.cumsum(_lengths(name_length, head_bytes))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(records)]
    words = np.zeros(int(ends[-1]) // _WORD if len(ends) else 0, np.uint64)
    words[starts[:, None] // _WORD + np.arange(head_bytes // _WORD)] = records.view(np.uint64).reshape(
        len(records), head_bytes // _WORD
    )
    into = words.view(np.uint8)
    before = np.cumsum(name_length) - name_length
    steps = np.arange(int(name_length.sum()))
    into[np.repeat(starts + head_bytes - before, name_length) + steps] = entries.names[
        np.repeat(entries.name_at[: len(records)] - before, name_length) + steps
    ]
    return into.tobytes()
