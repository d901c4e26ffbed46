"""The gateway: the process that answers for one mount. ``python -m raycache.fuse.gateway``.

It reads its task as one JSON line on standard input; its log is its standard error. For the kernel session it is a
child of the holder: it makes itself ready, says so, and serves when it is told to. For pyfuse3 it is started by
``fuse.mount``, mounts by itself and answers with one JSON line on standard output.

A *direct* gateway knows no cluster: it reads what the mount has listed before from the shelf and the bytes from the
source. It imports no Ray, so that it is ready soon and nothing of Ray can take it along.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raycache.client.direct import RememberingMaster, Shelf, ShelfMaster, SourcePool
from raycache.client.namespace import Namespace
from raycache.client.reader import Reader
from raycache.config import Settings, load_settings
from raycache.core.values import Failed
from raycache.errors import MountError, RaycacheError
from raycache.fuse.holder import BEAT_S
from raycache.fuse.records import (
    MountRecord,
    forget_record,
    process_started,
    read_record,
    write_record,
)
from raycache.fuse.service import ReadService, Served, Service, check_root, leave_with, open_cluster
from raycache.fuse.session import Ended, Session
from raycache.fuse.task import Lines, Task
from raycache.fuse.vfs import Vfs
from raycache.ufs import open_ufs
from raycache.ufs.base import Limits

PUBLISH_S = 1.0
"""How often the counters in the record of a pyfuse3 mount are brought up to date."""
DIRECT_VIEW_BYTES = 64 * 2**20
_log = logging.getLogger("raycache.gateway")


def main() -> None:
    """Serve one mount."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    answer = os.fdopen(os.dup(1), "w")
    # Ray and libraries print; whatever they print belongs into the log, not between the parent and its answer.
    os.dup2(2, 1)
    task = Task.from_line(sys.stdin.readline())
    try:
        if task.session == "kernel":
            serve_kernel(task)
        else:
            _serve_pyfuse(task, answer)
    except BaseException:  # the exit below would swallow it, and the log would say nothing
        _log.exception("the gateway of %s died", task.mountpoint)
        raise
    finally:
        # Ray's threads and atexit handlers have nothing left to do here, and can take seconds.
        logging.shutdown()
        os._exit(0)


def _join_cluster(task: Task) -> Served:
    """Serve from the cluster."""
    cluster = open_cluster(task)
    # A snapshot's root may have gone from its parent since; and the shelf is for what lies below it.
    above = Namespace(cluster.master, task.snapshot)
    dataset, path = above.locate(task.source)
    shelf = Shelf(Path(task.shelf))
    namespace = Namespace(RememberingMaster(cluster.master, shelf), task.snapshot)
    root_id = above.walk(dataset, path).manifest.directory.dir_id
    root = {"root_id": root_id, "source": dataset.source, "attached_ns": dataset.attached_ns}
    check_root(task, root)
    for dir_id, answer in namespace.manifests({root_id, *shelf.directories()}).items():
        if isinstance(answer, Failed):  # of a mount that was here before; a lookup that needs it will say so
            _log.warning("cannot map directory %d: %s", dir_id, answer.error)
    vfs = Vfs(namespace, cluster.reader, root_id, dataset.attached_ns)
    if task.session == "kernel":  # there is a holder to put a direct one in our place
        leave_with(cluster)
    return Served(
        vfs,
        root,
        lambda: {"master_calls": cluster.master.calls, "worker_calls": cluster.pool.calls, "degraded_reads": 0},
    )


def _go_direct(task: Task) -> Served:
    settings = load_settings(**task.settings)
    limits = Limits(settings.connect_timeout_s, settings.request_timeout_s, settings.fetch_concurrency)
    pool = SourcePool(open_ufs(task.root["source"], task.options, limits))
    shelf = Shelf(Path(task.shelf))
    namespace = Namespace(ShelfMaster(shelf), task.snapshot)
    for dir_id in shelf.directories():
        with suppress(RaycacheError):  # a damaged one is missing; a lookup that needs it says so
            namespace.manifest(dir_id)
    reader = Reader(pool, DIRECT_VIEW_BYTES, settings.read_timeout_s)
    vfs = Vfs(namespace, reader, task.root["root_id"], task.root["attached_ns"])
    return Served(vfs, task.root, lambda: {"master_calls": 0, "worker_calls": 0, "degraded_reads": pool.reads})


def serve_kernel(task: Task) -> None:
    """Be ready, wait to be told, serve, say why it ended."""
    holder = Lines(socket.socket(fileno=task.control_fd))
    preparing = threading.Event()
    threading.Thread(target=_prepare_aloud, args=(holder, preparing), name="preparing", daemon=True).start()
    try:
        service = _prepare(task)
    except Exception as error:  # noqa: BLE001 - the holder waits for word, whatever went wrong
        known = isinstance(error, RaycacheError)
        if not known:
            _log.exception("cannot serve %s", task.mountpoint)
        text = str(error) if known else f"{type(error).__name__}: {error}; see {task.log}"
        preparing.set()
        holder.send({"event": "failed", "error": text, "kind": type(error).__name__ if known else "MountError"})
        return
    finally:
        preparing.set()
    orders = Orders()
    threading.Thread(target=_beat, args=(holder, service), name="beat", daemon=True).start()
    threading.Thread(target=_obey, args=(holder, service.session, orders), name="obey", daemon=True).start()
    holder.send({"event": "ready", "root": service.root})
    orders.told.wait()
    service.begin(orders.since)
    _log.info("serving %s on %s%s", task.source, task.mountpoint, " without the cluster" if task.direct else "")
    if orders.resend:
        service.session.resend()
    why = service.session.serve()
    holder.send({"event": "ended", "why": why.value})
    service.end(why)
    if why is Ended.UNMOUNTED:
        forget_record(load_settings(**task.settings).state_dir, task.mountpoint, os.getpid())
        _log.info("unmounted %s", task.mountpoint)


def _prepare(task: Task) -> Service:
    if task.mode == "w":
        from raycache.fuse import writeservice  # which most gateways have no use for

        return writeservice.wait_for_cluster(task) if task.direct else writeservice.join(task)
    served = _go_direct(task) if task.direct else _join_cluster(task)
    return ReadService(task, served)


class Orders:
    """What the holder said: whether to serve by now, and what there is to know of the predecessor."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.resend = False
        self.since = 0


def _prepare_aloud(holder: Lines, done: threading.Event) -> None:
    """A large mount takes long to map; the holder must not take that for death."""
    while not done.wait(BEAT_S) and holder.send({"event": "preparing"}):
        pass


def _beat(holder: Lines, service: Service) -> None:
    """Say often that this process lives, with what it did."""
    while holder.send({"event": "beat", "counters": service.counters(), "followed": service.followed}):
        time.sleep(BEAT_S)


def _obey(holder: Lines, session: Session[Any], orders: Orders) -> None:
    while not holder.ended:
        for command in holder.receive(wait=True):
            if command["do"] == "serve":
                orders.resend, orders.since = command["resend"], command["since"]
                orders.told.set()
            elif command["do"] == "stop":
                session.stop()
    # The holder is gone. Whoever serves goes on serving, without a successor; whoever stands by has no use.
    if not orders.told.is_set():
        os._exit(0)


def _serve_pyfuse(task: Task, answer: Any) -> None:
    settings = load_settings(**task.settings)
    try:
        _run_pyfuse(task, settings, answer)
    except RaycacheError as error:
        _reply(answer, {"error": str(error), "kind": type(error).__name__})
    except Exception as error:  # noqa: BLE001 - the parent waits for a line, whatever went wrong
        _log.exception("cannot serve %s", task.mountpoint)
        _reply(answer, {"error": f"{type(error).__name__}: {error}; see {task.log}", "kind": "MountError"})
    finally:
        Shelf(Path(task.shelf)).clear()
        forget_record(settings.state_dir, task.mountpoint, os.getpid())


def _run_pyfuse(task: Task, settings: Settings, answer: Any) -> None:
    served = _join_cluster(task)
    try:
        from raycache.fuse import pyfuse
    except ImportError as error:
        raise MountError(
            f"the pyfuse3 session needs the package pyfuse3 ({error}): apt install fuse3 libfuse3-dev pkg-config gcc, "
            "then pip install 'raycache[fuse]'"
        ) from error
    started = process_started(os.getpid()) or 0
    record = MountRecord(
        task.mountpoint,
        task.source,
        "pyfuse3",
        os.getpid(),
        started,
        task.log,
        namespace=settings.namespace,
        snapshot=task.snapshot,
    )

    def ready() -> None:
        write_record(settings.state_dir, record)
        threading.Thread(target=_publish, args=(settings.state_dir, record, served), daemon=True).start()
        _log.info("serving %s on %s", task.source, task.mountpoint)
        _reply(answer, {"pid": os.getpid(), "session": record.session})

    pyfuse.serve(served.vfs, task.mountpoint, task.source, owner=task.owner, allow_other=task.allow_other, ready=ready)
    _log.info("unmounted %s", task.mountpoint)


def _publish(state_dir: Path, record: MountRecord, served: Served) -> None:
    last: dict[str, int] = {}
    while True:
        time.sleep(PUBLISH_S)
        counters = {**asdict(served.vfs.counters), **served.calls()}
        if counters != last:
            # Whoever mounted may have added notes to the record since.
            newest = read_record(state_dir, record.mountpoint) or record
            write_record(state_dir, replace(newest, counters=counters))
            last = counters


def _reply(answer: Any, message: dict[str, Any]) -> None:
    try:
        answer.write(json.dumps(message) + "\n")
        answer.close()
    except (OSError, ValueError):
        _log.info("nobody waits for: %s", message)


if __name__ == "__main__":
    main()
