"""Servers that refuse, or that take a connection and never answer: an error before the deadline, never a hang."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from raycache.errors import AccessDenied, SourceUnavailable
from raycache.ufs import open_ufs
from raycache.ufs.base import Limits

SHORT = Limits(connect_timeout_s=1, request_timeout_s=3)


@pytest.fixture(autouse=True, scope="module")
def _calls_left_behind_have_ended() -> Iterator[None]:
    """A thread that comes back from hdfs-native while Python shuts down aborts the process."""
    yield
    for thread in threading.enumerate():
        if thread.name == "raycache-fsspec":
            thread.join(30)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["closed_port", "silent_server"])
@pytest.mark.parametrize("path", ["dir/f", "dir/f\n"])
def test_s3_that_is_away_is_an_error_before_the_deadline(request, server, path):
    endpoint = request.getfixturevalue(server)
    ufs = open_ufs("s3://bucket/prefix", {"key": "k", "secret": "s", "endpoint_url": endpoint}, SHORT)
    calls = [
        lambda: ufs.stat(path),
        lambda: ufs.get(path, 0, 1, '"etag"'),
        lambda: ufs.put(path, b"x"),
        lambda: ufs.delete(path),
        lambda: ufs.list_directory(path),
    ]

    def timed(call: Callable[[], object]) -> float:
        start = time.monotonic()
        with pytest.raises(SourceUnavailable, match="s3://bucket/prefix/dir/f"):
            call()
        return time.monotonic() - start

    with ThreadPoolExecutor(len(calls)) as pool:
        # What is over the deadline is the import of s3fs and a slow machine.
        assert max(pool.map(timed, calls)) < SHORT.request_timeout_s + 2


def test_s3_that_refuses_connections_says_why(closed_port):
    ufs = open_ufs("s3://bucket/prefix", {"key": "k", "secret": "s", "endpoint_url": closed_port}, SHORT)
    with pytest.raises(SourceUnavailable, match=f"{closed_port}.*Connection refused"):
        ufs.stat("f")


def test_hdfs_that_is_away_is_an_error_before_the_deadline(closed_port, silent_server):
    pytest.importorskip("hdfs_native")
    for endpoint in (closed_port, silent_server):
        source = endpoint.replace("http", "hdfs") + "/x"
        start = time.monotonic()
        with pytest.raises(SourceUnavailable, match=f"{source}/a"):
            open_ufs(source, {}, SHORT).list_directory("a")
        assert time.monotonic() - start < SHORT.request_timeout_s + 2


def test_hdfs_paths_are_not_urls():
    """hdfs-native reads '#', '?' and ';' in a path as the end of it."""
    pytest.importorskip("hdfs_native")
    ufs = open_ufs("hdfs://127.0.0.1:1/data#1/x;y", {}, SHORT)

    class Client:
        def get_file_info(self, path: str) -> None:
            raise PermissionError(path)

    ufs._fs.client = Client()
    with pytest.raises(AccessDenied, match=r"access denied: /data#1/x;y/a\?b#c;d;"):
        ufs.stat("a?b#c;d")
