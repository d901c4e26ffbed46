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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from raycache.client.direct import RememberingMaster, Shelf, ShelfMaster, SourcePool
from raycache.client.namespace import Namespace
from raycache.client.reader import Reader
from raycache.config import Settings, load_settings
from raycache.core.paths import RAYCACHE_SCHEME
from raycache.core.values import Failed
from raycache.errors import MountError, RaycacheError
from raycache.fuse.holder import BEAT_S
from raycache.fuse.kernel import KernelSession
from raycache.fuse.misses import Limits as MissLimits
from raycache.fuse.records import (
    MountRecord,
    forget_record,
    process_started,
    read_record,
    write_record,
)
from raycache.fuse.session import Ended
from raycache.fuse.task import Lines, Task
from raycache.fuse.vfs import Vfs
from raycache.fuse.wire import Agreed
from raycache.ufs import open_ufs
from raycache.ufs.base import Limits

PUBLISH_S = 1.0
"""How often the counters in the record of a pyfuse3 mount are brought up to date."""
FOLLOW_S = 1.0
"""How often a gateway asks the master whether a listing was refreshed: one call, whatever it holds."""
WATCH_S = 0.5
REFUSED_MAX = 4
"""A cluster whose head refuses connections this often in a row, every WATCH_S, is gone."""
DIRECT_VIEW_BYTES = 64 * 2**20
_log = logging.getLogger("raycache.gateway")


class Served(NamedTuple):
    """What a gateway answers from."""

    vfs: Vfs
    root: dict[str, Any]
    calls: Callable[[], dict[str, int]]
    """Counters of what reads cost."""


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
    """Serve from the cluster. One that was restarted has neither our master nor the source's credentials any more:
    they are made and given again, so that a mount comes back by itself."""
    from raycache.actors.cluster import Cluster

    settings = load_settings(**task.settings)
    cluster = Cluster.open(settings)
    if not task.source.startswith(f"{RAYCACHE_SCHEME}://"):
        cluster.files.attach(task.source, None, task.options)
    # A snapshot's root may have gone from its parent since; and the shelf is for what lies below it.
    above = Namespace(cluster.master, task.snapshot)
    dataset, path = above.locate(task.source)
    shelf = Shelf(Path(task.shelf))
    namespace = Namespace(RememberingMaster(cluster.master, shelf), task.snapshot)
    root_id = above.walk(dataset, path).manifest.directory.dir_id
    root = {"root_id": root_id, "source": dataset.source, "attached_ns": dataset.attached_ns}
    if task.root and task.root != root:
        raise MountError(
            f"the cache's catalog is not the one that {task.mountpoint} was mounted with, and has other inode numbers; "
            "unmount it and mount it again"
        )
    for dir_id, answer in namespace.manifests({root_id, *shelf.directories()}).items():
        if isinstance(answer, Failed):  # of a mount that was here before; a lookup that needs it will say so
            _log.warning("cannot map directory %d: %s", dir_id, answer.error)
    vfs = Vfs(namespace, cluster.reader, root_id, dataset.attached_ns)
    if task.session == "kernel":  # there is a holder to put a direct one in our place
        threading.Thread(target=_leave_with_cluster, args=(cluster.address,), name="watch", daemon=True).start()
    return Served(
        vfs,
        root,
        lambda: {"master_calls": cluster.master.calls, "worker_calls": cluster.pool.calls, "degraded_reads": 0},
    )


def _leave_with_cluster(address: str) -> None:
    """End this process soon after its cluster ended. Ray does so itself, but only after a minute of hanging calls."""
    host, _, port = address.rpartition(":")
    refused = 0
    while refused < REFUSED_MAX:
        time.sleep(WATCH_S)
        try:
            socket.create_connection((host, int(port)), timeout=WATCH_S).close()
            refused = 0
        except ConnectionRefusedError:
            refused += 1
        except OSError:
            continue  # slow is not gone
    _log.warning("the Ray cluster at %s is gone", address)
    os._exit(1)


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
        served = _go_direct(task) if task.direct else _join_cluster(task)
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
    deadline_s = load_settings(**task.settings).read_timeout_s
    misses = MissLimits(deadline_s=deadline_s)
    session = KernelSession(served.vfs, task.fd, task.owner, Agreed.from_json(task.agreed), misses)
    orders = Orders()
    followed = Followed()
    threading.Thread(target=_beat, args=(holder, served, followed), name="beat", daemon=True).start()
    threading.Thread(target=_obey, args=(holder, session, orders), name="obey", daemon=True).start()
    holder.send({"event": "ready", "root": served.root})
    orders.told.wait()
    followed.since = orders.since
    if task.direct:
        served.vfs.forget()  # what stands by for long has old listings; the shelf has the newest
    elif task.snapshot is None:
        threading.Thread(target=_follow, args=(served.vfs, session, followed), name="follow", daemon=True).start()
    _log.info("serving %s on %s%s", task.source, task.mountpoint, " without the cluster" if task.direct else "")
    if orders.resend:
        session.resend()
    why = session.serve()
    holder.send({"event": "ended", "why": why.value})
    if why is Ended.UNMOUNTED:
        Shelf(Path(task.shelf)).clear()
        forget_record(load_settings(**task.settings).state_dir, task.mountpoint, os.getpid())
        _log.info("unmounted %s", task.mountpoint)


class Orders:
    """What the holder said: whether to serve by now, and what there is to know of the predecessor."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.resend = False
        self.since = 0


class Followed:
    """Up to which change of listings the kernel was told to forget."""

    def __init__(self) -> None:
        self.since = 0


def _prepare_aloud(holder: Lines, done: threading.Event) -> None:
    """A large mount takes long to map; the holder must not take that for death."""
    while not done.wait(BEAT_S) and holder.send({"event": "preparing"}):
        pass


def _follow(vfs: Vfs, session: KernelSession, followed: Followed) -> None:
    """Move on to listings that somebody refreshed, and make the kernel forget what changed and nothing else."""
    while True:
        try:
            newest, names, inodes = vfs.follow(followed.since)
            session.invalidate(names, inodes)
            followed.since = newest  # only now: what was not forgotten must be tried again
        except Exception as error:  # noqa: BLE001 - the master is away, or the mount is ending; readers go on either way
            _log.info("cannot follow refreshes: %s", error)
        time.sleep(FOLLOW_S)


def _beat(holder: Lines, served: Served, followed: Followed) -> None:
    """Say often that this process lives, with what it did."""
    while holder.send(
        {"event": "beat", "counters": {**asdict(served.vfs.counters), **served.calls()}, "followed": followed.since}
    ):
        time.sleep(BEAT_S)


def _obey(holder: Lines, session: KernelSession, orders: Orders) -> None:
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
