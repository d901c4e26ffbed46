"""A source of any size that stores nothing: listings as stores give them, made up row by row from a seed.

For measuring metadata. Directories have 1,000 to 1,000,000 files, and their names follow the patterns that training
sets have. There are no bytes behind it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycache.core.listing import LISTING_SCHEMA
from raycache.core.values import Buffer, Stat
from raycache.errors import NotFound, SourceUnavailable
from raycache.ufs.base import Unwritable

DIRECTORY_FILES = (1_000, 10_000, 1_000_000, 100_000)
"""Sizes of directories, in turn."""
PATTERNS = ("numbered", "imagenet", "hashed", "long")
"""Kinds of names, in turn."""
_FIRST_NS = 1_700_000_000 * 10**9
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


class SyntheticUfs(Unwritable):
    """An UnderFileSystem of ``files`` files, in directories ``d00000``, ``d00001`` ...; the last one is filled up."""

    def __init__(self, uri: str, files: int, seed: int = 0) -> None:
        self.uri = uri
        self._seed = seed
        self._sizes: list[int] = []
        while files > 0:
            self._sizes.append(min(files, DIRECTORY_FILES[len(self._sizes) % len(DIRECTORY_FILES)]))
            files -= self._sizes[-1]

    def list_directory(self, path: str) -> pa.RecordBatch:
        """See UnderFileSystem."""
        if path:
            return self._files(self._number(path), b"")
        names = [f"d{number:05d}".encode() for number in range(len(self._sizes))]
        rows = [{"name": name, "is_dir": True, "size_bytes": 0, "mtime_ns": 0, "etag": b""} for name in names]
        return pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA)

    def list_tree(self, path: str, threads: int = 1) -> Generator[pa.RecordBatch, None, None]:
        """See UnderFileSystem."""
        if path:
            yield self._files(self._number(path), b"")
            return
        for number in range(len(self._sizes)):
            yield self._files(number, f"d{number:05d}/".encode())

    def stat(self, path: str) -> Stat:
        """See UnderFileSystem. Only directories can be asked for."""
        if path:
            self._number(path)
        return Stat(path, True, 0, 0)

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """There is nothing to read."""
        raise SourceUnavailable(f"{self.uri}/{path}: a synthetic source has names and no bytes")

    def _number(self, path: str) -> int:
        number = int(path[1:]) if path[1:].isdigit() else -1
        if not 0 <= number < len(self._sizes) or path != f"d{number:05d}":
            raise NotFound(f"{self.uri}/{path}: no such directory")
        return number

    def _files(self, number: int, prefix: bytes) -> pa.RecordBatch:
        count, random = self._sizes[number], np.random.default_rng((self._seed, number))
        # Each kind of name meets each size of directory.
        pattern = PATTERNS[(number + number // len(DIRECTORY_FILES)) % len(PATTERNS)]
        names = _joined_text(count, [prefix, *_NAMES[pattern](count, random)])
        etags = _joined_text(count, [b'"', _hex(random.integers(0, 256, (count, 16), np.uint8)), b'"'])
        sizes = random.normal(200_000, 60_000, count).clip(1).astype(np.uint64)
        # Uploaded in the order of their names, some 200 a second, stamped in whole seconds as S3 does.
        mtimes_ns = _FIRST_NS + np.arange(count, dtype=np.int64) // 200 * 10**9
        columns = [names, pa.array(np.zeros(count, bool)), pa.array(sizes), pa.array(mtimes_ns), etags]
        return pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)


def _numbered(count: int, random: np.random.Generator) -> list[Any]:
    return [b"img_", _digits(np.arange(count), 7), b".jpg"]


def _imagenet(count: int, random: np.random.Generator) -> list[Any]:
    return [b"n01440764_", _digits(np.arange(count), 7), b".JPEG"]


def _hashed(count: int, random: np.random.Generator) -> list[Any]:
    heads = np.sort(random.integers(0, 2**63, count, np.uint64)).astype(">u8")
    tails = random.integers(0, 256, (count, 8), np.uint8)
    return [_hex(np.concatenate([heads.view(np.uint8).reshape(count, 8), tails], axis=1)), b".jpg"]


def _long(count: int, random: np.random.Generator) -> list[Any]:
    rows = np.arange(count)
    return [b"speaker_", _digits(rows // 300, 5), b"_session_01_segment_", _digits(rows % 300, 4), b"_16khz_mono.flac"]


_NAMES = {"numbered": _numbered, "imagenet": _imagenet, "hashed": _hashed, "long": _long}


def _digits(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    powers = 10 ** np.arange(width - 1, -1, -1)
    return (values[:, None] // powers % 10 + ord("0")).astype(np.uint8)


def _hex(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    text = np.empty((len(values), 2 * values.shape[1]), np.uint8)
    text[:, ::2], text[:, 1::2] = _HEX[values >> 4], _HEX[values & 15]
    return text


def _joined_text(count: int, parts: list[Any]) -> pa.BinaryArray:
    """One text per row from parts that are the same for all rows (bytes) or of one width (a matrix)."""
    columns = [
        np.broadcast_to(np.frombuffer(part, np.uint8), (count, len(part))) if isinstance(part, bytes) else part
        for part in parts
    ]
    text = np.concatenate(columns, axis=1)
    offsets = np.arange(count + 1, dtype=np.int64) * text.shape[1]
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.binary(), count, buffers)
