"""The cache against a dictionary: files come, change and go in the source; listings are refreshed; workers vanish.

At any time a file of the last listing reads as exactly the bytes it was listed with, or fails as Changed because the
source has moved on - never as anything else.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raycache.errors import Changed, NotFound
from raycache.testing.inprocess import InProcessCache

NAMES = [f"{number:02d}" for number in range(8)] + ["new\nline", "ü"]
URI = "raycache://data"


class CacheMachine(RuleBasedStateMachine):
    """``source`` is what the directory holds, ``listed`` what it held at the last listing."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="raycache-model-"))
        self.source: dict[str, bytes] = {}
        self.listed: dict[str, bytes] = {}
        self.stamp = 1_000_000_000

    @initialize(quota=st.sampled_from([0, 30_000, 10_000_000]), block=st.sampled_from([5_000, 100_000]))
    def start(self, quota: int, block: int) -> None:
        self.put("00", 1000, 1)
        self.cache = InProcessCache(workers=2, quota_bytes=quota, block_bytes=block, view_bytes=20_000, fetchers=2)
        self.cache.files.attach(str(self.root), "data", {})
        self.listed = dict(self.source)

    def put(self, name: str, size: int, seed: int) -> None:
        body = random.Random(seed).randbytes(size)
        aside = self.root.parent / f"{self.root.name}.aside"
        aside.write_bytes(body)
        self.stamp += 1  # two writes within a clock tick must still be two versions
        os.utime(aside, ns=(self.stamp, self.stamp))
        os.replace(aside, self.root / name)
        self.source[name] = body

    @rule(name=st.sampled_from(NAMES), size=st.sampled_from([0, 1, 999, 12_345]), seed=st.integers(0, 1000))
    def write(self, name: str, size: int, seed: int) -> None:
        self.put(name, size, seed)

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        if name in self.source:
            (self.root / name).unlink()
            del self.source[name]

    @rule()
    def refresh(self) -> None:
        self.cache.files.refresh(URI)
        self.listed = dict(self.source)

    @rule(name=st.sampled_from(NAMES), offset=st.integers(0, 13_000), length=st.integers(0, 13_000))
    def read_part(self, name: str, offset: int, length: int) -> None:
        self.check(name, lambda: bytes(self.cache.files.read_range(f"{URI}/{name}", offset, length)), offset, length)

    @rule(number=st.integers(0, 1))
    def lose_worker(self, number: int) -> None:
        if len(self.cache.pool.stores) == 2:
            self.cache.pool.kill(f"worker-{number}")

    @rule()
    def reread_everything(self) -> None:
        for name in NAMES:
            self.check(name, lambda name=name: bytes(self.cache.files.read_many([f"{URI}/{name}"])[0]), 0, 1 << 30)

    def check(self, name: str, read, offset: int, length: int) -> None:
        if name not in self.listed:
            with pytest.raises(NotFound):
                read()
            return
        try:
            data = read()
        except Changed:
            assert self.source.get(name) != self.listed[name] or self.was_rewritten(name)
        else:
            assert data == self.listed[name][offset : offset + length]

    def was_rewritten(self, name: str) -> bool:
        """Same bytes again, but another file: the source says that its version is another."""
        return name in self.source

    @invariant()
    def listing_and_books_are_right(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert self.cache.files.listdir(URI) == sorted(self.listed)
        for store in self.cache.pool.stores.values():
            store.check()

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
        shutil.rmtree(self.root)


TestCacheModel = CacheMachine.TestCase
TestCacheModel.settings = settings(
    max_examples=int(os.environ.get("RAYCACHE_MODEL_EXAMPLES", "100")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
