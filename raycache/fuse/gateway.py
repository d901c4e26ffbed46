"""The gateway: the process that serves one mount. ``python -m raycache.fuse.gateway``, started by ``fuse.mount``.

It reads its task as one JSON line on standard input, answers with one JSON line on standard output when the mount
stands or cannot, and then serves until it is unmounted. Its log is its standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from raycache.actors.cluster import Cluster
from raycache.config import Settings
from raycache.errors import MountError, RaycacheError
from raycache.fuse.records import MountRecord, forget_record, process_started, read_record, write_record
from raycache.fuse.vfs import Vfs

PUBLISH_S = 1.0
"""How often the counters in the mount's record are brought up to date."""
_log = logging.getLogger("raycache.gateway")


@dataclass(frozen=True, slots=True)
class Task:
    """What to serve. Holds no secret: credentials are with master and workers."""

    settings: dict[str, Any]
    source: str
    """URI of a directory of a dataset that is attached already."""
    mountpoint: str
    log: str
    owner: tuple[int, int]
    allow_other: bool


def main() -> None:
    """Serve one mount."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    answer = os.fdopen(os.dup(1), "w")
    # Ray and libraries print; whatever they print belongs into the log, not between the parent and its answer.
    os.dup2(2, 1)
    raw: dict[str, Any] = json.loads(sys.stdin.readline())
    task = Task(**{**raw, "owner": tuple(raw["owner"])})
    try:
        _serve(task, answer)
    except RaycacheError as error:
        _reply(answer, {"error": str(error), "kind": type(error).__name__})
    except Exception as error:  # noqa: BLE001 - the parent waits for a line, whatever went wrong
        _log.exception("cannot serve %s", task.mountpoint)
        _reply(answer, {"error": f"{type(error).__name__}: {error}; see {task.log}", "kind": "MountError"})
    finally:
        forget_record(Settings(**task.settings).state_dir, task.mountpoint, os.getpid())
    # Ray's threads and atexit handlers have nothing left to do for a mount that is gone, and can take seconds.
    logging.shutdown()
    os._exit(0)


def _serve(task: Task, answer: Any) -> None:
    settings = Settings(**task.settings)
    cluster = Cluster.open(settings, start=False)
    dataset, path = cluster.namespace.locate(task.source)
    directory = cluster.namespace.walk(dataset, path).manifest.directory
    vfs = Vfs(cluster.namespace, cluster.reader, directory.dir_id, dataset.attached_ns)
    try:
        from raycache.fuse import pyfuse
    except ImportError as error:
        raise MountError(
            f"the pyfuse3 session needs the package pyfuse3 ({error}): apt install fuse3 libfuse3-dev pkg-config gcc, "
            "then pip install 'raycache[fuse]'"
        ) from error
    started = process_started(os.getpid()) or 0
    record = MountRecord(task.mountpoint, task.source, "pyfuse3", os.getpid(), started, task.log)

    def ready() -> None:
        write_record(settings.state_dir, record)
        threading.Thread(target=_publish, args=(cluster, record, vfs), name="publish", daemon=True).start()
        _log.info("serving %s on %s", task.source, task.mountpoint)
        _reply(answer, {"pid": os.getpid(), "session": record.session})

    pyfuse.serve(vfs, task.mountpoint, task.source, owner=task.owner, allow_other=task.allow_other, ready=ready)
    _log.info("unmounted %s", task.mountpoint)


def _publish(cluster: Cluster, record: MountRecord, vfs: Vfs) -> None:
    last: dict[str, int] = {}
    settings = cluster.settings
    while True:
        time.sleep(PUBLISH_S)
        calls = {"master_calls": cluster.master.calls, "worker_calls": cluster.pool.calls}
        counters = {**asdict(vfs.counters), **calls}
        if counters != last:
            # Whoever mounted may have added notes to the record since.
            newest = read_record(settings.state_dir, record.mountpoint) or record
            write_record(settings.state_dir, replace(newest, counters=counters))
            last = counters


def _reply(answer: Any, message: dict[str, Any]) -> None:
    try:
        answer.write(json.dumps(message) + "\n")
        answer.close()
    except (OSError, ValueError):
        _log.info("nobody waits for: %s", message)


if __name__ == "__main__":
    main()
