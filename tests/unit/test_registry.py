from __future__ import annotations

import pytest

from raycache.core.paths import parse_uri
from raycache.errors import InvalidInput
from raycache.ufs import open_ufs
from raycache.ufs.local import LocalUfs
from raycache.ufs.object import ObjectUfs
from raycache.ufs.registry import check_scheme

KEYS = {"key": "k", "secret": "s", "region": "us-east-1", "endpoint": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("source", "options", "kind", "uri"),
    [
        ("/data", {}, LocalUfs, "file:///data"),
        ("file:///data/", {}, LocalUfs, "file:///data"),
        ("s3://bucket/a", KEYS, ObjectUfs, "s3://bucket/a"),
        ("s3a://bucket/a", KEYS, ObjectUfs, "s3a://bucket/a"),
        ("gs://bucket", {"skip_signature": "true"}, ObjectUfs, "gs://bucket"),
        ("az://box/a", {"account_name": "me"}, ObjectUfs, "az://box/a"),
        ("https://host/a", {}, ObjectUfs, "https://host/a"),
        ("memory://name", {}, ObjectUfs, "memory://name"),
    ],
)
def test_open_makes_no_request(source, options, kind, uri):
    ufs = open_ufs(source, options)
    assert isinstance(ufs, kind)
    assert ufs.uri == uri


def test_azure_account_in_the_uri():
    ufs = open_ufs("abfss://box@me.dfs.core.windows.net/a", {})
    assert ufs._store.config["container_name"] == "box"
    assert ufs._store.config["account_name"] == "me"


@pytest.mark.parametrize(
    ("source", "guess"), [("s4://b", "s3"), ("hfds://h/x", "hdfs"), ("htps://h", "https"), ("S3N://b", "s3")]
)
def test_mistyped_scheme_gets_a_suggestion(source, guess):
    with pytest.raises(InvalidInput, match=f"no under file system has the scheme .*did you mean {guess}://"):
        open_ufs(source)


def test_cached_path_is_no_source():
    with pytest.raises(InvalidInput, match="already cached"):
        open_ufs("raycache://train/a")


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("s3://b", {"keey": "x"}, "S3 takes no option keey"),
        ("s3://b", {"key": "x"}, "together"),
        ("gs://b", {"keey": "x"}, "gs://b: .*keey"),
        ("az://b", {}, "az://b: .*Account"),
        ("s3://b", {"profile": "none"}, "profile .*none"),
    ],
)
def test_options_that_cannot_be_meant(monkeypatch, tmp_path, source, options, says):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InvalidInput, match=says):
        open_ufs(source, options)


def test_schemes_of_fsspec_pass():
    for uri in ("hdfs://h/x", "oss://b/x", "sftp://h/x", "ftp://h/x"):
        check_scheme(parse_uri(uri))
