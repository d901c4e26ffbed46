"""Ranges between nodes over Arrow Flight: many small reads are several times as fast as through Ray, see RESULTS.md.

Whole blocks go through Ray, which is faster there. A ticket is the call's requests; the answer is one record batch for
each, and the number of the view that clients should have. Every worker listens on its node's address, at a port that it
reports to the master. Where Ray asks for a token, so does this; where it does not, who reaches the port may do what who
reaches Ray's may: tickets are pickles.
"""

from __future__ import annotations

import hmac
import logging
import pickle
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import flight

from raycache.actors.transport import cluster_token
from raycache.core.membership import View
from raycache.core.values import Buffer, Failed, Fetch, Fetched, Served, Worker
from raycache.errors import WorkerLost

AVOID_S = 30.0
"""How long a worker that did not answer this way is asked through Ray."""
CALLS_MAX = 64
"""Calls that a worker answers at once; more wait for their turn, within their deadline."""
_SCHEMA = pa.schema(
    [("bytes", pa.large_binary()), ("error", pa.binary()), ("view", pa.int64()), ("source_s", pa.float64())]
)
_BEARER = "Bearer "
_log = logging.getLogger("raycache.client")
Answers = Callable[[Sequence[Fetch], float], tuple[int, float, Sequence[Buffer | Failed]]]
"""Number of the view, seconds that the source took, and the answers."""


class ByteServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers reads of ranges. ``start`` it; it ends with its process."""

    def __init__(self, host: str, answer: Answers) -> None:
        token = cluster_token()
        guard = {} if token is None else {"token": _Guard(token)}
        super().__init__(f"grpc://{_bracketed(host)}:0", middleware=guard)
        self.address = f"grpc://{_bracketed(host)}:{self.port}"
        self._answer = answer
        self._turns = threading.BoundedSemaphore(CALLS_MAX)

    def start(self) -> None:
        """Serve in the background."""
        threading.Thread(target=self.serve, name="flight", daemon=True).start()

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.GeneratorStream:
        """The answers to the requests in a ticket. Arrow has checked the token before."""
        requests, timeout_s = pickle.loads(ticket.ticket)
        if not self._turns.acquire(timeout=timeout_s):
            raise flight.FlightTimedOutError(f"{CALLS_MAX} calls are under way")
        try:
            number, source_s, answers = self._answer(requests, timeout_s)
        finally:
            self._turns.release()
        return flight.GeneratorStream(_SCHEMA, (_batch(number, source_s, answer) for answer in answers))


class _Guard(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses calls without the cluster's token."""

    def __init__(self, token: str) -> None:
        self._expected = (_BEARER + token).encode()

    def start_call(self, info: Any, headers: Any) -> None:
        """See ServerMiddlewareFactory."""
        given = next(iter(headers.get("authorization", [])), "")
        if not hmac.compare_digest(given.encode(), self._expected):
            raise flight.FlightUnauthenticatedError("the token of the Ray cluster is missing or wrong")


class ByteClient:
    """Calls to one worker's ByteServer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = flight.connect(address)
        token = cluster_token()
        self._headers = [] if token is None else [(b"authorization", (_BEARER + token).encode())]

    def ask(self, requests: Sequence[Fetch], timeout_s: float) -> Any:
        """Begin a call; ``receive`` its answers. Raises WorkerLost."""
        # The worker gives up at timeout_s and says why; only one that is stuck or dead needs the extra second.
        options = flight.FlightCallOptions(timeout=timeout_s + 1, headers=self._headers)
        try:
            return self._client.do_get(flight.Ticket(pickle.dumps((list(requests), timeout_s))), options)
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            raise self._lost(error) from error

    def receive(self, under_way: Any, count: int) -> tuple[int, Served]:
        """That many answers, in order, and the number of the view. Raises WorkerLost."""
        number, source_s = 0, 0.0
        answers: list[Fetched] = []
        try:
            for chunk in under_way:
                number, source_s, answer = _read(chunk.data)
                answers.append(answer)
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            raise self._lost(error) from error
        if len(answers) != count:
            raise WorkerLost(f"{self.address} sent {len(answers)} answers to {count} requests")
        return number, Served(answers, source_s)

    def _lost(self, error: Exception) -> WorkerLost:
        return WorkerLost(f"{self.address} did not send bytes: {str(error).splitlines()[0]}")


class Asked(NamedTuple):
    """A call under way."""

    client: ByteClient
    call: Any
    answers: int


class Ranges:
    """Calls for ranges to many workers, side by side. One that could not be reached is left to Ray for a while."""

    def __init__(self) -> None:
        self.failures = 0
        self._lock = threading.Lock()
        self._clients: dict[str, ByteClient] = {}
        """By address; one that fails is let go of, so that there are no more than workers."""
        self._avoid: dict[str, float] = {}

    def ask(self, view: View, calls: Mapping[str, Sequence[Fetch]], timeout_s: float) -> dict[str, Asked]:
        """Begin the calls that can be made this way; those that are under way, by worker id."""
        under_way: dict[str, Asked] = {}
        for worker_id, requests in calls.items():
            worker = view.find(worker_id)
            if worker is None or worker.local or not worker.bytes_at:
                continue
            if self._avoid.get(worker.bytes_at, 0.0) > time.monotonic():
                continue
            try:
                client = self._client(worker)
                under_way[worker_id] = Asked(client, client.ask(requests, timeout_s), len(requests))
            except WorkerLost as lost:
                self._failed(worker.bytes_at, lost)
        return under_way

    def receive(self, under_way: Mapping[str, Asked]) -> dict[str, tuple[int, Served]]:
        """The answers of those that gave any."""
        found: dict[str, tuple[int, Served]] = {}
        for worker_id, asked in under_way.items():
            try:
                found[worker_id] = asked.client.receive(asked.call, asked.answers)
            except WorkerLost as lost:
                self._failed(asked.client.address, lost)
        return found

    def _client(self, worker: Worker) -> ByteClient:
        with self._lock:
            client = self._clients.get(worker.bytes_at)
            if client is None:
                client = self._clients[worker.bytes_at] = ByteClient(worker.bytes_at)
            return client

    def _failed(self, address: str, lost: WorkerLost) -> None:
        _log.warning("%s; asking through Ray", lost)
        with self._lock:
            self.failures += 1
            self._clients.pop(address, None)
            now = time.monotonic()
            self._avoid = {each: until for each, until in self._avoid.items() if until > now}
            self._avoid[address] = now + AVOID_S


def _batch(number: int, source_s: float, answer: Buffer | Failed) -> pa.RecordBatch:
    """One row: the bytes without a copy, or an error."""
    error = pickle.dumps(answer) if isinstance(answer, Failed) else None
    data = pa.py_buffer(b"" if isinstance(answer, Failed) else answer)
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(struct.pack("=qq", 0, data.size)), data])
    rest = pa.array([error], pa.binary()), pa.array([number], pa.int64()), pa.array([source_s], pa.float64())
    return pa.record_batch([column, *rest], schema=_SCHEMA)


def _read(batch: pa.RecordBatch) -> tuple[int, float, Fetched]:
    number, source_s = batch.column(2)[0].as_py(), batch.column(3)[0].as_py()
    if batch.column(1).null_count == 0:
        failed: Failed = pickle.loads(batch.column(1)[0].as_py())
        return number, source_s, failed
    data = batch.column(0).buffers()[2]
    return number, source_s, memoryview(data).cast("B") if data is not None else b""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
