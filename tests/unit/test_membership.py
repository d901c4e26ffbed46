from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.core.membership import SILENT_S, Membership, Node, Report, View
from raycache.core.placement import owners, preference, rank
from raycache.core.values import Worker

GIB = 2**30
BLOCKS = [hashlib.md5(str(number).encode()).digest() for number in range(4000)]


def report(
    identity: str | None = None, capacity: int = GIB, number: int = 0, moving: int = 0, born: str = "a"
) -> Report:
    return Report(identity, born, GIB, GIB, number, moving)


def node(name: str, about: Report | None = None, draining: bool = False) -> Node:
    return Node(name, draining, about)


def ids(view: View) -> list[str]:
    return [worker.worker_id for worker in view.workers]


def test_nodes_join_when_their_worker_reports() -> None:
    members = Membership(View())
    assert members.step([node("n1"), node("n2")], {}, 0) == View()
    view = members.step([node("n1", report()), node("n2")], {}, 1)
    assert (view.number, ids(view)) == (1, ["n1"])
    view = members.step([node("n1", report()), node("n2", report("disk"))], {}, 2)
    assert (view.number, ids(view)) == (2, ["disk", "n1"])
    assert members.step([node("n2", report("disk")), node("n1", report())], {}, 3) is view


def test_a_worker_with_an_id_of_its_own_is_the_same_on_another_node() -> None:
    members = Membership(View())
    members.step([node("n1", report("disk"))], {}, 0)
    view = members.step([node("n9", report("disk", born="b"))], {}, 1)
    assert (ids(view), view.workers[0].node_id) == (["disk"], "n9")


def test_a_copied_disk_does_not_take_an_id_from_who_has_it() -> None:
    members = Membership(View())
    members.step([node("n5", report("disk"))], {}, 0)
    view = members.step([node("n5", report("disk")), node("n1", report("disk"))], {}, 1)
    assert {worker.node_id: worker.worker_id for worker in view.workers} == {"n5": "disk", "n1": "n1"}


def test_a_silent_worker_stays_for_a_while_and_a_dead_node_goes_at_once() -> None:
    members = Membership(View())
    first = members.step([node("n1", report()), node("n2", report())], {}, 0)
    assert members.step([node("n1", report()), node("n2")], {}, SILENT_S) is first
    assert ids(members.step([node("n1", report()), node("n2")], {}, SILENT_S + 1)) == ["n1"]
    members.step([node("n1", report()), node("n2", report())], {}, 60)
    assert ids(members.step([node("n1", report())], {}, 61)) == ["n1"]


def test_a_new_process_is_a_new_view() -> None:
    members = Membership(View())
    first = members.step([node("n1", report())], {}, 0)
    assert members.step([node("n1", report(born="b"))], {}, 1).number == first.number + 1


def test_numbers_go_on_after_a_restart_of_the_master() -> None:
    members = Membership(View())
    for round_ in range(5):
        view = members.step([node("n1", report(born=str(round_)))], {}, round_)
    successor = Membership(view)
    assert successor.step([node("n1", report(born="4"))], {}, 0) is view
    assert successor.step([node("n1", report(born="5"))], {}, 1).number == view.number + 1


def test_a_master_that_restarts_while_a_worker_is_silent_keeps_it() -> None:
    view = Membership(View()).step([node("n1", report()), node("n2", report())], {}, 0)
    assert Membership(view).step([node("n1", report()), node("n2")], {}, 1000) == view


def test_drained_is_who_knows_that_it_leaves_and_has_nothing_more_to_move() -> None:
    members = Membership(View())
    members.step([node("n1", report()), node("n2", report())], {}, 0)
    view = members.step([node("n1", report()), node("n2", report(), draining=True)], {}, 1)
    assert [worker.draining for worker in view.workers] == [False, True]
    stays = node("n1", report(number=view.number))
    assert members.drained([stays, node("n2", report(number=view.number - 1), draining=True)]) == []
    assert members.drained([stays, node("n2", report(number=view.number, moving=1), draining=True)]) == []
    assert members.drained([stays, node("n2", None, draining=True)]) == []
    assert members.drained([stays, node("n2", report(number=view.number), draining=True)]) == ["n2"]


def test_the_last_one_is_never_drained() -> None:
    members = Membership(View())
    view = members.step([node("n1", report(), draining=True)], {}, 0)
    assert members.drained([node("n1", report(number=view.number), draining=True)]) == []


@pytest.mark.parametrize("stays", [None, node("n1"), node("n3", report())], ids=["died", "silent", "new"])
def test_nobody_is_drained_while_who_has_got_the_blocks_does_not_answer(stays: Node | None) -> None:
    members = Membership(View())
    members.step([node("n1", report()), node("n2", report())], {}, 0)
    view = members.step([node("n1", report()), node("n2", report(), draining=True)], {}, 1)
    leaves = node("n2", report(number=view.number), draining=True)
    assert members.drained([leaves] if stays is None else [stays, leaves]) == []


def test_copies_of_datasets_are_part_of_the_view() -> None:
    members = Membership(View())
    view = members.step([node("n1", report())], {"one": 1, "two": 2}, 0)
    assert (view.copies("one"), view.copies("two"), view.copies("other"), view.copies(None)) == (1, 2, 1, 2)
    assert members.step([node("n1", report())], {"two": 3}, 1).number == view.number + 1


def fleet(capacities: list[int]) -> list[Worker]:
    return [Worker(f"{number:032x}", capacity * GIB) for number, capacity in enumerate(capacities)]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=8), st.data())
def test_a_join_and_a_loss_move_the_ideal_share_and_nothing_else(capacities: list[int], data: st.DataObject) -> None:
    workers = fleet(capacities)
    gone = data.draw(st.sampled_from(workers))
    rest = [worker for worker in workers if worker != gone]
    moved = 0
    for block in BLOCKS:
        with_it, without = rank(block, workers)[0], rank(block, rest)[0]
        if with_it == gone:
            moved += 1
        else:
            assert with_it == without
    share = gone.capacity_bytes / sum(worker.capacity_bytes for worker in workers)
    expected = share * len(BLOCKS)
    assert abs(moved - expected) <= 5 * (expected * (1 - share)) ** 0.5 + 1


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=3, max_size=8), st.integers(2, 3), st.data())
def test_of_several_copies_a_loss_moves_only_those_that_are_lost(
    capacities: list[int], replicas: int, data: st.DataObject
) -> None:
    workers = fleet(capacities)
    gone = data.draw(st.sampled_from(workers))
    rest = [worker for worker in workers if worker != gone]
    for block in BLOCKS[:500]:
        before, after = owners(block, workers, replicas), owners(block, rest, replicas)
        assert [worker for worker in before if worker != gone] == after[: len(before) - (gone in before)]


def test_who_leaves_is_asked_last_and_owns_nothing() -> None:
    workers = fleet([1, 2, 3])
    leaving = replace(workers[2], draining=True)
    for block in BLOCKS[:200]:
        assert rank(block, [*workers[:2], leaving])[-1] == leaving
        assert owners(block, [*workers[:2], leaving], 3) == rank(block, workers[:2])
    assert owners(BLOCKS[0], [leaving], 1) == []


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_copy_on_the_readers_node_is_read_else_the_first(replicas: int) -> None:
    workers = fleet([1, 1, 1])
    for block in BLOCKS[:50]:
        ranked = rank(block, workers)
        for place, worker in enumerate(ranked):
            here = [replace(each, local=each == worker) for each in workers]
            chosen = preference(block, here, replicas)[0]
            assert chosen.worker_id == (worker if place < replicas else ranked[0]).worker_id
