"""The master, as a client sees it: the protocols of ``client`` over Ray."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray

from raycache.actors.names import MASTER
from raycache.actors.transport import ActorGone, NoAnswer, get, get_views
from raycache.actors.verblink import LinkLost, VerbLink
from raycache.actors.verbstream import VerbStream
from raycache.client.patience import ask_until_there
from raycache.client.treeapi import TreeApi
from raycache.config import Settings
from raycache.core import archive
from raycache.core.inode import Place, Verb
from raycache.core.manifest import Manifest
from raycache.core.membership import View
from raycache.core.persisting import Behind
from raycache.core.values import Dataset, Failed, ListingJob
from raycache.core.verbs import TreeVerbs
from raycache.errors import ClusterUnavailable, WorkerLost

_KEEPS_DYING = "the raycache master keeps dying; see its log under the Ray session's logs"


class RemoteMaster:
    """The client's MasterApi, ListingsApi and RetentionApi over Ray. While the master is away calls are repeated, for
    ``master_timeout_s``; one that changes something has an id that stays the same, so that a reply that was lost costs
    nothing but its repetition."""

    def __init__(self, handle: Any, settings: Settings) -> None:
        self.calls = 0
        """Calls made, for counting what a read costs; a lost update under contention does not matter."""
        self._handle = handle
        self._namespace = settings.namespace
        # A listing takes as long as the source takes.
        self._timeout_s = settings.request_timeout_s + settings.read_timeout_s
        self._patience_s = settings.master_timeout_s
        self._link = VerbLink(lambda: self._call("verbs_at"))
        self.tree: TreeApi = RemoteTree(partial(self._call, "tree"), self._link, self._timeout_s)
        """What writers see and change."""

    def verb_stream(self) -> VerbStream:
        """The tree, for one thread that does not wait."""
        return VerbStream(self._link)

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See MasterApi."""
        return self._call("attach", source, name, dict(options), _request_id())  # type: ignore[no-any-return]

    def datasets(self) -> list[Dataset]:
        """See MasterApi."""
        return self._call("datasets")  # type: ignore[no-any-return]

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        """See MasterApi. The manifest is mapped from plasma, once per node whatever the number of processes."""
        for _ in range(3):
            (ref,) = self._call("manifest", dir_id, at_least)
            try:
                return archive.from_bytes(get_views([ref], self._timeout_s, "the raycache master")[0])
            except WorkerLost:
                continue  # the master died between answering and our mapping; its successor publishes it again
        raise ClusterUnavailable(_KEEPS_DYING)

    def manifests(self, dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        """See MasterApi. Mapped as ``manifest`` does, all of them in one step."""
        for _ in range(3):
            answers = self._call("manifests", list(dir_ids))
            refs = [answer[0] for answer in answers if not isinstance(answer, Failed)]
            try:
                views = iter(get_views(refs, self._timeout_s, "the raycache master"))
            except WorkerLost:
                continue  # as in ``manifest``
            return [answer if isinstance(answer, Failed) else archive.from_bytes(next(views)) for answer in answers]
        raise ClusterUnavailable(_KEEPS_DYING)

    def changes(self, since: int) -> tuple[int, list[int]]:
        """See MasterApi."""
        return self._call("changes", since)  # type: ignore[no-any-return]

    def newest_change(self) -> int:
        """See MasterApi."""
        return self._call("newest_change")  # type: ignore[no-any-return]

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See MasterApi."""
        return self._call("set_refresh", name, every_s)  # type: ignore[no-any-return]

    def set_retention(self, name: str, changes: Mapping[str, Any]) -> Dataset:
        """See MasterApi."""
        return self._call("set_retention", name, dict(changes))  # type: ignore[no-any-return]

    def pin(self, name: str, path: str, size_bytes: int) -> Dataset:
        """See MasterApi."""
        return self._call("pin", name, path, size_bytes)  # type: ignore[no-any-return]

    def unpin(self, name: str, path: str) -> Dataset:
        """See MasterApi."""
        return self._call("unpin", name, path)  # type: ignore[no-any-return]

    def remove(self, name: str) -> None:
        """See MasterApi."""
        self._call("remove", name, _request_id())

    def refresh(self, dir_id: int) -> int:
        """See MasterApi."""
        return self._call("refresh", dir_id, _request_id())  # type: ignore[no-any-return]

    def wait_persisted(self, places: Sequence[Place], wait_s: float) -> Behind:
        """See PersistApi."""
        return self._call("wait_persisted", list(places), wait_s)  # type: ignore[no-any-return]

    def overwrite_conflicts(self, dataset: str, path: str) -> int:
        """See PersistApi."""
        return self._call("overwrite_conflicts", dataset, path)  # type: ignore[no-any-return]

    def start_listing(self, dir_id: int) -> int:
        """See ListingsApi."""
        return self._call("start_listing", dir_id)  # type: ignore[no-any-return]

    def listing(self, job_id: int, wait_s: float) -> ListingJob:
        """See ListingsApi."""
        return self._call("listing", job_id, wait_s)  # type: ignore[no-any-return]

    def cancel_listing(self, job_id: int) -> None:
        """See ListingsApi."""
        self._call("cancel_listing", job_id)

    def view(self) -> View:
        """See MasterApi."""
        return self._call("view")  # type: ignore[no-any-return]

    def drain(self, node: str, undo: bool) -> str:
        """See Fleet.drain."""
        return self._call("drain", node, undo)  # type: ignore[no-any-return]

    def settings(self) -> Settings:
        """What the running cache was made with."""
        return self._call("settings")  # type: ignore[no-any-return]

    def status(self) -> dict[str, Any]:
        """See MasterActor.status."""
        return self._call("status")  # type: ignore[no-any-return]

    def _call(self, method: str, *args: Any) -> Any:
        self.calls += 1
        return ask_until_there(lambda: self._ask(method, *args), "the raycache master", self._patience_s)

    def _ask(self, method: str, *args: Any) -> Any:
        try:
            try:
                return self._try(method, *args)
            except ActorGone as gone:
                self._find_successor(gone)
                return self._try(method, *args)
        # What is dead for good does not come back by waiting, and what is silent has had its time.
        except (ActorGone, NoAnswer) as error:
            raise ClusterUnavailable(f"{error}; try `raycache start`") from error

    def _find_successor(self, gone: ActorGone) -> None:
        """`raycache stop` and `start` put another actor under the name."""
        try:
            self._handle = ray.get_actor(MASTER, namespace=self._namespace)
        except ValueError:
            raise gone from None

    def _try(self, method: str, *args: Any) -> Any:
        return get(getattr(self._handle, method).remote(*args), self._timeout_s, "the raycache master")


class RemoteTree(TreeVerbs):
    """The client's TreeApi: over the master's socket, else over Ray."""

    def __init__(self, call: Callable[[Sequence[Verb]], list[Any | Failed]], link: VerbLink, timeout_s: float) -> None:
        self._call = call
        self._link = link
        self._timeout_s = timeout_s

    def apply(self, verbs: Sequence[Verb]) -> list[Any | Failed]:
        """See TreeApi."""
        try:
            return self._link.apply(verbs, self._timeout_s)
        except LinkLost:
            return self._call(list(verbs))  # with the same ids: nothing is done twice


def _request_id() -> str:
    return uuid.uuid4().hex
