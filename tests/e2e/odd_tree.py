"""A tree with all that is odd, as keys and bodies for an S3 bucket."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import obstore
from obstore.store import S3Store

from raycache.testing import ObjectStoreServer

MANY = 100_000
LARGE_BYTES = 2_200_000_000  # past 2^31, where 32-bit offsets would show
_CHUNK = random.Random(7).randbytes(1 << 20)

SMALL: dict[str, bytes] = {
    "empty": b"",
    "one-byte": b"x",
    "with space.txt": b"space",
    " leading and trailing ": b"blanks",
    ".hidden": b"dot",
    "...": b"three dots",
    "new\nline": b"newline",
    "tab\tand\rreturn": b"control",
    "ünïcode-名前-🎧.wav": "ünï".encode(),
    "e\u0301 decomposed": b"two code points",
    "percent%20%2F": b"percent",
    "query?a=b&c#frag": b"query",
    "star*[x]{y}": b"glob",
    "quotes'\"`$(x)": b"quotes",
    "plus+and,comma;=@": b"punctuation",
    "x" * 255: b"longest name",
    "exactly-a-page": bytes(range(256)) * 16,
    "300KiB": random.Random(1).randbytes(300 * 1024),
    "deep/" + "/".join(f"d{n}" for n in range(40)) + "/bottom": b"deep",
    "new\nline dir/inside\nit": b"nested newline",
    "both": b"shadowed by the directory of the same name",
    "both/inside": b"shown",
    "one-file-dir/only": b"only",
    **{f"mixed/{n:03d}": random.Random(n).randbytes((n * 7919) % 200_000) for n in range(200)},
}
MARKERS = ("empty-dir/", "marker-with-content/")
SHADOWED = {"both"}


def upload(server: ObjectStoreServer, bucket: str, *, many: int, large_bytes: int) -> dict[str, str]:
    """Put the tree; returns sha256 by path for everything a file system can show."""
    client = server.client()
    for key, body in SMALL.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)
    for key in MARKERS:
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    client.put_object(Bucket=bucket, Key="marker-with-content/file", Body=b"in a marked directory")
    sums = {key: hashlib.sha256(body).hexdigest() for key, body in SMALL.items() if key not in SHADOWED}
    sums["marker-with-content/file"] = hashlib.sha256(b"in a marked directory").hexdigest()
    store = server.bucket_store(bucket)
    sums |= _put_many(store, many)
    if large_bytes:
        digest = hashlib.sha256()
        for chunk in large_chunks(large_bytes):
            digest.update(chunk)
        obstore.put(store, "large.bin", large_chunks(large_bytes), chunk_size=16 << 20, max_concurrency=4)
        sums["large.bin"] = digest.hexdigest()
    return sums


def _put_many(store: S3Store, many: int) -> dict[str, str]:
    bodies = {f"many/{n:06d}.txt": f"file number {n}".encode() for n in range(many)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: obstore.put(store, item[0], item[1], use_multipart=False), bodies.items()))
    return {key: hashlib.sha256(body).hexdigest() for key, body in bodies.items()}


def large_chunks(size_bytes: int) -> Iterator[bytes]:
    """Bytes in which every MiB differs from every other."""
    for start in range(0, size_bytes, len(_CHUNK)):
        number = start.to_bytes(8, "little")
        yield (number + _CHUNK[8:])[: size_bytes - start]
