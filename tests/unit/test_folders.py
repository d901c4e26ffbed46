"""Attributes of directories in which files are being made."""

from __future__ import annotations

import stat

import pytest

from raycache.core.inode import Attr
from raycache.fuse.folders import FOLDERS_MAX, LIFETIME_S, Folders


def attr(ino: int, mtime_ns: int = 1) -> Attr:
    return Attr(ino, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, mtime_ns, mtime_ns, 0, 0)


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def folders(clock: list[float]) -> Folders:
    return Folders(lambda: clock[0])


def test_what_was_heard_is_known_for_a_moment(folders: Folders, clock: list[float]) -> None:
    folders.learn(attr(1), folders.mark())
    assert folders.known(1) == attr(1)
    assert folders.known(2) is None
    clock[0] = LIFETIME_S
    assert folders.known(1) is None


def test_an_answer_that_was_overtaken_changes_nothing(folders: Folders) -> None:
    folders.learn(attr(1, 5), folders.mark())
    folders.learn(attr(1, 4), folders.mark())
    assert folders.known(1) == attr(1, 5)


def test_nothing_is_known_while_something_changes_nor_from_before_it(folders: Folders) -> None:
    folders.learn(attr(1), before := folders.mark())
    with folders.changing():
        assert folders.known(1) is None
        folders.learn(attr(1), during := folders.mark())
        assert folders.known(1) is None
    for mark in (before, during):
        folders.learn(attr(1), mark)
        assert folders.known(1) is None, "it may be from before the change"
    folders.learn(attr(1), folders.mark())
    assert folders.known(1) == attr(1)


def test_a_change_that_fails_is_over_all_the_same(folders: Folders) -> None:
    with pytest.raises(OSError, match="no"), folders.changing():
        raise OSError("no")
    folders.learn(attr(1), folders.mark())
    assert folders.known(1) == attr(1)


def test_their_number_has_a_bound(folders: Folders) -> None:
    for ino in range(FOLDERS_MAX + 1):
        folders.learn(attr(ino), folders.mark())
    assert folders.known(0) is None
    assert folders.known(FOLDERS_MAX) is not None
