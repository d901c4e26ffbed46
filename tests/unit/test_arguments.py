"""What users give is checked where it comes in."""

from __future__ import annotations

from typing import Any

import pytest

from raycache.actors.jobs import cache_environ
from raycache.core.arguments import check_mounts
from raycache.errors import InvalidInput


def test_mounts_of_a_job() -> None:
    given = {"mounts": {"/data/": "s3://bucket/train/", "/a//b": "raycache://train"}}
    assert check_mounts(given) == {"/data": "s3://bucket/train", "/a/b": "raycache://train"}
    assert check_mounts({"mounts": {}}) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "write {'mounts'"),
        ({"mount": {}}, "write {'mounts'"),
        ({"mounts": {}, "other": 1}, "write {'mounts'"),
        ({"mounts": ["/data"]}, "write {'mounts'"),
        ({"mounts": {"data": "s3://bucket"}}, "absolute path"),
        ({"mounts": {"/": "s3://bucket"}}, "absolute path"),
        ({"mounts": {"/data": 3}}, "give a URI"),
    ],
)
def test_mounts_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_mounts(given)


def test_a_job_is_given_the_cache_and_no_secrets() -> None:
    environ = {"RAYCACHE_NAMESPACE": "a", "RAYCACHE_CONFIG": "/here/only", "AWS_SECRET_ACCESS_KEY": "b", "PATH": "c"}
    assert cache_environ(environ) == {"RAYCACHE_NAMESPACE": "a"}
