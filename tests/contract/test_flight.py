"""Ranges over Arrow Flight, server and client, without Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import pytest

from raycache.actors import flight
from raycache.actors.flight import ByteServer, Ranges
from raycache.core.membership import View
from raycache.core.values import Buffer, Failed, Fetch, Filed, Sealed, Worker
from raycache.errors import Changed

DATA = bytes(range(256)) * 1000


def fetch(offset: int, length: int) -> Fetch:
    return Fetch(b"block", b"plan", offset, length, whole=False)


def answer(requests: Sequence[Fetch], timeout_s: float) -> tuple[int, float, list[Buffer | Failed]]:
    assert 0 < timeout_s <= 5
    return (
        7,
        1.5,
        [
            Failed(Changed("gone")) if request.offset < 0 else memoryview(DATA)[request.offset :][: request.length]
            for request in requests
        ],
    )


def view_of(server: ByteServer, *, local: bool = False) -> View:
    return View(1, (Worker("w", 1, local=local, bytes_at=server.address),))


def serve(monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> ByteServer:
    monkeypatch.setattr(flight, "cluster_token", lambda: token)
    server = ByteServer("127.0.0.1", answer)
    server.start()
    # One in 150 that asks at once is refused, or reset: gRPC listens a moment after the port is known. Clients ask a
    # worker when the master knows it, and through Ray where that fails.
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            break
        except OSError:
            time.sleep(0.001)
    return server


def test_bytes_compare_as_bytes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch) as server:
        ranges = Ranges()
        _, ((data,), source_s) = ranges.receive(ranges.ask(view_of(server), {"w": [fetch(200, 20)]}, 5))["w"]
        assert (data, source_s) == (DATA[200:220], 1.5)


def ask(ranges: Ranges, view: View, *requests: Fetch) -> dict[str, tuple[int, list[Any]]]:
    found = ranges.receive(ranges.ask(view, {"w": requests}, 5))
    return {
        name: (number, [one if isinstance(one, Failed | Sealed | Filed) else bytes(one) for one in got.answers])
        for name, (number, got) in found.items()
    }


def test_ranges_come_in_order_with_the_number_of_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch) as server:
        found = ask(Ranges(), view_of(server), fetch(10, 300), fetch(0, 0), fetch(255_990, 10))
        assert found == {"w": (7, [DATA[10:310], b"", DATA[-10:]])}


def test_an_error_is_an_answer_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch) as server:
        _, (first, second) = ask(Ranges(), view_of(server), fetch(-1, 1), fetch(1, 1))["w"]
        assert isinstance(first.error, Changed)
        assert second == DATA[1:2]


def test_without_the_token_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch, "secret") as server:
        assert ask(Ranges(), view_of(server), fetch(0, 1))["w"] == (7, [DATA[:1]])
        for wrong in (None, "secre", "secret2"):
            monkeypatch.setattr(flight, "cluster_token", lambda wrong=wrong: wrong)
            ranges = Ranges()
            assert ask(ranges, view_of(server), fetch(0, 1)) == {}
            assert ranges.failures == 1


def test_who_cannot_be_reached_is_left_to_ray_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch)
    ranges = Ranges()
    assert ask(ranges, view_of(server), fetch(0, 1)).keys() == {"w"}
    server.shutdown()
    began = time.monotonic()
    assert ask(ranges, view_of(server), fetch(0, 1)) == {}
    assert time.monotonic() - began < 5
    assert ranges.ask(view_of(server), {"w": [fetch(0, 1)]}, 5) == {}
    assert ranges.failures == 1


def test_a_worker_of_this_node_is_not_asked_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch) as server:
        assert Ranges().ask(view_of(server, local=True), {"w": [fetch(0, 1)]}, 5) == {}
