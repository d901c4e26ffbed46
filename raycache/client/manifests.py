"""Manifests that this process holds, and how it keeps them what they should be.

Responsible for: asking the master once for each directory, holding what it handed out within a bound, knowing which
directories this process wrote to (*touched*: the next look at one has it published, and takes the new manifest), taking
over what others changed. Not responsible for: datasets, paths and names (``namespace``), or when to ask what others
changed (``following``).

Threading: safe; one thread fetches a manifest, others that want the same one wait for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol

from raycache.client.protocols import MasterApi
from raycache.core.manifest import Manifest
from raycache.core.values import MANIFESTS_AT_ONCE, Failed
from raycache.errors import NotFound, RaycacheError

MANIFESTS_HELD = 16_384
"""Directories whose manifests one process keeps mapped; about 6 KB of Python each."""

TOUCHED_MAX = 65_536
"""Directories this process wrote to and has not looked at since; beyond, what it wrote into the first of them is seen
when that is published by itself."""


class Publisher(Protocol):
    """See TreeApi."""

    def publish(self, dir_ids: Sequence[int]) -> list[int]:
        """See TreeApi.publish."""
        ...


class WouldBlock(Exception):
    """Asked not to wait, and the answer is not held here."""


class Manifests:
    """See the module."""

    def __init__(self, master: MasterApi, as_of: int | None, publisher: Publisher | None) -> None:
        """``as_of``: the change number to show everything at; None shows the newest that this process was told of.
        ``publisher``: whom to ask for what this process wrote; None where it does not write."""
        self.as_of = as_of
        self._master = master
        self._publisher = publisher
        self._lock = threading.Lock()
        self._flights: dict[int, Future[Manifest]] = {}
        self._held: OrderedDict[int, Manifest] = OrderedDict()
        self._touched: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._touches = 0
        self._since = 0

    def manifest(self, dir_id: int, *, wait: bool = True) -> Manifest:
        """The manifest of a directory. Raises WouldBlock when it is not held and ``wait`` is False."""
        before = self._touches
        while True:
            with self._lock:
                held = self._current(dir_id)
                if held is not None:
                    return held
                if not wait:
                    raise WouldBlock
                flight = self._flights.get(dir_id)
                mine = flight is None
                if flight is None:
                    flight = self._flights[dir_id] = Future()
            if mine:
                self._fetch(dir_id, flight)
            # Those who wait get the answer, or the error, of the one call; it has a deadline.
            found = flight.result()
            if mine or self._touched.get(key_of(found), before + 1) > before:
                return found

    def held(self, dir_id: int) -> Manifest | None:
        """The manifest of a directory, if it is held here."""
        with self._lock:
            return self._held.get(dir_id)

    def current(self, dir_id: int) -> Manifest | None:
        """The manifest of a directory, if it is held here and this process has not written to it since."""
        with self._lock:
            return self._current(dir_id)

    def manifests(self, dir_ids: Iterable[int]) -> dict[int, Manifest | Failed]:
        """Manifests of several directories: those not held in one call to the master per MANIFESTS_AT_ONCE of them."""
        found: dict[int, Manifest | Failed] = {}
        flights: dict[int, Future[Manifest]] = {}
        mine: list[int] = []
        before = self._touches
        with self._lock:
            for dir_id in dict.fromkeys(dir_ids):
                held = self._current(dir_id)
                if held is not None:
                    found[dir_id] = held
                    continue
                if dir_id not in self._flights:
                    self._flights[dir_id] = Future()
                    mine.append(dir_id)
                flights[dir_id] = self._flights[dir_id]
        self._fetch_many(mine)
        for dir_id, flight in flights.items():
            try:
                landed = flight.result()
                is_behind = self._touched.get(key_of(landed), before + 1) <= before  # another's flight, begun earlier
                found[dir_id] = self.manifest(dir_id) if is_behind else landed
            except RaycacheError as error:
                found[dir_id] = Failed(error)
        return found

    def renewed(self, dir_id: int) -> Manifest:
        """The manifest of a directory, after all that was changed in it was published."""
        with self._lock:
            held = self._held.get(dir_id)
            if held is not None and self._publisher is not None:
                self._touches += 1
                self._touch(*key_of(held))
        return self.manifest(dir_id)

    def _fetch(self, dir_id: int, flight: Future[Manifest]) -> None:
        try:
            held = self.held(dir_id)
            if held is None:
                held = self._hold(dir_id, self._master.manifest(dir_id))
            flight.set_result(self._with_mine([held])[0])
        except BaseException as error:  # noqa: BLE001 - whatever it is, others wait for it too; `result` raises it
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[dir_id]

    def _fetch_many(self, dir_ids: Sequence[int]) -> None:
        """Land the flights of these directories. A call that fails fails them all: the next would wait as long."""
        failure: BaseException | None = None
        for start in range(0, len(dir_ids), MANIFESTS_AT_ONCE):
            part = dir_ids[start : start + MANIFESTS_AT_ONCE]
            answers: Sequence[Manifest | Failed] = ()
            try:
                answers = self._ask_for(part) if failure is None else ()
            except BaseException as error:  # noqa: BLE001 - as in _fetch
                failure = error
            for at, dir_id in enumerate(part):
                self._land(dir_id, failure or answers[at])

    def _ask_for(self, dir_ids: Sequence[int]) -> Sequence[Manifest | Failed]:
        found: dict[int, Manifest | Failed] = {id: held for id in dir_ids if (held := self.held(id)) is not None}
        missing = [dir_id for dir_id in dir_ids if dir_id not in found]
        if missing:
            found.update(zip(missing, self._master.manifests(missing), strict=True))
        good = [each for each in found.values() if isinstance(each, Manifest)]
        found.update((each.directory.dir_id, each) for each in self._with_mine(good))
        return [found[dir_id] for dir_id in dir_ids]

    def _with_mine(self, manifests: Sequence[Manifest]) -> list[Manifest]:
        """Of directories that this process wrote to, what they are now; the others as they are."""
        with self._lock:
            touched = {key: self._touched[key] for key in map(key_of, manifests) if key in self._touched}
        if not touched or self._publisher is None:
            return list(manifests)
        mine = [each.directory for each in manifests if key_of(each) in touched]
        versions = self._publisher.publish([each.dir_id for each in mine])
        newest = {each.dir_id: version for each, version in zip(mine, versions, strict=True)}
        behind = [each.dir_id for each in mine if newest[each.dir_id] > each.version]
        newer = dict(zip(behind, self._master.manifests(behind), strict=True)) if behind else {}
        found: list[Manifest] = []
        for each in manifests:
            new = newer.get(each.directory.dir_id, each)
            if isinstance(new, Failed):
                raise new.error
            found.append(self._hold(each.directory.dir_id, new))
        with self._lock:
            for key, touch in touched.items():
                if self._touched.get(key) == touch:
                    del self._touched[key]
        return found

    def _land(self, dir_id: int, answer: Manifest | Failed | BaseException) -> None:
        with self._lock:
            flight = self._flights[dir_id]
        try:
            if isinstance(answer, Manifest):
                flight.set_result(self._hold(dir_id, answer))
            else:
                flight.set_exception(answer.error if isinstance(answer, Failed) else answer)
        except BaseException as error:  # noqa: BLE001 - as in _fetch
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[dir_id]

    def _touch(self, dataset: str, path: str) -> None:
        self._touched[dataset, path] = self._touches
        self._touched.move_to_end((dataset, path))
        while len(self._touched) > TOUCHED_MAX:
            self._touched.popitem(last=False)

    def begin_following(self) -> None:
        """What changed until now is not asked for by ``catch_up``. Call it before anything is held."""
        self._since = self._master.newest_change()

    def catch_up(self) -> bool:
        """See following.Follower."""
        newest, _ = self.follow(self._since)
        self._since = max(newest, self._since)  # another thread may have been quicker
        return self._since > 0

    def at_least(self, change: int) -> None:
        """Show everything as it was after a change, or later."""
        if self.as_of is None and self._since < change:
            self.catch_up()

    def _current(self, dir_id: int) -> Manifest | None:
        """With the lock held: what is held of a directory, unless this process wrote to it since."""
        held = self._held.get(dir_id)
        if held is None or (self._touched and key_of(held) in self._touched):
            return None
        self._held.move_to_end(dir_id)
        return held

    def forget(self) -> None:
        """Hold nothing any more: each directory is asked for again."""
        with self._lock:
            self._held.clear()
            self._replaced()

    def forget_below(self, dataset: str, path: str) -> None:
        """Hold neither a directory nor any below it: each is asked for again."""
        with self._lock:
            for dir_id, manifest in list(self._held.items()):
                about = manifest.directory
                if about.dataset == dataset and (not path or f"{about.path}/".startswith(f"{path}/")):
                    del self._held[dir_id]

    def follow(self, since: int) -> tuple[int, list[tuple[Manifest | None, Manifest]]]:
        """Take over what others refreshed: of the directories held here, the old manifest and the new one.

        ``since``: what the last call returned first. One call to the master when nothing changed, and one per
        MANIFESTS_AT_ONCE of what did. The old one is None
        where the new one was held already: what was told of it before is then not known. As of a change nothing moves.
        """
        if self.as_of is not None:
            return since, []
        newest, dir_ids = self._master.changes(since)
        replaced: list[tuple[Manifest | None, Manifest]] = []
        with self._lock:
            known = [(each, self._held.get(each)) for each in dir_ids if each in self._held or each in self._flights]
        for start in range(0, len(known), MANIFESTS_AT_ONCE):
            part = known[start : start + MANIFESTS_AT_ONCE]
            answers = self._master.manifests([dir_id for dir_id, _ in part])
            for (dir_id, held), new in zip(part, answers, strict=True):
                if isinstance(new, Failed):
                    self._not_followed(dir_id, new)
                    continue
                self._hold(dir_id, new)
                is_newer = held is not None and new.directory.version > held.directory.version
                replaced.append((held if is_newer else None, new))
        return newest, replaced

    def _not_followed(self, dir_id: int, failed: Failed) -> None:
        """A directory may have been removed meanwhile; whatever else it is, the next round tries it again."""
        if not isinstance(failed.error, NotFound):
            raise failed.error
        with self._lock:
            self._held.pop(dir_id, None)
            self._replaced()

    def _replaced(self) -> None:
        """With the lock held: a directory that was held may not be where it was any more."""

    def _hold(self, dir_id: int, manifest: Manifest) -> Manifest:
        """Keep what the master handed out, as it is to be shown; returns that."""
        if self.as_of is not None:
            manifest = manifest.as_of(self.as_of)
        with self._lock:
            there = self._held.get(dir_id)
            if there is not None and there.directory.version > manifest.directory.version:
                return manifest  # an answer that was overtaken
            if there is not None:
                self._replaced()
            self._held[dir_id] = manifest
            self._held.move_to_end(dir_id)
            while len(self._held) > MANIFESTS_HELD:
                self._held.popitem(last=False)
        return manifest


def key_of(manifest: Manifest) -> tuple[str, str]:
    """Dataset and path of a directory."""
    return manifest.directory.dataset, manifest.directory.path
