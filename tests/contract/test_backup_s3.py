"""Backups to an object store, as the commands make them, with and without a running master."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from raycache.meta.catalog import Catalog
from raycache.testing import ObjectStoreServer


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with a catalog in use."""
    monkeypatch.setenv("RAYCACHE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RAYCACHE_NAMESPACE", "prod")
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "catalog-prod.db"


def test_backup_lose_the_node_restore(bucket: str, s3_env: ObjectStoreServer, state: Path, cli: Any) -> None:
    catalog = Catalog.open(state)
    catalog.add_dataset("train", "s3://bucket/train", 5)
    catalog.number_directories("train", [f"directory-{number}" for number in range(20_000)])
    made = json.loads(cli("backup", f"s3://{bucket}/backups", "--json").stdout)
    assert made["namespace"] == "prod"
    objects = s3_env.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert [f"s3://{bucket}/{entry['Key']}" for entry in objects] == [made["uri"]]
    assert objects[0]["Size"] == made["size_bytes"]
    assert cli("fsck").returncode == 0, "beside whoever has it open"
    catalog.close()
    for file in state.parent.iterdir():
        os.unlink(file)
    for source in (f"s3://{bucket}/backups", made["uri"]):
        done = cli("restore", "--force", source)
        assert (done.returncode, made["uri"] in done.stdout) == (0, True), done.stderr
        restored = Catalog.open(state)
        assert restored.counts("train") == (20_001, 0)
        restored.close()
    refused = cli("restore", made["uri"])
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    secret = s3_env.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert all(secret not in file.read_bytes() for file in state.parent.rglob("*") if file.is_file())


def test_a_bucket_that_is_not_there(bucket: str, state: Path, cli: Any) -> None:
    Catalog.open(state).close()
    done = cli("restore", "--force", f"s3://{bucket}-none/x")
    assert done.returncode == 1
    assert f"s3://{bucket}-none" in done.stderr
    assert "Traceback" not in done.stderr
    assert cli("fsck").returncode == 0


def test_fsck_says_what_is_wrong_and_repairs(state: Path, cli: Any) -> None:
    assert "there is no catalog" in cli("fsck").stderr
    state.write_bytes(b"not SQLite" * 1000)
    found = cli("fsck", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["problems"][0]["kind"] == "file"
    told = cli("fsck").stdout
    assert "raycache fsck --repair" in told
    mended = cli("fsck", "--repair", RAYCACHE_BACKUP_TO="s3://bucket/backups")
    assert mended.returncode == 0
    assert "raycache restore --force s3://bucket/backups" in mended.stdout
    assert cli("fsck").returncode == 0
