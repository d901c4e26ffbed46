"""raycache: a distributed cache for training data, made of Ray actors.

    ray.init()
    with raycache.mount("s3://bucket/train", "/mnt/train"):
        ...

Importing this module imports neither Ray nor FUSE nor torch: each verb brings what it needs when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, Literal, overload

from raycache import errors

if TYPE_CHECKING:
    from raycache.actors.cluster import Cluster
    from raycache.client.batch import Found
    from raycache.client.filesystem import FileSystem
    from raycache.client.loading import LoadJob
    from raycache.core.persisting import Behind
    from raycache.core.values import Buffer, Dataset, Freed, ListingJob, Stat
    from raycache.fsspec import RaycacheFileSystem
    from raycache.fuse.mount import Mount

__all__ = [
    "copy",
    "dataset",
    "disconnect",
    "drain",
    "errors",
    "exists",
    "exists_many",
    "filesystem",
    "free",
    "glob",
    "init",
    "listdir",
    "listdir_many",
    "load",
    "lookup_many",
    "makedirs",
    "mkdir",
    "mount",
    "open",
    "persist",
    "pin",
    "read_many",
    "refresh",
    "remove",
    "remove_dataset",
    "rename",
    "rmdir",
    "scandir",
    "set_dataset",
    "shutdown",
    "snapshot",
    "stat",
    "stat_many",
    "status",
    "together",
    "touch",
    "unmount",
    "unpin",
    "walk",
    "write_many",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up when asked for: importlib.metadata takes longer than all of this module
        from importlib.metadata import version

        return version("raycache")
    if name == "data":  # ``raycache.data.read_files`` without an import of its own
        return import_module("raycache.data")
    raise AttributeError(f"module 'raycache' has no attribute {name!r}")


def init(**settings: Any) -> None:
    """Connect, starting what is missing, with settings other than the defaults (see ``raycache.config.Settings``).

    Only needed to change settings: every other verb connects by itself. ``init(mem="8GB")``.
    Raises InvalidInput, ClusterUnavailable, AccessDenied.
    """
    from raycache.config import load_settings

    _cluster(load_settings(**settings))


def mount(
    source: str,
    mountpoint: str | os.PathLike[str],
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    allow_other: bool = False,
    session: str = "auto",
    snapshot: bool | int = False,
    refresh_every_s: float | None = None,
    mode: str = "r",
) -> Mount:
    """Show a source at ``mountpoint``; usable in a ``with``. See ``raycache.fuse.mount.mount``."""
    from raycache.fuse.mount import mount as make

    return make(
        source, mountpoint, name=name, options=options, allow_other=allow_other, session=session, snapshot=snapshot,
        refresh_every_s=refresh_every_s, mode=mode, settings=_settings(),
    )  # fmt: skip


def unmount(mountpoint: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """End a mount. Raises MountError when it is busy (unless ``lazy``) or not one of ours."""
    from raycache.fuse.mount import unmount as end

    end(mountpoint, lazy=lazy)


def dataset(
    name: str,
    source: str,
    options: Mapping[str, Any] | None = None,
    *,
    refresh_every_s: float | None = None,
    eviction: str | None = None,
    quota: str | int | None = None,
    ttl_s: float | None = None,
    priority: int | None = None,
    replicas: int | None = None,
    write_type: str | None = None,
) -> Dataset:
    """Name a source; its files are then ``raycache://name/path`` as well.

    ``refresh_every_s``: list what was listed of it anew so often, one second or more, 0 for never; left out, a dataset
    that is known keeps its interval, and a new one is refreshed only by ``raycache.refresh``.
    What it may keep, each left as it is when left out; to change it, call this again:
    ``eviction``: ``keep``, ``sieve`` or ``lru``; ``"default"`` for the cache's setting.
    ``quota``: most bytes in all tiers of all workers, as in ``"500GB"``; ``"default"`` for no limit.
    ``ttl_s``: a block that no worker was asked for during so many seconds is freed; 0 for never.
    ``priority``: blocks of datasets with a lower one make way for its blocks; 0 at first.
    ``replicas``: workers that hold each block; 1 at first.
    ``write_type``: when the source gets what is written: ``async`` (soon; at first), ``through`` (before a file is
    closed) or ``cache`` (never); left as it is when left out.
    Raises InvalidInput (name or source taken, or a value that cannot be meant), NotFound, AccessDenied,
    SourceUnavailable; then nothing was made.
    """
    from raycache.core.arguments import check_choices
    from raycache.ufs.registry import capture_access

    choices = {"eviction": eviction, "quota": quota, "ttl_s": ttl_s, "priority": priority, "replicas": replicas}
    chosen = check_choices(choices, refresh_every_s, write_type)
    made = _files().attach(source, name, capture_access(source, options))
    return _choose(made, chosen, refresh_every_s, write_type)


def set_dataset(
    name: str, *, refresh_every_s: float | None = None, write_type: str | None = None, **choices: Any
) -> Dataset:
    """Change what ``dataset`` chose, of a dataset that there is; what is left out stays, options and credentials too.

    ``choices``: ``eviction``, ``quota``, ``ttl_s``, ``priority``, ``replicas``. Raises InvalidInput, NotFound.
    """
    from raycache.core.arguments import check_choices

    chosen = check_choices(choices, refresh_every_s, write_type)
    return _choose(_cluster(start=False).namespace.dataset(name), chosen, refresh_every_s, write_type)


def _choose(made: Dataset, chosen: dict[str, Any], refresh_every_s: float | None, write_type: str | None) -> Dataset:
    if refresh_every_s is not None:
        made = _files().set_refresh(made.name, refresh_every_s)
    if write_type is not None:
        made = _files().set_write_type(made.name, write_type)
    return _cluster().keeping.set_retention(made.name, chosen) if chosen else made


def remove_dataset(name: str) -> None:
    """Forget a dataset: its listings, and its blocks on all workers; the source is not touched.

    Who reads it through a mount or holds listings of it gets NotFound (ENOENT) for what is not mapped; end such mounts
    first. Raises NotFound when there is no such dataset.
    """
    _cluster().keeping.remove(name)


def load(uri: str) -> LoadJob:
    """Bring a dataset (its name will do), directory or file into the cache without reading it.

    The job runs in a thread of this process, and ends with it: what was not taken by a worker by then is not loaded.
    ``progress()``, ``wait(timeout_s)``, ``cancel()``, ``report``: files, bytes, failed, beyond_bytes (no room: read
    through), seconds. Raises NotFound, InvalidInput.
    """
    return _cluster().keeping.load(uri)


def free(uri: str) -> Freed:
    """Drop the blocks of a dataset, directory or file from every tier of every worker; the source is not touched.

    A block holds several small files, which go with it. Raises NotFound, InvalidInput for what is pinned; pinned parts
    of a tree stay, and are counted.
    """
    return _cluster().keeping.free(uri)


def pin(uri: str) -> LoadJob:
    """Keep a dataset, a directory with all below it or a file from being evicted, for good, and load it (see ``load``).

    All below it is listed first. Raises NotFound; InvalidInput, with the figures, when it does not fit into what the
    workers may keep together with what is pinned already, copies counted.
    """
    return _cluster().keeping.pin(uri)


def unpin(uri: str) -> None:
    """Take a pin back: exactly what was pinned. Raises NotFound when that is not pinned."""
    _cluster().keeping.unpin(uri)


def snapshot(change: int | None = None) -> FileSystem:
    """Everything as it is now, or as it was after change number ``change``, for as long as the result is used.

    It has the reading verbs of this module: ``view.open``, ``listdir``, ``stat``, ``glob``, ``walk``, ``read_many`` ...
    ``view.change`` makes the same snapshot in another process. A directory that is listed for the first time later is
    shown as it was then; a file whose bytes changed since is an error (``errors.Changed``), never other bytes.
    Raises InvalidInput for a number that has not been reached.
    """
    return _cluster().view(True if change is None else change)


def open(
    uri: str,
    mode: str = "rb",
    *,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    write_type: str = "",
    sync: bool = False,
) -> IO[Any]:
    """Open a file of a dataset, as the builtin does, in any of its modes.

    What is written is seen when the file is closed, whole. An exception in its ``with``, or ``discard()``, leaves
    things as they were. ``write_type``: when the source gets it: ``cache`` (never), ``through`` (before it is closed)
    or ``async`` (soon); else as the dataset says. ``sync``: have it on a disk before it is closed, so that it survives
    the end of the machine; ``sync()`` of the file does so at once.

    Raises NotFound, Exists, IsADirectory, InvalidInput; closing raises NoSpace, Unavailable, IsADirectory and, with
    ``through``, what ``persist`` raises.
    """
    return _files().open(
        uri, mode, buffering=buffering, encoding=encoding, errors=errors, newline=newline, write_type=write_type,
        sync=sync,
    )  # fmt: skip


def write_many(
    files: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]], *, write_type: str = "", sync: bool = False
) -> int:
    """Write whole files, by URI; how many. The way to write many small ones: a call to the master for a thousand.

    Pairs may be made as they are asked for. Each file is seen whole or not at all; when one is refused the others of
    its thousand are written, and those after them not. ``write_type``, ``sync``: as of ``open``. Raises as
    closing does.
    """
    return _files().write_many(files, write_type=write_type, sync=sync)


def mkdir(uri: str, *, mode: int = 0o755, parents: bool = False, exist_ok: bool = False) -> None:
    """Make a directory; ``parents``: with those that are missing above it. Raises Exists, NotFound, NotADirectory."""
    _files().mkdir(uri, mode=mode, parents=parents, exist_ok=exist_ok)


def makedirs(uri: str, *, exist_ok: bool = False) -> None:
    """Make a directory with those that are missing above it. Raises Exists, NotADirectory."""
    _files().mkdir(uri, parents=True, exist_ok=exist_ok)


def rmdir(uri: str) -> None:
    """Remove an empty directory. Raises NotEmpty, NotFound, NotADirectory."""
    _files().rmdir(uri)


def remove(uri: str, *, recursive: bool = False) -> None:
    """Remove a file; ``recursive``: or a directory with all below it, in one step. Raises NotFound, IsADirectory."""
    if recursive:
        _files().remove_tree(uri)
    else:
        _files().remove(uri)


def rename(uri: str, to: str, *, replace: bool = True) -> None:
    """Give a file, or a directory with all below it, another name in its dataset, in one step.

    A file replaces a file that is there, a directory an empty one; without ``replace`` that is refused.
    Raises NotFound, Exists, NotEmpty, IsADirectory, NotADirectory, Refused (EXDEV: another dataset).
    """
    _files().rename(uri, to, replace=replace)


def together(uri: str, mode: Literal["append", "overwrite", "error"] = "error") -> AbstractContextManager[str]:
    """Write many files, from any number of processes, that are seen in one step when the ``with`` ends, or not at all.

        with raycache.together("raycache://train/features", "overwrite") as aside:
            raycache.write_many({f"{aside}/{name}": data for name, data in made})

    ``mode``: ``append`` puts what was written beside what is there, a thousand files in one step; ``overwrite``
    replaces the directory in one step; ``error`` raises Exists if there is one. An exception leaves things as they
    were.
    Raises InvalidInput, NotFound, and what ``rename`` raises.
    """
    from raycache.client.together import together as begin

    return begin(_files(), uri, mode)


def copy(uri: str, to: str, *, replace: bool = True, write_type: str = "") -> None:
    """Copy a file; within a dataset no bytes are moved. Raises NotFound, IsADirectory, Exists."""
    _files().copy(uri, to, replace=replace, write_type=write_type)


def touch(uri: str, *, exist_ok: bool = True, write_type: str = "") -> None:
    """Make an empty file, or give one that is there the time of now. Raises Exists unless ``exist_ok``."""
    _files().touch(uri, exist_ok=exist_ok, write_type=write_type)


def read_many(uris: Sequence[str]) -> list[memoryview]:
    """Whole files, in order: one call per owner for all that is not mapped here, no call for the rest."""
    return _files().read_many(uris)


def listdir(uri: str) -> list[str]:
    """Names in a directory, sorted. Raises NotFound, NotADirectory."""
    return _files().listdir(uri)


def scandir(uri: str) -> list[Stat]:
    """Entries of a directory with size, time and version, by name. Raises NotFound, NotADirectory."""
    return _files().scandir(uri)


def stat(uri: str) -> Stat:
    """What is known of a file or directory. Raises NotFound, NotADirectory."""
    return _files().stat(uri)


def exists(uri: str) -> bool:
    """Whether a known dataset has this file or directory."""
    return _files().exists(uri)


def stat_many(uris: Sequence[str]) -> list[Stat]:
    """``stat`` of each, in order; the master is asked once per level of depth at most. Raises for the first to fail."""
    return _files().stat_many(uris)


def exists_many(uris: Sequence[str]) -> list[bool]:
    """``exists`` of each, in order."""
    return _files().exists_many(uris)


def listdir_many(uris: Sequence[str]) -> list[list[str]]:
    """``listdir`` of each, in order; those never listed are listed side by side. Raises for the first that fails."""
    return _files().listdir_many(uris)


def lookup_many(uri: str, names: Sequence[str]) -> Found:
    """Names of one directory, a row each, in numpy columns ``exists``, ``is_dir``, ``size_bytes``, ``mtime_ns``.

    The way to millions of lookups per second. Raises NotFound and NotADirectory for the directory itself.
    """
    return _files().lookup_many(uri, names)


def glob(pattern: str) -> list[str]:
    """URIs that match ``*``, ``?``, ``[...]`` and ``**``, sorted."""
    return _files().glob(pattern)


def walk(uri: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk``, top down."""
    return _files().walk(uri)


@overload
def refresh(uri: str) -> int: ...


@overload
def refresh(uri: str, *, recursive: Literal[False]) -> int: ...


@overload
def refresh(uri: str, *, recursive: Literal[True]) -> ListingJob: ...


def refresh(uri: str, *, recursive: bool = False) -> int | ListingJob:
    """List a directory anew from its source; returns its version. Mounts follow within seconds (kernel session).

    ``recursive``: all that is below it, published in one step at the end; returns how many files and directories
    there are and how many directories changed. One that failed or was interrupted (Ctrl-C) goes on where it was when
    it is called again within the hour. Raises NotADirectory, what the source raises, Unavailable (cancelled).
    """
    return _cluster().refresh_tree(uri) if recursive else _files().refresh(uri)


def filesystem(snapshot: int | None = None) -> RaycacheFileSystem:
    """The fsspec file system (protocol ``raycache``), which takes the sources' own URIs too.

    ``snapshot``: a change number to show everything at, see ``raycache.snapshot``.
    """
    from raycache.fsspec import RaycacheFileSystem

    return RaycacheFileSystem(snapshot=snapshot)


def status() -> dict[str, Any]:
    """Master, workers, datasets, counters and the mounts of this node, as plain values that print as JSON."""
    from raycache.fuse.mount import list_mounts

    cluster = _cluster(start=False)
    return {**cluster.status(), "mounts": list_mounts(cluster.settings)}


def drain(node: str, *, undo: bool = False) -> str:
    """Have the worker of a node move what it holds to the others, and leave; returns the id of the Ray node.

    Returns at once: ``status()`` shows the worker as draining, and the node under ``drained`` when it is done.
    ``node``: id or name of the Ray node, or id of its worker; the beginning of an id will do. ``undo``: give the node
    its worker back. Raises NotFound, InvalidInput (several nodes are meant; the last one that does not leave).
    """
    return _cluster(start=False).master.drain(node, undo)


def disconnect() -> None:
    """Forget this process's connection; the cache goes on."""
    from raycache.actors.cluster import disconnect as forget

    forget()


def persist(
    uri: str, *, timeout_s: float | None = None, conflicts: Literal["keep", "overwrite", "discard"] = "keep"
) -> Behind:
    """Bring all that was written of a dataset, directory or file to its source now, and wait; what was behind.

    ``timeout_s``: None waits for as long as it takes, also for a source that is away. ``conflicts``: what becomes of
    files that others have changed in the source meanwhile: they stay as they are on both sides, what was written here
    is put over them, or it is lost. Raises Changed (there are such files), Unavailable (not done in time, or what is
    left fails again and again); what is left goes on by itself.
    """
    persisting = _cluster(start=False).persisting
    persisting.decide(uri, conflicts)
    return persisting.persist(uri, timeout_s)


def shutdown(wait_s: float | None = None) -> dict[str, Behind]:
    """End the cache: this node's mounts (lazily) and its actors. Memory is freed, sources are untouched.

    What sources have not got yet is waited for, ``wait_s`` seconds (the setting ``stop_wait_s`` where nothing is said).
    What is left after that stays on the disks of the workers and goes on when the cache runs again; it is returned, by
    dataset.
    """
    from raycache.fuse.mount import unmount_all

    cluster = _cluster(start=False)
    unmount_all(cluster.settings)
    left = cluster.finish(wait_s)
    cluster.stop()
    disconnect()
    return left


def _cluster(settings: Any = None, *, start: bool = True) -> Cluster:
    from raycache.actors.cluster import current

    return current(settings, start=start)


def _settings() -> Any:
    """Settings of the connection that this process has, so that a mount uses what ``init`` was given."""
    from raycache.actors.cluster import connected_settings

    return connected_settings()


def _files() -> FileSystem:
    return _cluster().files
