from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raycache.errors import AccessDenied, NotFound
from raycache.ufs import sources as sources_module
from raycache.ufs.base import Limits
from raycache.ufs.sources import Sources


class Adapter:
    """Knows which opening it comes from."""

    def __init__(self, source, options):
        self.source, self.options = source, options


@pytest.fixture
def opened(monkeypatch):
    found = []

    def open_ufs(source, options, _):
        found.append(Adapter(source, options))
        return found[-1]

    monkeypatch.setattr(sources_module, "open_ufs", open_ufs)
    return found


def test_opened_once_for_all_threads(opened):
    sources = Sources(lambda name: (f"memory://{name}", {}), Limits())
    barrier = threading.Barrier(16)

    def use(number):
        barrier.wait(10)
        return sources.call(f"d{number % 2}", lambda ufs: ufs.source)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(use, range(16))) == ["memory://d0", "memory://d1"] * 8
    assert len(opened) == 2


def test_refused_credentials_are_looked_up_anew_once(opened):
    options = iter([{"key": "old"}, {"key": "new"}, {"key": "newer"}])
    sources = Sources(lambda _: ("memory://d", next(options)), Limits())

    def use(ufs):
        if ufs.options["key"] == "old":
            raise AccessDenied("old")
        return ufs.options["key"]

    assert sources.call("d", use) == "new"
    assert sources.call("d", use) == "new"

    def refused(ufs):
        raise AccessDenied(ufs.options["key"])

    with pytest.raises(AccessDenied, match="newer"):
        sources.call("d", refused)
    assert len(opened) == 3


def test_many_that_are_refused_at_once_open_anew_once(opened):
    sources = Sources(lambda _: ("memory://d", {}), Limits())
    sources.call("d", lambda _: None)
    barrier = threading.Barrier(8)

    def use(ufs):
        if ufs is opened[0]:
            barrier.wait(10)
            raise AccessDenied("old")
        return ufs

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: sources.call("d", use), range(8))) == {opened[1]}
    assert len(opened) == 2


def test_source_that_is_slow_to_open_holds_up_no_other(monkeypatch):
    begun, release = threading.Event(), threading.Event()

    def open_ufs(source, options, _):
        if source == "memory://slow":
            begun.set()
            assert release.wait(10)
        return Adapter(source, options)

    monkeypatch.setattr(sources_module, "open_ufs", open_ufs)
    sources = Sources(lambda name: (f"memory://{name}", {}), Limits())
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(sources.call, "slow", lambda ufs: ufs.source)
        assert begun.wait(10)
        assert sources.call("quick", lambda ufs: ufs.source) == "memory://quick"
        release.set()
        assert slow.result(10) == "memory://slow"


def test_forgotten_source_is_opened_anew(opened):
    sources = Sources(lambda _: ("memory://d", {}), Limits())
    first = sources.call("d", lambda ufs: ufs)
    sources.forget("d")
    sources.forget("never opened")
    assert sources.call("d", lambda ufs: ufs) is not first


def test_unknown_dataset(opened):
    def access(name):
        raise NotFound(name)

    with pytest.raises(NotFound, match="none"):
        Sources(access, Limits()).call("none", lambda ufs: ufs)
    assert not opened
