"""The worker actor: a shell around ``store.BlockStore``. One per node, detached, owner of its node's blocks."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import ray

import raycache.ufs.object  # noqa: F401 - imported now, not in the first read
from raycache.actors.flight import ByteServer
from raycache.actors.names import MASTER, METHOD_TIMEOUT_S
from raycache.actors.peers import PeerSegments, RemotePeers
from raycache.actors.plasma import OwnStore, Plasma
from raycache.actors.remotemaster import RemoteTree
from raycache.actors.segments import WireBytes, to_wire
from raycache.actors.transport import get
from raycache.actors.verblink import VerbLink
from raycache.client.patience import ask_until_there
from raycache.config import Settings
from raycache.core.inode import Verb
from raycache.core.membership import Report, View
from raycache.core.persisting import Task
from raycache.core.repeating import keep_doing
from raycache.core.retention import Retention
from raycache.core.segment import Home, SegmentRange, SourceRange
from raycache.core.values import Buffer, Failed, Fetch, Filed, Freed
from raycache.core.waits import ReaderWaits, WaitTable
from raycache.errors import WorkerLost
from raycache.store.accounts import Accounts
from raycache.store.blocks import Answer, BlockStore
from raycache.store.carrying import ExtentReader
from raycache.store.contents import WrittenFiles
from raycache.store.directory import open_directories
from raycache.store.fetchqueue import SourceLimits
from raycache.store.identity import find_identity
from raycache.store.lettinggo import LOOK_S, LettingGo
from raycache.store.moving import Mover
from raycache.store.peers import About, Peers
from raycache.store.persisting import Persister
from raycache.store.pressure import MemoryWatch
from raycache.store.segments import NAME as SEGMENTS
from raycache.store.segments import SegmentStore, claim_directory
from raycache.store.tiers import TEND_BLOCKS, TEND_S, Kept, Tiers
from raycache.ufs.base import Limits
from raycache.ufs.sources import SourceAccess, Sources

WireAnswer = tuple[Any, tuple[tuple[int, int], ...]] | pickle.PickleBuffer | Filed | Failed
"""A Kept block crosses as ``([ref], holes)``: in a list, so that Ray passes the ref and not the block. Ranges cross as
PickleBuffers, which spares a copy at either end."""


class WorkerActor:
    """See BlockStore and Mover."""

    def __init__(self, settings: Settings, quota_bytes: int, node_name: str) -> None:
        self._settings = settings
        limits = Limits(settings.connect_timeout_s, settings.request_timeout_s, settings.fetch_concurrency)
        sources = Sources(self._access, limits)
        own = [tier.on(node_name) for tier in settings.tiers]
        accounts = Accounts(settings.eviction, wait=True)
        directories = open_directories(own, settings.namespace, accounts, wait=False)
        usable = [directory.path for directory in directories if directory.in_service]
        identity = find_identity(usable, _fresh_id)
        node_id: str = ray.get_runtime_context().get_node_id()
        below = [directory / SEGMENTS for directory in usable]
        if not below:
            base = settings.state_dir / f"{SEGMENTS}-{quote(settings.namespace, safe='')}"
            self._claim = claim_directory(base, _fresh_id, node_id)
            if self._claim is not None:
                below, identity = [self._claim.path], self._claim.path.name
        self._segments = SegmentStore(below, settings.write_quota, node_id=node_id)
        self._segments.open()
        self._sources = sources
        tiers = Tiers(Plasma(), quota_bytes, directories, accounts)
        calls = RemotePeers(settings.namespace)
        peers = Peers(calls, incarnation=uuid.uuid4().hex)
        link = VerbLink(lambda: self._ask_master("verbs_at"))
        tree = RemoteTree(self._ask_tree, link, METHOD_TIMEOUT_S)
        written = WrittenFiles(
            tree.contents, self._segments.read, PeerSegments(peers, calls, tree.segment_places), sources,
            settings.request_timeout_s,
        )  # fmt: skip
        self._store = BlockStore(
            tiers, sources, settings.fetch_concurrency, peers=peers, written=written,
            limits=SourceLimits(settings.source_requests, settings.source_bytes_per_s),
        )  # fmt: skip
        self._watch = MemoryWatch(tiers, OwnStore().figures)
        self._tiers = tiers
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        bytes_at = ByteServer(host, self._ranges)
        self._mover = Mover(self._store, tiers, peers, identity, bytes_at.address)
        letting_go = LettingGo(self._segments, tree)
        self._persister = Persister(
            self._exchange, sources, ExtentReader(self._segments.read, sources), self._segments,
            settings.persist_concurrency,
        )  # fmt: skip
        self._waits, self._waits_lock = WaitTable(), threading.Lock()
        self._store.start()
        self._mover.start()
        keep_doing(lambda: tiers.tend(TEND_BLOCKS), TEND_S, "tend", "cannot drop what is not to be kept")
        keep_doing(letting_go.step, LOOK_S, "let-go", "cannot look after segments")
        self._persister.start()
        bytes_at.start()
        self._watch.start()
        self._ask_for_a_round()

    def fetch(self, requests: Sequence[Fetch], timeout_s: float) -> tuple[int, float, list[WireAnswer]]:
        """See BlockStore.fetch; with the number of the view that clients should have."""
        answers, source_s = self._store.fetch(requests, timeout_s)
        return self._mover.settled, source_s, [_to_wire(answer) for answer in answers]

    def _ranges(self, requests: Sequence[Fetch], timeout_s: float) -> tuple[int, float, list[Buffer | Failed]]:
        plain = [replace(each, whole=False, named=False) for each in requests]
        answers, source_s = self._store.fetch(plain, timeout_s)
        return self._mover.settled, source_s, [answer for answer in answers if not isinstance(answer, Kept | Filed)]

    def hint(self, packed_plans: Sequence[bytes]) -> None:
        """See BlockStore.hint."""
        self._store.hint(packed_plans)

    def read_for(self, request: Fetch, timeout_s: float) -> WireAnswer | None:
        """See Mover.read_for."""
        answer = self._mover.read_for(request, timeout_s)
        return None if answer is None else _to_wire(answer)

    @ray.method(concurrency_group="control")
    def load(self, packed_plans: Sequence[bytes]) -> list[str]:
        """See BlockStore.load."""
        return self._store.load(packed_plans)

    @ray.method(concurrency_group="control")
    def free(self, dataset: str, path: str, blocks: Collection[bytes] | None = None) -> Freed:
        """See Tiers.free."""
        return self._tiers.free(dataset, path, blocks)

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """See BlockStore.status."""
        about = {"pid": os.getpid(), "segments": self._segments.status(), "persisting": self._persister.status()}
        return {**about, **self._store.status(), **self._watch.status()}

    @ray.method(concurrency_group="control")
    def note_waits(self, told: Sequence[ReaderWaits]) -> None:
        """See WaitTable.note."""
        with self._waits_lock:
            self._waits.note(told)

    @ray.method(concurrency_group="control")
    def waits(self) -> list[ReaderWaits]:
        """See WaitTable.all."""
        with self._waits_lock:
            return self._waits.all()

    @ray.method(concurrency_group="control")
    def kept(self, block_ids: Sequence[bytes], read: Sequence[bytes]) -> list[bool]:
        """See Tiers.renew."""
        return self._tiers.renew(block_ids, read)

    @ray.method(concurrency_group="control")
    def view(self) -> View:
        """See Mover.view."""
        return self._mover.view

    @ray.method(concurrency_group="control")
    def configure(self, view: View, me: str | None, settled: int, retentions: Mapping[str, Retention] | None) -> Report:
        """See BlockStore.configure and Mover.adopt. ``retentions``: None while this worker's share is not known."""
        if retentions is not None:
            self._store.configure(retentions)
        self._segments.worker_id = self._persister.worker_id = me or self._segments.worker_id
        worker = view.find(me or "")
        self._segments.leaving = worker is not None and worker.draining
        return self._mover.adopt(view, me, settled)

    @ray.method(concurrency_group="control")
    def offer(self, giver: str, block_ids: Sequence[bytes]) -> list[bool]:
        """See Mover.offered."""
        return self._mover.offered(giver, block_ids)

    @ray.method(concurrency_group="control")
    def segment_home(self) -> Home:
        """See SegmentStore.home."""
        return self._segments.home()

    @ray.method(concurrency_group="lending")
    def read_segments(self, ranges: Sequence[SegmentRange]) -> list[WireBytes]:
        """See SegmentStore.read."""
        return to_wire(self._segments.read(ranges))

    def read_source(self, ranges: Sequence[SourceRange]) -> list[WireBytes]:
        """See Sources.read."""
        return to_wire(self._sources.read(ranges))

    def make_segment(self) -> str:
        """See SegmentStore.make."""
        return self._segments.make()

    def resume_segment(self, segment: str) -> int:
        """See SegmentStore.resume."""
        return self._segments.resume(segment)

    def write_segment(self, segment: str, offset: int, data: Any) -> None:
        """See SegmentStore.write."""
        self._segments.write(segment, offset, memoryview(data).cast("B"))

    def sync_segment(self, segment: str) -> None:
        """See SegmentStore.sync."""
        self._segments.sync(segment)

    def hold_segments(self, segments: Sequence[str]) -> None:
        """See SegmentStore.hold."""
        self._segments.hold(segments)

    def release_segment(self, segment: str, discard: bool) -> None:
        """See SegmentStore.release."""
        self._segments.release(segment, discard)

    @ray.method(concurrency_group="lending")
    def lend(self, block_id: bytes) -> WireAnswer | None:
        """See BlockStore.lend."""
        found = self._store.lend(block_id)
        return None if found is None else _to_wire(found)

    @ray.method(concurrency_group="taking")
    def take(self, giver: str, block: About, timeout_s: float) -> bool:
        """See BlockStore.take."""
        return self._store.take(giver, block, timeout_s)

    def _ask_for_a_round(self) -> None:
        """Have the master look at its workers now, and introduce this one: its next round may be two seconds away."""
        with suppress(ValueError, ray.exceptions.RayError):  # there is none just now: the next one begins with a round
            ray.get_actor(MASTER, namespace=self._settings.namespace).view.remote()

    def _access(self, dataset: str) -> SourceAccess:
        return self._ask_master("access", dataset)  # type: ignore[no-any-return]

    def _ask_tree(self, verbs: Sequence[Verb]) -> list[Any | Failed]:
        return self._ask_master("tree", verbs)  # type: ignore[no-any-return]

    def _ask_master(self, method: str, *args: Any) -> Any:
        def ask() -> Any:
            try:
                master: Any = ray.get_actor(MASTER, namespace=self._settings.namespace)
            except ValueError as error:
                raise WorkerLost("the raycache master is gone") from error
            return get(getattr(master, method).remote(*args), METHOD_TIMEOUT_S, "the raycache master")

        return ask_until_there(ask, "the raycache master", METHOD_TIMEOUT_S)

    def _exchange(self, *call: Any) -> list[Task]:
        master: Any = ray.get_actor(MASTER, namespace=self._settings.namespace)
        tasks: list[Task] = get(master.persist.remote(*call), METHOD_TIMEOUT_S, "the raycache master")
        return tasks


def _fresh_id() -> str:
    return uuid.uuid4().hex


def _to_wire(answer: Answer) -> WireAnswer:
    if isinstance(answer, Kept):
        return [answer.handle], answer.holes
    return answer if isinstance(answer, Filed | Failed) else pickle.PickleBuffer(answer)
