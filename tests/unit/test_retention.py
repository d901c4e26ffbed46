"""What a dataset may keep: values that are checked, kept in the catalog, and pins that are weighed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from raycache.core.retention import PINS_MAX, Retention
from raycache.errors import InvalidInput, NotFound
from raycache.meta.catalog import Catalog
from raycache.meta.metadata import Metadata
from raycache.ufs.base import Limits


@pytest.mark.parametrize(
    "wrong",
    [
        {"eviction": "mru"}, {"quota": "many"}, {"quota": -1}, {"ttl_s": 0.5}, {"ttl_s": float("nan")}, {"ttl_s": "1d"},
        {"priority": 1.5}, {"priority": True}, {"priority": 10_000}, {"replicas": 0}, {"replicas": 99}, {"size": 1},
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong)).split("_")[0] if "quota" not in wrong else "quota|size"):
        Retention().changed(wrong)


def test_it_survives_json_and_pickle_and_takes_changes_back():
    made = Retention().changed({"eviction": "lru", "quota": "10MiB", "ttl_s": 60, "priority": -1, "replicas": 2})
    made = Retention.from_json({**made.as_json(), "pins": ["a", "\udcff"], "pinned_blocks": ["00ff"]})
    assert (made.quota_bytes, made.pins, made.pinned_blocks) == (10 << 20, ("a", "\udcff"), {b"\x00\xff"})
    assert Retention.from_json(json.loads(json.dumps(made.as_json()))) == made
    assert pickle.loads(pickle.dumps(made)) == made
    back = made.changed({"eviction": "default", "quota": "default"})
    assert (back.eviction, back.quota_bytes, back.ttl_s) == (None, None, 60)
    assert made.share(1, 3).quota_bytes == (10 << 20) // 3
    assert back.share(1, 3) == back


def test_a_pin_holds_what_is_at_and_below_it():
    made = Retention(pins=("a/b", "c"), pinned_blocks=frozenset({b"1"}))
    assert all(made.holds(directory, b"2") for directory in ("a/b", "a/b/c", "c", "c/d/e"))
    assert not any(made.holds(directory, b"2") for directory in ("", "a", "a/bc", "cc", "d"))
    assert made.holds("d", b"1")
    assert Retention(pins=("",)).holds("", b"2")


@pytest.fixture
def metadata(tmp_path: Path) -> Metadata:
    """Dataset ``d`` with ``a/x`` and ``a/y``, in blocks of 2,000 bytes."""
    (tmp_path / "a").mkdir()
    for name in "xy":
        (tmp_path / "a" / name).write_bytes(b"1" * 1500)
    metadata = Metadata(Catalog.open(tmp_path / "catalog"), {}, Limits(), 2000, lambda: 5)
    metadata.attach(str(tmp_path), "d", {})
    return metadata


def test_choices_last_and_go_with_the_dataset(metadata: Metadata, tmp_path: Path):
    assert metadata.datasets()[0].retention == Retention()
    metadata.retentions.set("d", {"quota": 5000, "priority": 3})
    made = metadata.retentions.set("d", {"eviction": "sieve"})
    assert made.retention == Retention("sieve", 5000, priority=3)
    with pytest.raises(NotFound, match="nobody"):
        metadata.retentions.set("nobody", {"priority": 1})
    metadata.retentions.pin("d", "a", 1000, 9000)
    again = Catalog.open(tmp_path / "catalog")
    assert again.dataset("d").retention.pins == ("a",)
    assert metadata.status()[0]["pinned_bytes"] == 1000
    assert again.directory(made.root_id)[0].retention == again.dataset("d").retention
    metadata.remove("d")
    assert metadata.retentions.all() == {}
    with pytest.raises(NotFound):
        metadata.remove("d")
    metadata.attach(str(tmp_path), "d", {})
    assert metadata.datasets()[0].retention == Retention()


def test_pins_are_refused_with_the_figures_when_they_do_not_fit(metadata: Metadata, monkeypatch: pytest.MonkeyPatch):
    pins = metadata.retentions
    metadata.retentions.set("d", {"replicas": 2})
    pins.pin("d", "a", 4000, 9000)
    with pytest.raises(InvalidInput, match=r"3,000 bytes in 2 replica.*14,000.*9,000"):
        pins.pin("d", "b", 3000, 9000)
    pins.pin("d", "a/x", 4000, 9000)  # below another pin: not counted twice
    pins.pin("d", "a", 4500, 9000)
    with pytest.raises(InvalidInput, match="replica"):
        pins.set("d", {"replicas": 3})
    with pytest.raises(InvalidInput, match="pinned"):
        pins.set("d", {"quota": 5000})
    pins.set("d", {"quota": 9000})
    with pytest.raises(InvalidInput, match="quota is 9,000"):
        pins.pin("d", "b", 1, 90_000)
    with pytest.raises(NotFound, match="raycache://d/a is"):
        pins.unpin("d", "a/y")
    pins.unpin("d", "a")
    pins.unpin("d", "a/x")
    assert metadata.datasets()[0].retention.pins == ()
    pins.set("d", {"quota": "default"})
    monkeypatch.setattr("raycache.meta.retentions.PINS_MAX", 2)
    for number in range(2):
        pins.pin("d", str(number), 0, 0)
    with pytest.raises(InvalidInput, match="2 pins, the most"):
        pins.pin("d", "more", 0, 0)
    with pytest.raises(InvalidInput, match="at most"):
        Retention(pins=tuple(map(str, range(PINS_MAX + 1))))


def test_a_pinned_file_is_known_by_its_blocks_also_when_it_changes(metadata: Metadata, tmp_path: Path):
    root = metadata.manifest(metadata.datasets()[0].root_id)
    directory = root.child_id(root.find(b"a"))
    metadata.retentions.pin("d", "a/x", 1500, 9000)
    assert metadata.retentions.all()["d"].pinned_blocks == frozenset()  # not listed yet
    manifest = metadata.manifest(directory)
    first = metadata.retentions.all()["d"].pinned_blocks
    assert first == {manifest.block_id(manifest.pieces(manifest.find(b"x"), 0, 1)[0].block)}
    (tmp_path / "a" / "x").write_bytes(b"22")
    metadata.refresh(directory)
    second = metadata.retentions.all()["d"].pinned_blocks
    assert len(second) == 1
    assert second != first
    metadata.retentions.pin("d", "a", 1500, 9000)
    metadata.retentions.unpin("d", "a/x")
    assert metadata.retentions.all()["d"].pinned_blocks == frozenset()
