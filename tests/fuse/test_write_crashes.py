"""Whoever is killed while files are written: what was acknowledged is there and whole, everything else whole or absent,
and what was deleted stays away.

RAYCACHE_CRASH_ROUNDS and RAYCACHE_CRASH_SEED: how many rounds, and of which seed; RAYCACHE_CRASH_MINUTES: after which
none is begun.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from acknowledging_writer import body

import raycache
from raycache.actors.cluster import current
from raycache.config import load_settings
from raycache.errors import Changed, NotFound
from raycache.fuse.mount import list_mounts

WRITER = Path(__file__).with_name("acknowledging_writer.py")
ROUNDS = int(os.environ.get("RAYCACHE_CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("RAYCACHE_CRASH_SEED", "1"))
MINUTES = float(os.environ.get("RAYCACHE_CRASH_MINUTES", "inf"))
RECOVER_S = 120.0
FOLLOW_S = 20.0
"""How long a reader may be behind what others write."""
VICTIMS = ("gateway", "worker", "master", "all", "mount")
"""``all``: of these, at once; ``mount``: gateway and holder, after which it is mounted again."""


class Allowed(NamedTuple):
    """What a name may hold."""

    last: int | None = None
    """The number that was acknowledged last."""
    begun: tuple[int, ...] = ()
    """All that were begun since."""
    dropping: bool = False
    dropped: bool = False
    """Whether its deletion was begun, and acknowledged."""

    def after(self, word: str, number: int) -> Allowed:
        match word:
            case "begun":
                return self._replace(begun=(*self.begun, number))
            case "done":
                return self._replace(last=number, begun=tuple(each for each in self.begun if each > number))
            case "dropping":
                return self._replace(dropping=True)
            case "dropped":
                return self._replace(dropped=True)
            case _:
                return self


class Writer:
    """A process that writes, and what it said."""

    def __init__(self, how: str, seed: int, where: str, logs: Path) -> None:
        self.how, self.seed, self.where = how, seed, where
        self._log = logs / f"{how}-{seed}.log"
        self._heard_bytes = 0
        self._said: list[tuple[str, str, int]] = []
        self._done = 0
        self._allowed: dict[str, Allowed] = {}
        with open(logs / f"{how}-{seed}.err", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(WRITER), how, str(seed), where, str(self._log)], stderr=errors, env=os.environ
            )

    def _hear(self) -> None:
        """Read on in its log, up to the last whole line."""
        if not self._log.exists():
            return
        with open(self._log, "rb") as log:
            log.seek(self._heard_bytes)
            whole = log.read().rpartition(b"\n")[0]
        if not whole:
            return
        self._heard_bytes += len(whole) + 1
        for word, name, number in (line.split() for line in whole.decode().split("\n")):
            self._said.append((word, name, int(number)))
            self._done += word == "done"
            self._allowed[name] = self._allowed.get(name, Allowed()).after(word, int(number))

    def said(self) -> list[tuple[str, str, int]]:
        self._hear()
        return self._said

    def done(self) -> int:
        self._hear()
        return self._done

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def allowed(self) -> dict[str, Allowed]:
        self._hear()
        return self._allowed


def check(writer: Writer, read: Callable[[str], bytes | None], only: set[str] | None = None) -> Counter[str]:
    """Read what a writer has written, and fail for what is lost or torn."""
    counts: Counter[str] = Counter()
    for name, allowed in writer.allowed().items():
        if only is not None and name not in only:
            continue
        deadline = time.monotonic() + FOLLOW_S
        while (found := verdict(writer, name, allowed, read(name))).startswith("wrong"):
            assert time.monotonic() < deadline, (
                f"{name} of {writer.how} {writer.seed}: {found}; {known_of(writer, name)}"
            )
            time.sleep(0.5)
        counts[found] += 1
    return counts


def verdict(writer: Writer, name: str, allowed: Allowed, found: bytes | None) -> str:
    last, begun = allowed.last, allowed.begun
    if found is None:
        return verdict_of_none(allowed)
    if allowed.dropped:
        return "wrong: it was deleted, and is there again"
    if last is not None and found == body(writer.seed, last):
        return "whole"
    if any(found == body(writer.seed, number) for number in begun):
        return "whole, not acknowledged"
    # POSIX: a file is there from open on. Who wants all or nothing moves it to its name, as the others do.
    if last is None and name.startswith("direct-") and is_part(found, body(writer.seed, begun[0])):
        return "begun"
    differ = differences(found, body(writer.seed, begun[-1])) if begun else ""
    return f"wrong: {len(found)} bytes that are none of {last}, {begun}; {differ}"


def verdict_of_none(allowed: Allowed) -> str:
    if allowed.dropping:
        return "deleted"
    return "absent" if allowed.last is None else f"wrong: {allowed.last} was acknowledged, and it is lost"


def is_part(found: bytes, wanted: bytes) -> bool:
    """Whether it is what was written so far, in whatever order: zeros where nothing was."""
    there, all_of_it = (np.frombuffer(each, np.uint8) for each in (found, wanted))
    return len(there) <= len(all_of_it) and bool(np.all((there == 0) | (there == all_of_it[: len(there)])))


def differences(found: bytes, wanted: bytes) -> str:
    """Where two files differ, in pages, for whoever looks for the cause."""
    pages = [
        at for at in range(0, max(len(found), len(wanted)), 4096) if found[at : at + 4096] != wanted[at : at + 4096]
    ]
    zeros = sum(not any(found[at : at + 4096]) for at in pages)
    return f"of {len(wanted)} wanted; {len(pages)} pages differ, {zeros} are zeros, from {pages[0]} to {pages[-1]}"


def known_of(writer: Writer, name: str) -> str:
    """What the master knows of a file, what is shown of it here, and what a process shows that has only just come."""
    cluster = current(load_settings())
    place = f"{writer.how}-{writer.seed}/{name}"
    told = cluster.master.tree.getattr(("data", place))
    shown = raycache.stat(f"raycache://data/{place}")
    cluster.namespace.forget()
    return f"the master has {told}; shown is {shown}, and looked at anew {raycache.stat(f'raycache://data/{place}')}"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def writers(cache: Any, source: Path, mountpoint: Path, logs: Path) -> Iterator[list[Writer]]:
    raycache.dataset("data", f"file://{source}")
    with raycache.mount(f"file://{source}", mountpoint, mode="w"):
        for seed in (1, 2):  # not made by the writers: while it is mounted anew there is another directory
            raycache.mkdir(f"raycache://data/mount-{seed}")
        found = [Writer("mount", seed, str(mountpoint / f"mount-{seed}"), logs) for seed in (1, 2)]
        found.append(Writer("api", 3, "raycache://data/api-3", logs))
        try:
            yield found
        finally:
            for writer in found:
                writer.end()


def status_of(mountpoint: Path) -> dict[str, Any]:
    return next(about for about in list_mounts() if about["mountpoint"] == str(mountpoint))


def pids_of(victim: str, cache: Any, mountpoint: Path) -> list[int]:
    mount = status_of(mountpoint)
    if victim == "mount":
        return [mount["holder_pid"], mount["gateway_pid"]]
    found = {"gateway": mount["gateway_pid"]}
    if victim != "gateway":
        about = cache.master.status()
        found |= {"master": about["pid"], "worker": about["workers"][0].get("pid", 0)}
    return [pid for name, pid in found.items() if victim in (name, "all") and pid]


def wait_for_more(writers: list[Writer]) -> None:
    """Until each has written something since now: everything works again."""
    deadline = time.monotonic() + RECOVER_S
    before = [writer.done() for writer in writers]
    while any(writer.done() < count + 2 for writer, count in zip(writers, before, strict=True)):
        states = [writer.process.poll() for writer in writers]
        assert not any(state is not None for state in states), f"a writer has ended: {states}"
        assert time.monotonic() < deadline, f"nothing is written any more: {[writer.said()[-3:] for writer in writers]}"
        time.sleep(0.1)


def read_by_api(writer: Writer) -> Callable[[str], bytes | None]:
    root = f"raycache://data/{writer.how}-{writer.seed}"

    def read(name: str) -> bytes | None:
        deadline = time.monotonic() + FOLLOW_S
        while True:
            try:
                with raycache.open(f"{root}/{name}") as file:
                    return bytes(file.read())
            except NotFound:
                return None
            except Changed:  # it was deleted or written anew, which is not seen here yet
                assert time.monotonic() < deadline, f"{root}/{name} has changed, and what it is now is not shown"
                time.sleep(0.5)

    return read


@pytest.mark.timeout(120 + 150 * ROUNDS)
def test_what_was_acknowledged_is_whole_whoever_is_killed(
    cache: Any, source: Path, mountpoint: Path, writers: list[Writer]
) -> None:
    generator = random.Random(SEED)
    totals: Counter[str] = Counter()
    wait_for_more(writers)
    last = time.monotonic() + MINUTES * 60
    number = 0
    while number < ROUNDS and time.monotonic() < last:
        victim = VICTIMS[number] if number < len(VICTIMS) <= ROUNDS else generator.choice(VICTIMS)
        time.sleep(generator.uniform(0, 0.5))
        for pid in pids_of(victim, cache, mountpoint):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim == "mount":
            time.sleep(0.5)
            raycache.mount(f"file://{source}", mountpoint, mode="w")
        wait_for_more(writers)
        recent = [{name for _, name, _ in writer.said()[-60:]} for writer in writers]
        for writer, names in zip(writers, recent, strict=True):
            stop(writer)
            totals += check(writer, read_by_api(writer), names)
            go_on(writer)
        totals[victim] += 1
        number += 1
        report(number, totals)
        wait_for_room(cache)
    for writer in writers:
        stop(writer)
    raycache.unmount(mountpoint, lazy=True)
    for writer in writers:
        writer.end()
        totals += check(writer, read_by_api(writer))
    cache.persisting.persist("raycache://data", 120)
    for writer in writers:
        check(writer, read_from(source / f"{writer.how}-{writer.seed}"))
    report(number, totals, "and all files compared in the end")


def wait_for_room(cache: Any) -> None:
    """Workers that are killed every few seconds never live to delete what is left over: let one do so when it must."""
    if used_share(cache) < 0.8:
        return
    deadline = time.monotonic() + RECOVER_S
    while used_share(cache) > 0.65:
        assert time.monotonic() < deadline, f"there is no more room: {cache.master.status()['workers']}"
        time.sleep(1)


def used_share(cache: Any) -> float:
    """Of the room for what is written; 0 of a worker that is starting."""
    about = cache.master.status()["workers"][0].get("segments")
    return about["used_bytes"] / about["quota_bytes"] if about else 0.0


def stop(writer: Writer) -> None:
    """So that what it says and what there is do not change while they are compared."""
    os.kill(writer.process.pid, signal.SIGSTOP)


def go_on(writer: Writer) -> None:
    os.kill(writer.process.pid, signal.SIGCONT)


def read_from(directory: Path) -> Callable[[str], bytes | None]:
    def read(name: str) -> bytes | None:
        path = directory / name
        return path.read_bytes() if path.exists() else None

    return read


def report(number: int, totals: Counter[str], ended: str = "") -> None:
    """For those who let it run for hours."""
    if path := os.environ.get("RAYCACHE_CRASH_REPORT"):
        Path(path).write_text(f"{number} rounds of seed {SEED}: {dict(totals)} {ended}\n")
