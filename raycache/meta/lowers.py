"""What sources list, as the lower layer of the tree: decoded manifests that are at hand while a transaction is open.

A transaction does nothing slow, so that no listing is fetched or decoded in it: a verb that finds that it needs one
raises Missing, is undone, and is done again when it is there (see ``tree``).

Threading: safe. A Lower is immutable but for its order, which may be computed twice with the same result.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycache.core.inode import LISTED_FILE, MOUNT_OWNER, Attr, parse_content_etag, row_ino
from raycache.core.listing import is_ascending
from raycache.core.manifest import Manifest
from raycache.core.values import MANIFESTS_AT_ONCE, Failed
from raycache.errors import Refused

COUNT_MAX, BYTES_MAX = 256, 48 * 2**20
"""Most listings kept decoded, and their bytes: the master has other things to remember."""
CALL_BYTES_MAX = 512 * 2**20
"""Most bytes of decoded listings that one call may need at the same time."""
_ROW_BYTES = 80
"""Of a decoded row, with its share of the index, about."""


class Missing(Exception):
    """A verb needs listings of directories that are not at hand. Caught by ``tree``, seen by nobody else."""

    def __init__(self, *dir_ids: int, in_order: bool = False) -> None:
        super().__init__(dir_ids, in_order)
        self.dir_ids = dir_ids
        self.in_order = in_order


class Lower:
    """What the source lists in one directory: the rows of a manifest that are not made of what was written."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.version = manifest.directory.version
        """Of the manifest."""
        self._dir_id = manifest.directory.dir_id
        self._order: NDArray[np.uint32] | None = None
        self._names: pa.BinaryArray | None = None

    def find(self, name: bytes) -> int | None:
        """Row of a name that the source has."""
        row = self._manifest.find(name)
        return row if row is not None and self._is_of_source(row) else None

    def knows(self, name: bytes) -> bool:
        """Whether the source has, or once had, the name: it may list it again."""
        manifest = self._manifest
        return any(
            row < manifest.row_count and manifest.name(row) == name and self._is_of_source(row)
            for row in manifest.index.candidates(name)
        )

    def has(self, row: int) -> bool:
        """Whether there is such a row, and the source still has it."""
        return row < self._manifest.row_count and not self._manifest.is_dead(row) and self._is_of_source(row)

    def name(self, row: int) -> bytes:
        """Name of a row."""
        return self._manifest.name(row)

    def etag(self, row: int) -> str:
        """The version that the source gave it."""
        return self._manifest.etag(row)

    def size(self, row: int) -> int:
        """Bytes of a row."""
        return self._manifest.size(row)

    def mtime_ns(self, row: int) -> int:
        """When the source says that it was written."""
        return self._manifest.mtime_ns(row)

    def child_id(self, row: int) -> int | None:
        """Directory id of a row that is a directory."""
        return self._manifest.child_id(row)

    def attr(self, row: int) -> Attr:
        """What a listed file shows."""
        ns, owner = self.mtime_ns(row), (MOUNT_OWNER, MOUNT_OWNER)
        return Attr(row_ino(self._dir_id, row), LISTED_FILE, 1, *owner, self.size(row), ns, ns, ns)

    def directories(self) -> Iterator[tuple[int, int]]:
        """Rows that are directories, with their ids."""
        columns = self._manifest.columns
        for row, dir_id in zip(columns.dir_rows.tolist(), columns.dir_ids.tolist(), strict=True):
            if not self._manifest.is_dead(row):
                yield row, dir_id

    def rows(self) -> Iterator[int]:
        """All rows that the source still has, in no order."""
        return (row for row in self._manifest.rows() if self._is_of_source(row))

    @property
    def count(self) -> int:
        """Entries, what was written included."""
        return self._manifest.live_count

    @property
    def size_bytes(self) -> int:
        """What it takes of memory, about."""
        ordered_bytes = 0 if self._names is None or self._order is None else self._names.nbytes + self._order.nbytes
        return self._manifest.row_count * _ROW_BYTES + ordered_bytes

    def put_in_order(self) -> None:
        """Have the rows in the order of their names: takes its time, and is done outside of transactions."""
        if self._order is None:
            live = self._manifest.live_rows(0, self._manifest.row_count)
            names = self._manifest.column("names").take(pa.array(live))
            if not is_ascending(names):
                by_name = pc.sort_indices(names)
                names, live = names.take(by_name), live[by_name.to_numpy()]
            self._names, self._order = names, live

    def after(self, name: bytes) -> Iterator[tuple[bytes, int]]:
        """Names greater than one, in order, with their rows. Raises Missing where there is no order yet."""
        if self._order is None or self._names is None:
            raise Missing(self._dir_id, in_order=True)
        names, order = self._names, self._order
        for at in range(bisect_right(_Texts(names), name), len(order)):
            row = int(order[at])
            if self._is_of_source(row):
                yield names[at].as_py(), row

    def _is_of_source(self, row: int) -> bool:
        return parse_content_etag(self._manifest.etag(row)) is None


class _Texts(Sequence[bytes]):
    """An Arrow column as something to bisect."""

    def __init__(self, column: pa.BinaryArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, at: int) -> bytes:  # type: ignore[override]
        return self._column[at].as_py()  # type: ignore[no-any-return]


class Lowers:
    """The listings that were needed last, within bounds."""

    def __init__(self, load: Callable[[Sequence[int]], Sequence[Manifest | Failed]]) -> None:
        """``load``: decoded manifests of at most MANIFESTS_AT_ONCE directories, which are listed if they never were."""
        self._load = load
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Lower] = OrderedDict()

    def find(self, dir_id: int) -> Lower | None:
        """What is kept of a directory, of whatever version."""
        with self._lock:
            found = self._kept.get(dir_id)
            if found is not None:
                self._kept.move_to_end(dir_id)
        return found

    def load(self, missing: Mapping[int, bool], held: Mapping[int, Lower | Failed]) -> dict[int, Lower | Failed]:
        """``held``, and the newest listings of more directories. Raises Refused when they are too many at once.

        ``missing``: directory ids, and whether their rows are needed in the order of their names.
        """
        found = dict(held)
        wanted = sorted(missing)
        for start in range(0, len(wanted), MANIFESTS_AT_ONCE):
            some = wanted[start : start + MANIFESTS_AT_ONCE]
            for dir_id, manifest in zip(some, self._load(some), strict=True):
                if isinstance(manifest, Failed):
                    found[dir_id] = manifest
                    continue
                kept = self.find(dir_id)
                found[dir_id] = lower = (
                    kept if kept is not None and kept.version == manifest.directory.version else Lower(manifest)
                )
                if missing[dir_id]:
                    lower.put_in_order()
                self._keep(dir_id, lower)
            if sum(each.size_bytes for each in found.values() if isinstance(each, Lower)) > CALL_BYTES_MAX:
                raise Refused.because(
                    errno.E2BIG, "this needs more large directories at once than the master can hold; do it in parts"
                )
        return found

    def _keep(self, dir_id: int, lower: Lower) -> None:
        with self._lock:
            self._kept.pop(dir_id, None)
            self._kept[dir_id] = lower
            total = sum(each.size_bytes for each in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > COUNT_MAX or total > BYTES_MAX):
                _, gone = self._kept.popitem(last=False)
                total -= gone.size_bytes
