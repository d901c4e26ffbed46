"""A proxy in front of a store's endpoint: it counts what passes and breaks on request.

It speaks plain HTTP/1.1 with keep-alive, one thread and one upstream connection per client connection, and passes
heads on byte for byte: S3 signatures cover the Host header that the client sent.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from random import Random
from types import TracebackType
from urllib.parse import urlsplit

from raycache.errors import InvalidInput
from raycache.testing.wire import Ended, Stream, error_response

_HOST = "127.0.0.1"
_CONNECTIONS_MAX = 256
_REQUESTS_KEPT = 10_000
_HOLD_MAX_S = 120.0
FAULTS: tuple[int | str, ...] = (500, 503, "silence", "refused", "cut", "lost")
"""What ``CountingProxy.fail_randomly`` draws from."""


class Gate:
    """Holds the requests whose path contains a text until it is released. Thread-safe."""

    def __init__(self, path_substring: str) -> None:
        self.path_substring = path_substring
        self._changed = threading.Condition()
        self._arrived = 0
        self._open = False

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def arrived(self) -> int:
        """How many requests have come to this gate."""
        return self._arrived

    @property
    def released(self) -> bool:
        """Whether requests pass."""
        return self._open

    def release(self) -> None:
        """Let the held requests go on, and all that come later."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def wait_arrived(self, count: int = 1, timeout_s: float = 10.0) -> bool:
        """Wait until ``count`` requests have come here. False when they have not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self._arrived >= count, timeout_s)

    def pass_through(self) -> bool:
        """Arrive, and wait for the release. False when it did not come (for the proxy)."""
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._open, _HOLD_MAX_S)


class CountingProxy:
    """A context manager: clients that use ``endpoint`` are counted and meet the faults that are set. Thread-safe."""

    def __init__(self, upstream: str, timeout_s: float = 60.0) -> None:
        """``upstream``: an ``http://host:port``. ``timeout_s``: how long either side may be silent.

        Raises InvalidInput when ``upstream`` is no such endpoint.
        """
        parts = urlsplit(upstream)
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidInput(f"{upstream!r} is not an endpoint such as http://127.0.0.1:8333")
        self._upstream = (parts.hostname, parts.port or 80)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._requests: deque[tuple[str, str]] = deque(maxlen=_REQUESTS_KEPT)
        self._bytes_out = 0
        self._fails: tuple[int, int] = (0, 503)
        self._cuts = 0
        self._delay_s = 0.0
        self._down = False
        self._gates: list[Gate] = []
        self._fault_rate, self._random, self._silence_s = 0.0, Random(0), 0.0
        self._faults: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._port = 0
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()

    def __enter__(self) -> CountingProxy:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``, valid once started."""
        return f"http://{_HOST}:{self._port}"

    def start(self) -> None:
        """Listen on a free port."""
        listener = socket.create_server((_HOST, 0), backlog=128)
        self._listener, self._port = listener, listener.getsockname()[1]
        self._stopping.clear()
        self._run(partial(self._accept, listener), "raycache-proxy")

    def stop(self) -> None:
        """Close every connection and end every thread. Does nothing when not started."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._stopping.set()
        self._close(listener)
        self.heal()
        self._close_connections()
        deadline = time.monotonic() + 5
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # What passed

    def counts(self) -> dict[str, int]:
        """Requests by method since the start or ``reset``; those that a fault stopped count too."""
        with self._lock:
            return dict(self._counts)

    def requests(self) -> list[tuple[str, str]]:
        """Method and path with query of the latest requests, oldest first."""
        with self._lock:
            return list(self._requests)

    @property
    def bytes_out(self) -> int:
        """Bytes of response bodies sent to clients."""
        with self._lock:
            return self._bytes_out

    def faults(self) -> dict[str, int]:
        """How often each random fault was met."""
        with self._lock:
            return dict(self._faults)

    def reset(self) -> None:
        """Count from nothing. Faults stay: see ``heal``."""
        with self._lock:
            self._counts.clear()
            self._requests.clear()
            self._bytes_out = 0

    # Faults

    def fail_next(self, count: int, status: int = 503) -> None:
        """Answer the next ``count`` requests with ``status`` instead of passing them on."""
        with self._lock:
            self._fails = (count, status)

    def fail_randomly(self, rate: float, seed: int = 0, silence_s: float = 3.0) -> None:
        """Let each request meet a fault with this probability, one of FAULTS: an answer of 500 or 503; silence for
        ``silence_s``; a connection that ends before the request was passed on, in the middle of its body (or, where it
        has none, of the answer's), or after it was done and before the answer."""
        with self._lock:
            self._fault_rate, self._random, self._silence_s = rate, Random(seed), silence_s

    def cut_bodies(self, count: int) -> None:
        """Close the connection in the middle of the next ``count`` response bodies."""
        with self._lock:
            self._cuts = count

    @property
    def delay_s(self) -> float:
        """How long each request waits before it is passed on."""
        return self._delay_s

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        self._delay_s = seconds

    @property
    def down(self) -> bool:
        """While true, connections are closed at once, those that are open too."""
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        with self._lock:
            self._down = down
        if down:
            self._close_connections()

    def hold(self, path_substring: str) -> Gate:
        """Hold requests whose path (with query) contains the text, until the gate is released."""
        gate = Gate(path_substring)
        with self._lock:
            self._gates = [other for other in self._gates if not other.released] + [gate]
        return gate

    def heal(self) -> None:
        """End every fault and release every gate."""
        with self._lock:
            self._fails, self._cuts, self._delay_s, self._down = (0, 503), 0, 0.0, False
            self._fault_rate = 0.0
            gates, self._gates = self._gates, []
        for gate in gates:
            gate.release()

    # Threads and sockets

    def _run(self, target: Callable[[], None], name: str) -> None:
        def body() -> None:
            try:
                target()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, name=name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if not self._adopt(client):
                # A reset instead of a polite end: what a client of a dead server gets.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                continue
            self._run(partial(self._serve, client), "raycache-proxy-connection")

    def _adopt(self, connection: socket.socket) -> bool:
        """Keep a connection among those that ``stop`` and ``down`` close. False when it may not be opened."""
        connection.settimeout(self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            if self._down or self._stopping.is_set() or len(self._sockets) >= 2 * _CONNECTIONS_MAX:
                return False
            self._sockets.add(connection)
            return True

    def _close(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on it; close alone does not
        connection.close()

    def _close_connections(self) -> None:
        with self._lock:
            connections = list(self._sockets)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # One connection

    def _serve(self, client: socket.socket) -> None:
        route = _Route(self._connect, self._close)
        try:
            stream = Stream(client)
            # Closed, silent, refused, or not HTTP (ValueError): every such end is the same to a proxy.
            with contextlib.suppress(Ended, OSError, ValueError):
                while self._exchange(stream, route):
                    pass
        finally:
            route.close()
            self._close(client)

    def _connect(self) -> socket.socket:
        upstream = socket.create_connection(self._upstream, timeout=self._timeout_s)
        if not self._adopt(upstream):
            upstream.close()
            raise Ended
        return upstream

    def _exchange(self, client: Stream, route: _Route) -> bool:
        """One request and its response. False when the connection ends after it."""
        request = client.head()
        if request is None:
            return False
        method, path, *_ = request.start.split(" ")
        status = self._meet_faults(method, path)
        fault = self._draw_fault() if status is None else None
        if fault == "silence":
            self._stopping.wait(self._silence_s)
        if fault in ("silence", "refused"):
            raise Ended
        status = int(fault) if fault in (500, 503) else status
        if "100-continue" in request.headers.get("expect", ""):
            # Answered here, so that a held or failed request does not wait for the server's word.
            client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            request = request.without("expect")
        body = client.body(request.framing())
        if status is not None:
            for _ in body:
                pass
            client.send(error_response(status, method))
            return request.keeps_alive()
        try:
            upstream = route.open()
        except OSError:
            client.send(error_response(502, method, close=True))
            return False
        upstream.send(request.raw)
        for piece in body:
            if fault == "cut":
                upstream.send(piece[: len(piece) // 2])
                raise Ended
            upstream.send(piece)
        if fault == "lost":
            response = upstream.head()
            for _ in upstream.body(response.framing(response_to=method)) if response is not None else ():
                pass
            raise Ended
        return self._respond(client, upstream, route, method, fault == "cut") and request.keeps_alive()

    def _respond(self, client: Stream, upstream: Stream, route: _Route, method: str, cut: bool) -> bool:
        response = upstream.head()
        while response is not None and response.status() // 100 == 1:
            response = upstream.head()
        if response is None:
            raise Ended
        framing = response.framing(response_to=method)
        cut = (cut or self._take_cut()) if framing != 0 else False
        # A body of known length is cut at its half, another one after its first piece.
        left = framing // 2 if cut and isinstance(framing, int) else None
        client.send(response.raw)
        for piece in upstream.body(framing):
            part = piece if left is None else piece[:left]
            client.send(part)
            with self._lock:
                self._bytes_out += len(part)
            if left is not None:
                left -= len(part)
            if cut and not left:
                raise Ended
        keeps_alive = response.keeps_alive() and framing != "close"
        if not keeps_alive:
            route.close()
        return keeps_alive

    def _meet_faults(self, method: str, path: str) -> int | None:
        """Count a request and let it wait where it has to. The status to answer with when it is to fail."""
        with self._lock:
            self._counts[method] += 1
            self._requests.append((method, path))
            gates = [gate for gate in self._gates if gate.path_substring in path]
            delay_s = self._delay_s
        for gate in gates:
            if not gate.pass_through():
                raise Ended
        if delay_s and self._stopping.wait(delay_s):
            raise Ended
        with self._lock:
            left, status = self._fails
            if left <= 0:
                return None
            self._fails = (left - 1, status)
            return status

    def _draw_fault(self) -> int | str | None:
        with self._lock:
            if not self._fault_rate or self._random.random() >= self._fault_rate:
                return None
            fault = self._random.choice(FAULTS)
            self._faults[str(fault)] += 1
            return fault

    def _take_cut(self) -> bool:
        with self._lock:
            if self._cuts <= 0:
                return False
            self._cuts -= 1
            return True


class _Route:
    """The upstream connection that belongs to one client connection, opened anew when the server closed it."""

    def __init__(self, connect: Callable[[], socket.socket], close: Callable[[socket.socket], None]) -> None:
        self._connect = connect
        self._close = close
        self._stream: Stream | None = None

    def open(self) -> Stream:
        """The connection. Raises OSError when the server does not answer."""
        if self._stream is not None and self._stream.is_stale():
            self.close()
        if self._stream is None:
            self._stream = Stream(self._connect())
        return self._stream

    def close(self) -> None:
        """End it."""
        if self._stream is not None:
            self._close(self._stream.connection)
            self._stream = None
