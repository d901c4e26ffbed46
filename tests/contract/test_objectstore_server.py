"""The S3 server and the proxy that other tests trust: what they serve, count, refuse and break."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from raycache.errors import InvalidInput, RaycacheError
from raycache.testing import CountingProxy, ObjectStoreServer
from raycache.testing.objectstore import REGION, _find_weed

BUCKET = "contract"
BODY = os.urandom(300 * 1024)


def store_at(endpoint: str, server: ObjectStoreServer, *, retries: int = 3, **credentials: str) -> S3Store:
    options = server.storage_options
    config = {"access_key_id": options["key"], "secret_access_key": options["secret"], **credentials}
    return S3Store(
        BUCKET,
        endpoint=endpoint,
        region=REGION,
        client_options={"allow_http": True, "timeout": timedelta(seconds=20)},
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=15)},
        **config,
    )


@pytest.fixture
def proxy(object_store: ObjectStoreServer) -> Iterator[CountingProxy]:
    object_store.create_bucket(BUCKET)
    with CountingProxy(object_store.endpoint) as proxy:
        yield proxy


def test_what_is_put_through_the_proxy_is_got_and_counted(proxy: CountingProxy, object_store: ObjectStoreServer):
    store = store_at(proxy.endpoint, object_store)
    obstore.put(store, "a/b.bin", BODY)
    assert bytes(obstore.get(store, "a/b.bin").bytes()) == BODY
    assert bytes(obstore.get_range(store, "a/b.bin", start=1000, end=3000)) == BODY[1000:3000]
    assert obstore.head(store, "a/b.bin")["size"] == len(BODY)
    assert proxy.counts() == {"PUT": 1, "GET": 2, "HEAD": 1}
    assert ("PUT", f"/{BUCKET}/a/b.bin") in proxy.requests()
    assert proxy.bytes_out == len(BODY) + 2000
    proxy.reset()
    assert (proxy.counts(), proxy.requests(), proxy.bytes_out) == ({}, [], 0)
    assert [meta["path"] for meta in obstore.list(store, "a").collect()] == ["a/b.bin"]


def test_a_client_that_waits_for_100_continue_passes(proxy: CountingProxy, object_store: ObjectStoreServer):
    from botocore.session import Session

    client = Session().create_client(
        "s3",
        endpoint_url=proxy.endpoint,
        region_name=REGION,
        aws_access_key_id=object_store.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=object_store.environ["AWS_SECRET_ACCESS_KEY"],
    )
    client.put_object(Bucket=BUCKET, Key="boto", Body=BODY)
    assert client.get_object(Bucket=BUCKET, Key="boto")["Body"].read() == BODY


def test_many_clients_at_once(proxy: CountingProxy, object_store: ObjectStoreServer):
    store = store_at(proxy.endpoint, object_store)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: obstore.put(store, f"many/{n}", BODY[:n]), range(200)))
        got = list(pool.map(lambda n: bytes(obstore.get(store, f"many/{n}").bytes()), range(200)))
    assert got == [BODY[:n] for n in range(200)]
    assert proxy.counts()["GET"] == 200


def test_wrong_credentials_are_refused(proxy: CountingProxy, object_store: ObjectStoreServer):
    obstore.put(store_at(object_store.endpoint, object_store), "secret", b"x")
    for endpoint in (object_store.endpoint, proxy.endpoint):
        for wrong in ({"secret_access_key": "wrong"}, {"access_key_id": "nobody"}):
            with pytest.raises((PermissionDeniedError, UnauthenticatedError)):
                obstore.get(store_at(endpoint, object_store, **wrong), "secret")


def test_failed_requests_are_retried_by_a_client_or_reach_it(proxy: CountingProxy, object_store: ObjectStoreServer):
    store = store_at(proxy.endpoint, object_store)
    obstore.put(store, "flaky", BODY)
    proxy.reset()
    proxy.fail_next(2)
    assert bytes(obstore.get(store, "flaky").bytes()) == BODY
    assert proxy.counts() == {"GET": 3}
    proxy.fail_next(1, status=403)
    with pytest.raises(PermissionDeniedError):
        obstore.get(store, "flaky")


def test_cut_bodies_never_arrive_as_whole_ones(proxy: CountingProxy, object_store: ObjectStoreServer):
    store = store_at(proxy.endpoint, object_store)
    obstore.put(store, "cut", BODY)
    proxy.reset()
    proxy.cut_bodies(1)
    try:
        data = bytes(obstore.get(store, "cut").bytes())
    except BaseError:
        assert proxy.bytes_out == len(BODY) // 2
    else:
        assert data == BODY
        assert sum(proxy.counts().values()) > 1
    assert bytes(obstore.get(store, "cut").bytes()) == BODY


def test_down_and_up_again(proxy: CountingProxy, object_store: ObjectStoreServer):
    store = store_at(proxy.endpoint, object_store, retries=0)
    obstore.put(store, "there", BODY)
    proxy.down = True
    with pytest.raises(BaseError):
        obstore.get(store, "there")
    proxy.down = False
    assert bytes(obstore.get(store, "there").bytes()) == BODY


def test_a_delay_is_waited_for(proxy: CountingProxy, object_store: ObjectStoreServer):
    store = store_at(proxy.endpoint, object_store)
    proxy.delay_s = 0.3
    started = time.monotonic()
    obstore.put(store, "late", b"x")
    assert time.monotonic() - started >= 0.3


def test_a_gate_holds_what_matches_and_nothing_else(proxy: CountingProxy, object_store: ObjectStoreServer):
    store = store_at(proxy.endpoint, object_store)
    obstore.put(store, "gate/held", BODY)
    obstore.put(store, "gate/free", BODY)
    with ThreadPoolExecutor(1) as pool, proxy.hold("gate/held") as gate:
        held = pool.submit(lambda: bytes(obstore.get(store, "gate/held").bytes()))
        assert gate.wait_arrived()
        assert bytes(obstore.get(store, "gate/free").bytes()) == BODY
        assert not held.done()
        gate.release()
        assert held.result(timeout=10) == BODY
    assert gate.arrived == 1


def test_stopping_a_proxy_ends_its_threads_and_held_requests(object_store: ObjectStoreServer):
    object_store.create_bucket(BUCKET)
    before = set(threading.enumerate())
    with ThreadPoolExecutor(1) as pool:
        with CountingProxy(object_store.endpoint) as proxy:
            store = store_at(proxy.endpoint, object_store, retries=0)
            gate = proxy.hold("")
            held = pool.submit(obstore.put, store, "never", b"x")
            assert gate.wait_arrived()
        assert isinstance(held.exception(timeout=10), BaseError)
        left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("raycache")]
    assert left == []


def test_a_proxy_wants_an_endpoint():
    with pytest.raises(InvalidInput, match="not an endpoint"):
        CountingProxy("s3://bucket")


def test_two_servers_at_once_and_a_directory_that_outlives_its_server(object_store: ObjectStoreServer, tmp_path: Path):
    with ObjectStoreServer(tmp_path) as other:
        assert other.endpoint != object_store.endpoint
        for server, data in ((object_store, b"first"), (other, b"second")):
            server.create_bucket(BUCKET)
            server.client().put_object(Bucket=BUCKET, Key="who", Body=data)
        assert object_store.client().get_object(Bucket=BUCKET, Key="who")["Body"].read() == b"first"
    with pytest.raises(RaycacheError, match="not running"):
        _ = other.endpoint
    with other:
        assert other.client().get_object(Bucket=BUCKET, Key="who")["Body"].read() == b"second"


def test_a_taken_port_is_given_up(monkeypatch: pytest.MonkeyPatch, object_store: ObjectStoreServer):
    from raycache.testing import objectstore

    choose, calls = objectstore._choose_ports, []

    def taken_first() -> dict[str, int]:
        calls.append(1)
        # Both servers take the same keys, so only the probe's own key tells them apart.
        return choose() | ({"s3": int(object_store.endpoint.rsplit(":", 1)[1])} if len(calls) == 1 else {})

    monkeypatch.setattr(objectstore, "_choose_ports", taken_first)
    with ObjectStoreServer() as server:
        assert server.endpoint != object_store.endpoint
    assert len(calls) == 2


def test_a_server_dies_with_its_parent():
    program = (
        "import os, signal\n"
        "from raycache.testing import ObjectStoreServer\n"
        "server = ObjectStoreServer()\n"
        "server.start()\n"
        "print(server._process.pid, server._scratch, *server._ports.values(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    pid, scratch, *ports = done.stdout.split()
    deadline = time.monotonic() + 10
    while _runs(int(pid)):
        assert time.monotonic() < deadline, "weed outlived its parent"
        time.sleep(0.05)
    shutil.rmtree(scratch)
    for left in (path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock")):
        left.unlink()


def test_a_missing_weed_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RaycacheError, match=r"pip install 'raycache\[demo\]'"):
        _find_weed()


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
