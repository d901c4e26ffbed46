from __future__ import annotations

from pathlib import Path

import pytest

from raycache.config import parse_tiers
from raycache.store.identity import NAME, find_identity

ONE, TWO = "1" * 32, "2" * 32


def never() -> str:
    raise AssertionError("there is an id already")


def test_an_id_is_made_once_and_found_again(tmp_path: Path) -> None:
    assert find_identity([tmp_path], lambda: ONE) == ONE
    assert find_identity([tmp_path], never) == ONE


def test_no_directory_no_id() -> None:
    assert find_identity([], lambda: ONE) is None


def test_all_directories_keep_it_so_that_it_outlives_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    assert find_identity([first, second], lambda: ONE) == ONE
    assert find_identity([second], never) == ONE
    (first / NAME).unlink()
    assert find_identity([first, second], never) == ONE
    assert (first / NAME).read_text() == ONE


def test_of_two_ids_that_of_the_first_directory_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for directory, identity in ((first, ONE), (second, TWO)):
        directory.mkdir()
        (directory / NAME).write_text(identity)
    assert find_identity([first, second], never) == ONE
    assert (second / NAME).read_text() == ONE


@pytest.mark.parametrize("torn", ["", "1111", "../../../../etc/passwd", "Z" * 32, ONE + ONE])
def test_a_torn_id_is_none(tmp_path: Path, torn: str) -> None:
    (tmp_path / NAME).write_text(torn)
    assert find_identity([tmp_path], lambda: TWO) == TWO


def test_an_id_that_cannot_be_kept_is_none(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert find_identity([tmp_path], lambda: ONE) is None


def test_the_name_of_the_node_in_the_path_of_a_tier() -> None:
    (tier,) = parse_tiers("/nvme/{node}/cache:1GB")
    assert str(tier.on("a/../b").directory) == "/nvme/a-..-b/cache"
    assert str(parse_tiers("/nvme:1GB")[0].on("a").directory) == "/nvme"
