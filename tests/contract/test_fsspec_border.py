"""How the fsspec adapter bears implementations that hang, fail in their own words, or tell time in their own way."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest

from raycache.core.paths import parse_uri
from raycache.errors import AccessDenied, Changed, InvalidInput, NotFound, SourceUnavailable
from raycache.ufs.base import Limits
from raycache.ufs.generic import FsspecUfs

UTC = datetime.timezone.utc


class NoCredentialsError(Exception):
    """As botocore calls it."""


class ScriptedFileSystem(fsspec.AbstractFileSystem):
    """Does what a test says."""

    protocol = "scripted"
    connect: Callable[[], None] = staticmethod(lambda: None)
    asked: Callable[[str], dict[str, Any]]
    read: Callable[[str], bytes]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        type(self).connect()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": 3, **type(self).asked(path)}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        return [self.info(f"{path}/f")]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return type(self).read(path)[start:end]


@pytest.fixture
def scripted() -> type[ScriptedFileSystem]:
    class Fresh(ScriptedFileSystem):
        asked = staticmethod(lambda _: {"mtime": 1.0})
        read = staticmethod(lambda _: b"abc")

    fsspec.register_implementation("scripted", Fresh, clobber=True)
    return Fresh


def opened(**limits: Any) -> FsspecUfs:
    limits = {"connect_timeout_s": 1, "request_timeout_s": 0.5, **limits}
    return FsspecUfs(parse_uri("scripted://host/root"), {}, Limits(**limits))


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What hangs in a test ends with it."""
    event = threading.Event()
    yield event
    event.set()


def test_call_that_hangs_ends_at_the_deadline(scripted, release):
    ufs = opened()
    scripted.asked = staticmethod(lambda _: release.wait(30) and {})
    start = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"scripted://host/root/f: no answer within 0\.5 s"):
        ufs.stat("f")
    assert time.monotonic() - start < 1.5


def test_connecting_that_hangs_ends_at_the_deadline(scripted, release):
    scripted.connect = staticmethod(lambda: release.wait(30) and None)
    start = time.monotonic()
    with pytest.raises(SourceUnavailable, match="scripted://host/root: cannot connect: no answer"):
        opened()
    assert time.monotonic() - start < 1.5


def test_calls_left_behind_do_not_pile_up(scripted, release):
    ufs = opened(connections=2)
    scripted.asked = staticmethod(lambda _: release.wait(30) and {"mtime": 1.0})
    before = threading.active_count()
    for _ in range(4):
        with pytest.raises(SourceUnavailable):
            ufs.stat("f")
    assert threading.active_count() <= before + 2
    with pytest.raises(SourceUnavailable, match="2 requests are under way"):
        ufs.stat("f")
    release.set()
    assert ufs.stat("f").size_bytes == 3


def test_what_may_pass_is_tried_again(scripted):
    failures = [
        ConnectionResetError("reset"),
        TimeoutError("slow"),
        OSError("odd"),
        RuntimeError("of a client library"),
    ]
    scripted.asked = staticmethod(lambda _: {"mtime": 1.0} if not failures else _raise(failures.pop()))
    assert opened(request_timeout_s=5).stat("f").size_bytes == 3


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (FileNotFoundError("x"), NotFound),
        (PermissionError("x"), AccessDenied),
        (NoCredentialsError("x"), AccessDenied),
        (ValueError("x"), SourceUnavailable),
        (NotImplementedError(), SourceUnavailable),
        (KeyError("x"), SourceUnavailable),
    ],
)
def test_what_is_final_is_not_tried_again(scripted, raised, kind):
    calls = []
    scripted.asked = staticmethod(lambda _: calls.append(1) or _raise(raised))
    with pytest.raises(kind, match="scripted://host/root/f: ") as caught:
        opened(request_timeout_s=5).stat("f")
    assert len(calls) == 1
    assert caught.value.__cause__ is raised


def test_errors_of_a_client_library_are_unavailability(scripted):
    class ProtocolError(Exception):
        pass

    scripted.asked = staticmethod(lambda _: _raise(ProtocolError("bad frame\nand more")))
    with pytest.raises(SourceUnavailable, match=r"scripted://host/root/f: bad frame$"):
        opened().stat("f")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (PermissionError("no"), AccessDenied),
        (NoCredentialsError("no"), AccessDenied),
        (ConnectionRefusedError("no"), SourceUnavailable),
        (ImportError("no"), InvalidInput),
        (TypeError("no such option"), InvalidInput),
        (RuntimeError("no"), InvalidInput),
    ],
)
def test_failure_to_open(scripted, raised, kind):
    scripted.connect = staticmethod(lambda: _raise(raised))
    with pytest.raises(kind, match=r"scripted://host/root: .*no"):
        opened()


def test_file_that_changes_during_a_read(scripted):
    times = iter([1.0, 2.0])
    scripted.asked = staticmethod(lambda _: {"mtime": next(times)})
    with pytest.raises(Changed, match="scripted://host/root/f changed"):
        opened().get("f", 0, 3, "3-3b9aca00")


def test_implementation_that_reads_more_or_less_than_asked(scripted):
    for read in (b"", b"ab"):
        scripted.read = staticmethod(lambda _, read=read: read)
        with pytest.raises(Changed):
            opened().get("f", 0, 3, "3-3b9aca00")


@pytest.mark.parametrize(
    "info",
    [
        {"mtime": 1700000000.123456},
        {"modification_time": 1700000000123.456},
        {"LastModified": datetime.datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)},
        {"created": datetime.datetime(2023, 11, 14, 22, 13, 20, 123456)},
        {
            "modified": datetime.datetime(
                2023, 11, 15, 0, 13, 20, 123456, datetime.timezone(datetime.timedelta(hours=2))
            )
        },
    ],
)
def test_all_ways_to_tell_a_time_make_one_version(scripted, info):
    scripted.asked = staticmethod(lambda _: info)
    ufs = opened()
    assert ufs.stat("f").mtime_ns == 1700000000123456000
    assert ufs.list_directory("")["mtime_ns"].to_pylist() == [1700000000123456000]
    assert ufs.stat("f").etag == ufs.list_directory("")["etag"][0].as_py().decode() == f"3-{1700000000123456000:x}"


def test_time_in_milliseconds_as_hdfs_has_it(scripted):
    scripted.asked = staticmethod(lambda _: {"modification_time": 1700000000123})
    assert opened().stat("f").mtime_ns == 1700000000123000000


def test_path_that_the_implementation_reads_as_something_else(scripted):
    scripted._strip_protocol = classmethod(lambda _, path: path.partition("#")[0].removeprefix("scripted://"))
    ufs = opened()
    assert ufs.stat("f").size_bytes == 3
    with pytest.raises(InvalidInput, match="scripted://host/root/f#1: fsspec's scripted file system cannot name"):
        ufs.get("f#1", 0, 3, "")


def test_interpreter_ends_though_a_call_hangs(scripted, release):
    """Its thread is a daemon, so that nobody joins it."""
    scripted.asked = staticmethod(lambda _: release.wait(30) and {})
    with pytest.raises(SourceUnavailable):
        opened().stat("f")
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "raycache-fsspec")
