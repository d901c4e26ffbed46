"""Results of a transformation, kept in the cache: each pack is computed once, by the task that meets it first.

What is made of a pack is one Arrow file, in a directory named by the *fingerprint* of the transformation, under a name
made of the paths, sizes and versions of the pack's files. So nothing has to be told that something changed: changed
files, and changed code, ask for results of another name. A task hands on what it computes while it writes it; results
are seen whole or not at all, and two tasks that compute the same one write the same.

Ray Data has asked for this in its issues 36132 (keep what was read of S3) and 45042 (keep what was computed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import pyarrow as pa
from ray.data import Dataset
from ray.data.block import BlockAccessor

from raycache.actors.cluster import Cluster, current
from raycache.actors.connection import current_for
from raycache.client.filesystem import FileSystem
from raycache.core import paths
from raycache.core.entries import Rows, names_of
from raycache.core.fingerprint import fingerprint
from raycache.core.manifest import Manifest
from raycache.data.packs import PackRead
from raycache.data.routes import Files
from raycache.data.sources import read_packs
from raycache.errors import InvalidInput, NotFound

FORMATS = ("numpy", "pandas", "pyarrow")
_VERSION = "1"
"""Of what is written: another one computes everything anew."""
Transform = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class CachedRead(PackRead):
    """A read task that computes what is not there yet."""

    transform: Transform
    batch_format: str
    key: str
    place: str
    """URI of the directory of results."""
    write_type: str

    def row_count(self, files: int) -> int | None:
        """See PackRead."""
        return None

    def schema(self) -> pa.Schema | None:
        """See PackRead."""
        return None

    def __call__(self) -> Iterator[pa.Table]:
        """Tables of results, a pack after the other. Raises what reading, writing and the transformation raise."""
        cluster = current_for(self.wanted.settings)
        for manifest, packs in self.packs():
            uris = [f"{self.place}/{self._name(manifest, rows)}" for _, rows in packs]
            kept = cluster.files.exists_many(uris)
            todo = [block for (block, _), is_kept in zip(packs, kept, strict=True) if not is_kept]
            for (block, rows), uri, is_kept in zip(packs, uris, kept, strict=True):
                if is_kept and (tables := _read(cluster.files, uri)) is not None:
                    yield from tables
                    continue
                self.expect(cluster, manifest, todo, block)
                yield from self._made(cluster, manifest, rows, uri)

    def _name(self, manifest: Manifest, rows: Rows) -> str:
        """Of what is made of these files, as they are."""
        digest = blake2b(digest_size=16)
        digest.update(self.below(manifest).encode("utf-8", "surrogateescape"))
        for row, name in zip(rows.tolist(), names_of(manifest, rows), strict=True):
            version = manifest.etag(row) or manifest.mtime_ns(row)
            digest.update(f"\0{name}\0{manifest.size(row)}\0{version}".encode("utf-8", "surrogateescape"))
        return f"{digest.hexdigest()}.arrow"

    def _made(self, cluster: Cluster, manifest: Manifest, rows: Rows, uri: str) -> Iterator[pa.Table]:
        call = _called(self.key, self.transform) if isinstance(self.transform, type) else self.transform
        writer, schema = None, None
        with cluster.files.open(uri, "wb", write_type=self.write_type) as file:
            for table in self.tables(cluster, manifest, rows):
                made = _as_table(call(BlockAccessor.for_block(table).to_batch_format(self.batch_format)))
                if writer is None:
                    writer, schema = pa.ipc.new_file(file, made.schema), made.schema
                elif made.schema != schema:
                    raise InvalidInput(
                        f"the transformation gave {schema}, then {made.schema}; give the same for all files"
                    )
                writer.write_table(made)
                yield made
            if writer is not None:
                writer.close()


def read_cached(
    uri: str,
    transform: Transform,
    to: str,
    *,
    key: str | None,
    pattern: str,
    include_paths: bool,
    batch_format: str,
    write_type: str,
    options: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
) -> Dataset:
    """See ``raycache.data.cached``."""
    if batch_format not in FORMATS:
        raise InvalidInput(f"batch_format={batch_format!r}: choose one of {', '.join(FORMATS)}")
    if not callable(transform):
        raise InvalidInput(f"{transform!r} cannot be called: give a function of a batch, or a class of such objects")
    cluster = current()
    found = fingerprint(transform if key is None else key, _VERSION, include_paths, batch_format)
    place = f"{to.rstrip('/')}/{found}"
    into, path = cluster.files.locate(to)
    cluster.files.mkdir(place, parents=True, exist_ok=True)
    files = Files.select(uri, pattern, options, without=paths.join(into.name, path))
    read = CachedRead(
        files.wanted, (), include_paths, transform=transform, batch_format=batch_format, key=found, place=place,
        write_type=write_type,
    )  # fmt: skip
    return read_packs(files, read, arguments)


@lru_cache(maxsize=4)
def _instances(key: str) -> list[Any]:
    return []


def _called(key: str, kind: type) -> Transform:
    """An object of a class, one in each process: making it may take long."""
    made = _instances(key)
    if not made:
        made.append(kind())
    return made[0]  # type: ignore[no-any-return]


def _as_table(batch: Any) -> pa.Table:
    return BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()


def _read(files: FileSystem, uri: str) -> list[pa.Table] | None:
    """What was kept, without a copy; None where it is gone since it was looked for."""
    try:
        (data,) = files.read_many([uri])
    except NotFound:
        return None
    kept = pa.ipc.open_file(pa.py_buffer(data))
    return [pa.Table.from_batches([kept.get_batch(number)]) for number in range(kept.num_record_batches)]
