"""What users do with what their sources have not got yet: wait for it, and decide conflicts.

Threading: safe. Waits end at their deadline; what is behind then goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raycache.client.namespace import Namespace
from raycache.client.protocols import PersistApi
from raycache.client.treeapi import TreeApi
from raycache.core.inode import Place
from raycache.core.persisting import Behind
from raycache.core.scheduling import THREADS, Scheduler
from raycache.errors import Changed, InvalidInput, SourceUnavailable, Unavailable

CALL_S = 5.0
"""How long one call to the master waits."""
PAUSE_S = 0.1
"""Between two calls: many that wait would otherwise keep the master busy."""


class Persisting:
    """See the module."""

    def __init__(self, namespace: Namespace, master: PersistApi, tree: TreeApi, scheduler: Scheduler = THREADS) -> None:
        self._namespace = namespace
        self._master = master
        self._tree = tree
        self._scheduler = scheduler

    def behind(self, uri: str) -> Behind:
        """What the source has not got yet of a dataset, directory or file. Raises NotFound (no such dataset)."""
        return self._master.wait_persisted([self._place(uri)], 0.0)

    def persist(
        self, uri: str, timeout_s: float | None = None, show: Callable[[Behind], object] = lambda _: None
    ) -> Behind:
        """Bring all that was written of a dataset, directory or file to its source, and return what was behind.

        ``timeout_s``: None waits for as long as it takes, and for a source that is away. ``show``: told how far it is.
        Raises Changed (the source has something else there by now: see ``overwrite`` and ``discard``), Unavailable
        (not done in time, or what is left fails again and again). What is left goes on by itself all the same.
        """
        place = self._place(uri)
        first = self._master.wait_persisted([place], 0.0)
        self.wait([place], timeout_s, show)
        return first

    def wait(
        self,
        places: Sequence[Place],
        timeout_s: float | None = None,
        show: Callable[[Behind], object] = lambda _: None,
    ) -> None:
        """Return when sources have all that was written of files, or of paths with all below them: what a write type
        ``through`` means. Raises as ``persist`` does."""
        found = self._wait(places, timeout_s, show)
        if found.paths:
            raise _stuck(found) if found.paths == found.stuck else _late(found, timeout_s or 0.0)

    def finish(self, timeout_s: float, show: Callable[[Behind], object] = lambda _: None) -> dict[str, Behind]:
        """Wait for all datasets, before the cache is ended; what is left of each after that time, or when all that is
        left is stuck. Raises Unavailable."""
        names = [dataset.name for dataset in self._master.datasets()]
        if not names:
            return {}
        left = self._wait([(name, "") for name in names], timeout_s, show)
        if not left.paths:
            return {}
        each = {name: self._master.wait_persisted([(name, "")], 0.0) for name in names}
        return {name: found for name, found in each.items() if found.paths}

    def _wait(self, places: Sequence[Place], timeout_s: float | None, show: Callable[[Behind], object]) -> Behind:
        """What is behind after that time; sooner, when nothing is or all that is left is stuck."""
        deadline = None if timeout_s is None else self._scheduler.monotonic() + timeout_s
        while True:
            left_s = CALL_S if deadline is None else deadline - self._scheduler.monotonic()
            found = self._master.wait_persisted(places, max(0.0, min(CALL_S, left_s)))
            if found.paths:
                show(found)
            if found.paths == found.stuck or (deadline is not None and self._scheduler.monotonic() >= deadline):
                return found
            self._scheduler.sleep(PAUSE_S)

    def decide(self, uri: str, how: str) -> int:
        """``overwrite`` or ``discard`` conflicts, or ``keep`` them. Raises InvalidInput for anything else."""
        if how not in ("keep", "overwrite", "discard"):
            raise InvalidInput(f"conflicts={how!r}: it is 'keep', 'overwrite' or 'discard'")
        return 0 if how == "keep" else self.overwrite(uri) if how == "overwrite" else self.discard(uri)

    def overwrite(self, uri: str) -> int:
        """Decide conflicts at and below a path for what was written through the cache; how many there were.

        It is put over what the source was found to have; what has changed there since is a conflict again.
        """
        return self._master.overwrite_conflicts(*self._place(uri))

    def discard(self, uri: str) -> int:
        """Decide conflicts at and below a path for what the source has; how many there were.

        What was written through the cache under these paths is lost.
        """
        found = self._tree.discard_conflicts(self._place(uri))
        for dir_id in {dir_id for dir_id in found if dir_id}:
            self._master.refresh(dir_id)
        return len(found)

    def _place(self, uri: str) -> tuple[str, str]:
        dataset, path = self._namespace.locate(uri)
        return dataset.name, path


def _stuck(found: Behind) -> Changed | Unavailable:
    first = found.troubles[0]
    others = f"; {found.paths - 1} more" if found.paths > 1 else ""
    if found.conflicts:
        return Changed(f"{found.conflicts} conflict(s): {first.error}{others}")
    return Unavailable(f"{first.path} is not in its source after {first.tries} tries: {first.error}{others}")


def _late(found: Behind, timeout_s: float) -> SourceUnavailable:
    why = f": {found.troubles[0].error}" if found.troubles else ""
    return SourceUnavailable(
        f"{found.paths} path(s) are not in their source after {timeout_s:g} s, and go on by themselves; what was "
        f"written is safe in the cache{why}"
    )
