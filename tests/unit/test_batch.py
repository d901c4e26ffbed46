"""Many paths in one call say what each path alone would, and ask the master once per level of depth."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.client.namespace import Namespace
from raycache.core.globbing import glob_names
from raycache.core.manifest import Manifest
from raycache.core.values import Failed
from raycache.errors import AccessDenied, ClusterUnavailable, InvalidInput, IsADirectory, NotADirectory, NotFound
from raycache.testing.inprocess import InProcessCache

DIRECTORIES = [f"{first}/{second}" for first in "abc" for second in "xyz"]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[InProcessCache]:
    """Nine directories below three, with four files each, some of them oddly named."""
    for directory in DIRECTORIES:
        (tmp_path / "data" / directory).mkdir(parents=True)
        for number, name in enumerate(("1", "2", "b\udcff", "new\nline")):
            (tmp_path / "data" / directory / name).write_bytes(b"." * number)
    with InProcessCache() as cache:
        cache.files.attach(str(tmp_path / "data"), "data", {})
        yield cache


URIS = [
    *(f"raycache://data/{directory}/{name}" for directory in DIRECTORIES[:4] for name in ("1", "b\udcff", "new\nline")),
    *(f"raycache://data/{directory}" for directory in DIRECTORIES[:3]),
    "raycache://data",
    "raycache://data/",
    "raycache://data/a/x/",
    "raycache://data//a/./x//1",
    "raycache://data/a/x/1/",
    "raycache://data/a/x/.",
]
WRONG = {
    "raycache://data/a/x/none": NotFound,
    "raycache://data/none/x/1": NotFound,
    "raycache://data/a/x/1/below": NotADirectory,
    "raycache://other/a": NotFound,
}
INVALID = ["raycache://data/a/..", "raycache://data/a/x/nul\0", "", "raycache://"]


def test_many_say_what_each_says(cache: InProcessCache) -> None:
    files = cache.view()
    assert cache.view().stat_many(URIS) == [files.stat(uri) for uri in URIS]
    assert cache.view().exists_many([*URIS, *WRONG]) == [True] * len(URIS) + [False] * len(WRONG)
    assert [files.exists(uri) for uri in [*URIS, *WRONG]] == cache.view().exists_many([*URIS, *WRONG])
    directories = [uri for uri in URIS if files.stat(uri).is_dir]
    assert cache.view().listdir_many(directories) == [files.listdir(uri) for uri in directories]
    assert cache.view().listdir("raycache://data/a/x") == ["1", "2", "b\udcff", "new\nline"]
    readable = [uri for uri in URIS if uri not in directories]
    assert cache.view().read_many(readable) == [b"." * files.stat(uri).size_bytes for uri in readable]
    for many in (files.stat_many, files.exists_many, files.listdir_many, files.read_many):
        assert many([]) == []


def test_the_first_that_fails_is_the_one_that_is_raised(cache: InProcessCache) -> None:
    files, good = cache.view(), URIS[0]
    for uri, kind in {**WRONG, **dict.fromkeys(INVALID, InvalidInput)}.items():
        for many in (files.stat_many, files.read_many):
            with pytest.raises(kind) as found:
                many([good, uri, "raycache://data/b/x/later"])
            with pytest.raises(kind) as alone:
                files.stat(uri)
            assert "later" not in str(found.value)
            assert type(found.value) is type(alone.value)
    for uri in INVALID:
        with pytest.raises(InvalidInput):
            files.exists_many([good, uri])
    with pytest.raises(IsADirectory, match="a/x"):
        files.read_many([good, "raycache://data/a/x"])
    with pytest.raises(NotADirectory, match="1"):
        files.listdir_many(["raycache://data/a/x", good])


def test_directories_are_asked_for_once_a_level(cache: InProcessCache) -> None:
    uris = [f"raycache://data/{directory}/{name}" for directory in DIRECTORIES for name in ("1", "2", "none")]
    for many in (lambda files: files.exists_many(uris), lambda files: files.stat_many([*uris[::3], *uris[1::3]])):
        files, before = cache.view(), cache.master.calls
        many(files)
        assert cache.master.calls - before == 1 + 3, "datasets, root, a b c, and all nine"
        before = cache.master.calls
        many(files)
        assert cache.master.calls == before
    files = cache.view()
    files.exists("raycache://data/a")
    before = cache.master.calls
    assert list(files.glob("raycache://data/*/[xy]/1"))[::5] == ["raycache://data/a/x/1", "raycache://data/c/y/1"]
    assert cache.master.calls - before == 2, "b and c, and then six"
    files, before = cache.view(), cache.master.calls
    assert sum(len(names) for _, _, names in files.walk("raycache://data")) == 36
    assert cache.master.calls - before == 1 + 1 + 1 + 3, "datasets, root, a b c, and the three below each of them"


def test_one_directory_that_fails_does_not_fail_the_others(
    cache: InProcessCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cache.metadata.manifest

    def manifest(dir_id: int, at_least: int = 0) -> object:
        made = real(dir_id, at_least)
        if made.directory.path == "b":
            raise AccessDenied("b is secret")
        return made

    monkeypatch.setattr(cache.metadata, "manifest", manifest)
    files = cache.view()
    assert files.exists_many(["raycache://data/a/x", "raycache://data/c/x"]) == [True, True]
    with pytest.raises(AccessDenied, match="secret"):
        files.exists_many(["raycache://data/a/x", "raycache://data/b/x"])
    root = cache.master.datasets()[0].root_id
    answers = cache.master.manifests([root, 12345])
    assert isinstance(answers[1], Failed)
    assert isinstance(answers[1].error, NotFound)
    with pytest.raises(InvalidInput, match="256"):
        cache.master.manifests(range(257))


def test_names_are_looked_up_in_columns(cache: InProcessCache) -> None:
    found = cache.view().lookup_many("raycache://data/a/x", ["2", "none", "b\udcff", "..", "2"])
    assert found.exists.tolist() == [True, False, True, False, True]
    assert found.size_bytes.tolist() == [1, 0, 2, 0, 1]
    assert (found.mtime_ns > 10**18).tolist() == found.exists.tolist()
    above = cache.view().lookup_many("raycache://data/a", ["x", "none"])
    assert (above.is_dir.tolist(), above.size_bytes.tolist(), above.mtime_ns.tolist()) == (
        [True, False],
        [0, 0],
        [1, 0],
    )
    assert cache.view().lookup_many("raycache://data/a", []).exists.dtype == np.bool_
    with pytest.raises(NotADirectory):
        cache.view().lookup_many("raycache://data/a/x/1", ["x"])


def test_what_was_near_is_void_when_a_directory_moves_on(cache: InProcessCache, tmp_path: Path) -> None:
    files = cache.files
    assert files.exists("raycache://data/a/x/1")
    (tmp_path / "data" / "a" / "x").rename(tmp_path / "data" / "a" / "moved")
    assert files.exists("raycache://data/a/x/1"), "until somebody lists it anew"
    files.refresh("raycache://data/a")
    assert not files.exists("raycache://data/a/x/1")
    assert files.exists("raycache://data/a/moved/1")


def test_a_source_inside_another_one_is_found_by_its_own_name(cache: InProcessCache, tmp_path: Path) -> None:
    (tmp_path / "data" / "late").mkdir()  # the listing of `data` does not know it
    cache.files.attach(str(tmp_path / "data" / "late"), "late", {})
    assert cache.files.exists_many([f"file://{tmp_path}/data/late", f"file://{tmp_path}/data/none"]) == [True, False]


def test_walk_leaves_out_what_the_caller_takes_out(cache: InProcessCache) -> None:
    seen = []
    for base, dirs, _ in cache.view().walk("raycache://data/"):
        seen.append(base)
        dirs[:] = [name for name in dirs if name != "y"] if base.endswith("a") else dirs[:1]
    assert seen == ["raycache://data/", *(f"raycache://data/a{below}" for below in ("", "/x", "/z"))]


_NAMES = st.sampled_from(["a", "b", "ab", ".a", "a.b", "\u00e9", "\udcff", "new\nline", "[a]"])
_PARTS = st.sampled_from(["*", "a", "a*", "?", "[ab]", "[!a]*", "**", ".*", "none", "\u00e9", "*\n*"])


@settings(max_examples=40)
@given(
    st.lists(st.lists(_NAMES, min_size=1, max_size=3), max_size=8),
    st.lists(_PARTS, min_size=1, max_size=4),
)
def test_glob_finds_what_a_search_path_by_path_finds(paths: list[list[str]], parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as root, InProcessCache() as cache:
        for *above, name in paths:
            with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):  # two paths cannot both be
                os.makedirs(os.path.join(root, *above), exist_ok=True)
                Path(root, *above, name).touch()
        cache.files.attach(root, "data", {})
        found = cache.files.glob("/".join(["raycache://data", *parts]))
        assert found == sorted(set(by_hand(root, "raycache://data", parts)))


def by_hand(directory: str, base: str, parts: list[str]) -> Iterator[str]:
    """As glob was before it worked on columns."""
    head, rest = parts[0], parts[1:]
    names = os.listdir(directory)
    below = [name for name in names if os.path.isdir(os.path.join(directory, name))]
    if head == "**":
        yield from by_hand(directory, base, rest) if rest else (f"{base}/{name}" for name in names)
        for name in below:
            yield from by_hand(os.path.join(directory, name), f"{base}/{name}", parts)
        return
    for name in glob_names(names, head):
        if not rest:
            yield f"{base}/{name}"
        elif name in below:
            yield from by_hand(os.path.join(directory, name), f"{base}/{name}", rest)


def test_those_who_want_the_same_directory_wait_for_one_call(
    cache: InProcessCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, asked, answer = cache.view(), threading.Event(), threading.Event()
    assert files.exists("raycache://data/a")
    real = cache.master.manifests

    def manifests(dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        asked.set()
        assert answer.wait(10)
        return real(dir_ids)

    monkeypatch.setattr(cache.master, "manifests", manifests)
    with ThreadPoolExecutor(2) as threads:
        many = threads.submit(files.listdir_many, ["raycache://data/a/x", "raycache://data/a/y"])
        assert asked.wait(10)
        before = cache.master.calls
        one = threads.submit(files.exists, "raycache://data/a/x/1")
        answer.set()
        assert one.result(10)
        assert many.result(10)[0] == ["1", "2", "b\udcff", "new\nline"]
    assert cache.master.calls == before + 1, "the call that was under way"


def test_a_call_that_fails_is_not_made_again_for_the_rest(
    cache: InProcessCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cache.view()
    root_id = cache.master.datasets()[0].root_id
    calls = []

    def away(dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        calls.append(len(dir_ids))
        raise ClusterUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(cache.master, "manifests", away)
        for uri in ("raycache://data", "raycache://data/a/x"):
            with pytest.raises(ClusterUnavailable):
                files.listdir_many([uri])
        namespace = Namespace(cache.master)
        answers = namespace.manifests(range(root_id, root_id + 600))
        assert [type(answer) for answer in answers.values()] == [Failed] * 600
    assert calls == [1, 1, 256]
    assert files.listdir_many(["raycache://data"]) == [["a", "b", "c"]], "and nothing of the failure is left"
    assert isinstance(namespace.manifests([root_id])[root_id], Manifest)
