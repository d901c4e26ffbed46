from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.core import paths
from raycache.core.paths import Location, parse_uri
from raycache.errors import InvalidInput

NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)


@pytest.mark.parametrize(
    ("uri", "location", "again"),
    [
        ("s3://bucket", Location("s3", "bucket", ""), "s3://bucket"),
        ("s3://bucket/", Location("s3", "bucket", ""), "s3://bucket"),
        ("S3://bucket/a/b/", Location("s3", "bucket", "a/b"), "s3://bucket/a/b"),
        ("s3://bucket//a/./b", Location("s3", "bucket", "a/b"), "s3://bucket/a/b"),
        ("s3://bucket/a b#c?d%20*[x]", Location("s3", "bucket", "a b#c?d%20*[x]"), "s3://bucket/a b#c?d%20*[x]"),
        ("s3://bucket/a\nb", Location("s3", "bucket", "a\nb"), "s3://bucket/a\nb"),
        ("s3://bucket/x://y", Location("s3", "bucket", "x:/y"), "s3://bucket/x:/y"),
        ("hdfs://host:8020/d", Location("hdfs", "host:8020", "d"), "hdfs://host:8020/d"),
        ("abfss://box@acc.dfs.core.windows.net/d", None, "abfss://box@acc.dfs.core.windows.net/d"),
        ("file:///data/train", Location("file", "", "data/train"), "file:///data/train"),
        ("file://localhost/data", Location("file", "", "data"), "file:///data"),
        ("file:///", Location("file", "", ""), "file:///"),
        ("/data/train/", Location("file", "", "data/train"), "file:///data/train"),
        ("/data/\N{SNOWMAN} %41", Location("file", "", "data/\N{SNOWMAN} %41"), "file:///data/\N{SNOWMAN} %41"),
        ("/data/a:b", Location("file", "", "data/a:b"), "file:///data/a:b"),
        ("memory://", Location("memory", "", ""), "memory://"),
        ("memory://name/a", Location("memory", "name", "a"), "memory://name/a"),
    ],
)
def test_uri_is_split_and_joined(uri, location, again):
    found = parse_uri(uri)
    assert location is None or found == location
    assert found.uri == again
    assert parse_uri(found.uri) == found


def test_local_path_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_uri("data/./x").uri == f"file://{tmp_path}/data/x"
    assert parse_uri("../data").uri == f"file://{tmp_path.parent}/data"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_uri("~/data").uri == f"file://{tmp_path}/data"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "empty source"),
        ("s3:/bucket/x", "two slashes"),
        ("s3:bucket", "two slashes"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://bucket/../other", r"'\.\.'"),
        ("s3://bucket/a/..", r"'\.\."),
        ("file:///data/../etc", r"'\.\."),
        ("file://data/train", "three slashes"),
        ("s3://bucket/a\0b", "NUL"),
        ("/data/a\0b", "NUL"),
    ],
)
def test_uri_that_cannot_be_meant_is_refused(uri, says):
    with pytest.raises(InvalidInput, match=says):
        parse_uri(uri)


@given(st.lists(NAMES, max_size=5))
def test_normalised_path_stays_as_it_is(names):
    path = "/".join(names)
    assert paths.normalise(path) == path
    assert paths.normalise(f"//{path}/./") == path
    assert parse_uri(f"s3://bucket/{path}") == Location("s3", "bucket", path)


@given(st.text(max_size=30))
def test_normalise_never_lets_a_path_climb_out(text):
    try:
        path = paths.normalise(text)
    except InvalidInput:
        assert "\0" in text or ".." in text.split("/")
        return
    inside = os.path.normpath(os.path.join("/dataset", path))
    assert inside == "/dataset" or inside.startswith("/dataset/")


@given(st.lists(NAMES, max_size=4), NAMES)
def test_join_and_split_are_inverse(parents, name):
    parent = "/".join(parents)
    assert paths.split(paths.join(parent, name)) == (parent, name)
    assert paths.split("") == ("", "")


@pytest.mark.parametrize("name", ["a", "0", "train-2024.v1_x", "A" * 100])
def test_dataset_name_is_accepted(name):
    assert paths.check_dataset_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "é", "A" * 101, "a\n", "a\0"])
def test_dataset_name_is_refused(name):
    with pytest.raises(InvalidInput, match="cannot name a dataset"):
        paths.check_dataset_name(name)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/train/a", "bucket-train-a"),
        ("s3://bucket", "bucket"),
        ("/_data", "data"),
        ("/", "file"),
        ("/\N{SNOWMAN}", "file"),
        ("memory://", "memory"),
        ("hdfs://host:8020/x", "host-8020-x"),
    ],
)
def test_dataset_name_is_suggested(uri, name):
    assert paths.suggest_dataset_name(parse_uri(uri)) == name


@given(st.from_regex(r"[a-z][a-z0-9+.\-]{0,120}", fullmatch=True), st.text(max_size=120), st.text(max_size=120))
def test_any_suggested_dataset_name_can_be_used(scheme, authority, path):
    name = paths.suggest_dataset_name(Location(scheme, authority, path))
    assert paths.check_dataset_name(name) == name


@pytest.mark.parametrize("name", [b"a", b"..a", b"a\nb", b"\xff", b"x" * 255, b" ", b"\\"])
def test_name_is_shown(name):
    assert paths.is_shown(name)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"x" * 256])
def test_name_is_not_shown(name):
    assert not paths.is_shown(name)
