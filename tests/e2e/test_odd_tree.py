"""Everything odd that a bucket can hold, byte for byte, through every way in."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import odd_tree
import pytest

import raycache
from raycache.testing import ObjectStoreServer
from raycache.testing.pages import drop_pages

READERS = 4
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def tree(object_store: ObjectStoreServer) -> tuple[str, dict[str, str]]:
    """A bucket with the whole tree, and the sha256 of each path that should be shown."""
    object_store.create_bucket("oddtree")
    return "oddtree", odd_tree.upload(object_store, "oddtree", many=odd_tree.MANY, large_bytes=odd_tree.LARGE_BYTES)


def sha256_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(root: str, sums: dict[str, str], seed: int) -> list[str]:
    """Paths under ``root`` that cannot be read or have other bytes; runs in a process of its own."""
    order = list(sums)
    random.Random(seed).shuffle(order)
    found = []
    for path in order:
        try:
            if sha256_of(os.path.join(root, path)) != sums[path]:
                found.append(f"{path}: other bytes")
        except OSError as error:
            found.append(f"{path}: {error}")
    return found


def differences_to_readers(root: str, sums: dict[str, str]) -> list[str]:
    """The same, to several processes at once, of which each takes its share of the many, and two the large one."""
    shares = [
        {
            path: digest
            for at, (path, digest) in enumerate(sums.items())
            if (at % READERS == n or "many/" not in path) and (n < 2 or path != "large.bin")
        }
        for n in range(READERS)
    ]
    with ProcessPoolExecutor(READERS, mp_context=multiprocessing.get_context("forkserver")) as pool:
        found = pool.map(differences, [root] * READERS, shares, range(READERS))
        return [difference for some in found for difference in some]


def test_every_file_is_identical_through_mount_fsspec_and_read_many(
    tree: tuple[str, dict[str, str]], s3_env: ObjectStoreServer, cache: Any, mountpoint: Path
) -> None:
    bucket, sums = tree
    with raycache.mount(f"s3://{bucket}", mountpoint):
        shown = {
            os.path.relpath(os.path.join(base, name), mountpoint)
            for base, _, names in os.walk(mountpoint)
            for name in names
        }
        assert shown == set(sums)
        assert sorted(os.listdir(mountpoint / "empty-dir")) == []
        assert (mountpoint / "both").is_dir()
        assert differences_to_readers(str(mountpoint), sums) == []
        # Again, out of the cache; of the many a tenth, since read_many will see them all.
        drop_pages(mountpoint)
        again = {path: digest for at, (path, digest) in enumerate(sums.items()) if "many/" not in path or at % 10 == 0}
        assert differences_to_readers(str(mountpoint), again) == []

        uris = [f"s3://{bucket}/{path}" for path in sums if path != "large.bin"]
        for start in range(0, len(uris), 5000):
            some = uris[start : start + 5000]
            found = [hashlib.sha256(data).hexdigest() for data in raycache.read_many(some)]
            assert found == [sums[uri.removeprefix(f"s3://{bucket}/")] for uri in some]

        filesystem = raycache.filesystem()
        listed = set(filesystem.find(f"raycache://{bucket}"))
        assert listed == {f"{bucket}/{path}" for path in sums}
        few = [path for path in sums if not path.startswith("many/")] + [
            f"many/{n:06d}.txt" for n in range(0, 100_000, 97)
        ]
        for path in few:
            with filesystem.open(f"raycache://{bucket}/{path}") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == sums[path], path

        assert raycache.stat(f"s3://{bucket}").extra["hidden"] == 1
