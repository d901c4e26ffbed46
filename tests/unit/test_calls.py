"""Calls to workers that are under way: threads that make them, the first that ends, and none once Ray was left."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from raycache.actors import calls, cluster, transport
from raycache.actors.calls import CALLERS_MAX, Callers, RemoteCall, ThreadCall
from raycache.actors.cluster import RemotePool
from raycache.client.protocols import Ended
from raycache.errors import WorkerLost


def callers_alive() -> int:
    return sum(thread.name == "raycache-call" for thread in threading.enumerate())


def test_jobs_are_done_by_as_many_threads_as_are_needed_and_no_more() -> None:
    callers, before = Callers(), callers_alive()
    for number in range(20):
        assert callers.submit(lambda number=number: number).result(10) == number  # type: ignore[misc]
    assert callers_alive() - before == 1
    gate = threading.Event()
    held = [callers.submit(lambda: gate.wait(30)) for _ in range(CALLERS_MAX + 10)]
    assert callers_alive() - before == CALLERS_MAX
    gate.set()
    assert all(future.result(10) for future in held)
    again = [callers.submit(lambda: 1) for _ in range(CALLERS_MAX)]
    assert [future.result(10) for future in again] == [1] * CALLERS_MAX
    assert callers_alive() - before == CALLERS_MAX


def test_what_a_job_raises_is_for_who_waits_and_its_thread_goes_on() -> None:
    callers = Callers()

    def fail() -> None:
        raise WorkerLost("it is gone")

    failed = [callers.submit(fail) for _ in range(CALLERS_MAX + 1)]
    for future in failed:
        with pytest.raises(WorkerLost, match="gone"):
            future.result(10)
    with pytest.raises(WorkerLost, match="gone"):
        ThreadCall(callers.submit(fail)).answers()
    assert callers.submit(lambda: 1).result(10) == 1


def test_a_call_that_has_ended_is_waited_for_by_nobody() -> None:
    ended, pending = Ended([b"here"]), ThreadCall(Future())
    assert Callers().first([pending, ended], 10) == [ended]
    assert Callers().first([pending], 0) == []


class Ray:
    """``ray`` as far as it is asked here: references end when a test says so."""

    def __init__(self) -> None:
        self.ends: dict[str, threading.Event] = {}
        self.waited: list[tuple[str, ...]] = []
        self.job = "job 1"
        self.initialized = True
        self.asked: list[str] = []

    def wait(self, refs: Sequence[str], num_returns: int = 1, timeout: float = 0) -> tuple[list[str], list[str]]:
        self.waited.append(tuple(refs))
        if len(refs) == 1:
            self.ends[refs[0]].wait(timeout)
        done = [ref for ref in refs if self.ends[ref].is_set()]
        return done[:num_returns], []

    def is_initialized(self) -> bool:
        return self.initialized

    def get_runtime_context(self) -> Any:
        return self

    def get_node_id(self) -> str:
        return "here"

    def get_job_id(self) -> str:
        return self.job

    def get_actor(self, name: str, namespace: str) -> Any:
        self.asked.append(name)
        raise ValueError("no such actor")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    fake = Ray()
    monkeypatch.setattr(calls, "ray", fake)
    return fake


def remote(ray: Ray, name: str) -> RemoteCall:
    ray.ends[name] = threading.Event()
    return RemoteCall(name, lambda ref: [ref.encode()], 30)


def test_calls_over_ray_alone_are_waited_for_by_ray_in_the_callers_thread(ray: Ray) -> None:
    some = [remote(ray, "a"), remote(ray, "b")]
    ray.ends["b"].set()
    before = callers_alive()
    assert Callers().first(some, 10) == [some[1]]
    assert some[1].answers() == [b"b"]
    assert ray.waited == [("a", "b")]
    assert callers_alive() == before


def test_of_calls_of_both_kinds_the_first_that_ends_is_found(ray: Ray) -> None:
    callers, slow = Callers(), threading.Event()
    over_ray, over_flight = remote(ray, "a"), ThreadCall(callers.submit(lambda: slow.wait(30) and [b"late"]))
    assert callers.first([over_ray, over_flight], 0.01) == []
    ray.ends["a"].set()
    assert callers.first([over_ray, over_flight], 10) == [over_ray]
    assert ray.waited == [("a",)], "one thread looks for it, however often it is waited for"
    slow.set()
    assert callers.first([over_flight], 10) == [over_flight]
    assert over_flight.answers() == [b"late"]


@pytest.mark.parametrize("left", ["shut down", "another job"])
def test_no_lease_is_renewed_in_a_ray_that_this_process_has_left(
    monkeypatch: pytest.MonkeyPatch, ray: Ray, left: str
) -> None:
    monkeypatch.setattr(cluster, "ray", ray)
    monkeypatch.setattr(transport, "ray", ray)
    monkeypatch.setattr(cluster.ray, "exceptions", cluster.ray, raising=False)
    monkeypatch.setattr(ray, "RayError", RuntimeError, raising=False)
    pool = RemotePool(None, "test")  # type: ignore[arg-type]
    with pytest.raises(WorkerLost, match="not in view"):
        pool.kept("w", [b"1"], [])
    if left == "shut down":
        ray.initialized = False
    else:
        ray.job = "job 2"
    with pytest.raises(WorkerLost, match="has left"):
        pool.kept("w", [b"1"], [])
    assert ray.asked == [], "to ask for an actor would have Ray start or join a cluster"
