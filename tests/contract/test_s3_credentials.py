"""Where an S3 source finds its keys and endpoint, and what it says when there are none."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycache.errors import AccessDenied, InvalidInput
from raycache.testing import ObjectStoreServer
from raycache.ufs import credentials, open_ufs
from raycache.ufs.base import Limits
from raycache.ufs.credentials import capture

BUCKET = "ufs-credentials"
SHORT = Limits(connect_timeout_s=1, request_timeout_s=4)


@pytest.fixture(scope="session")
def source(object_store: ObjectStoreServer) -> str:
    object_store.create_bucket(BUCKET)
    object_store.client().put_object(Bucket=BUCKET, Key="d/f", Body=b"abc")
    object_store.client().put_object(Bucket=BUCKET, Key="odd/f\n", Body=b"abc")
    return f"s3://{BUCKET}"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No credentials, no configuration, and no metadata service."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(credentials, "_found_none_at", {})
    return tmp_path


def reads(source: str, options: dict | None) -> bool:
    ufs = open_ufs(source, options, SHORT)
    assert ufs.list_directory("d")["name"].to_pylist() == [b"f"]
    assert bytes(ufs.get("d/f", 0, 3, ufs.stat("d/f").etag)) == b"abc"
    # The second way, through s3fs.
    assert ufs.list_directory("odd")["name"].to_pylist() == [b"f\n"]
    assert bytes(ufs.get("odd/f\n", 0, 3, ufs.stat("odd/f\n").etag)) == b"abc"
    return True


def test_words_of_fsspec(object_store, source):
    options = object_store.storage_options
    key, secret, endpoint = options["key"], options["secret"], options["endpoint_url"]
    assert reads(source, {"key": key, "secret": secret, "endpoint_url": endpoint})
    assert reads(source, {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": endpoint}})
    assert reads(source, {"key": key, "secret": secret, "endpoint_url": endpoint, "client_kwargs": None, "token": None})
    assert reads(source, {"aws_access_key_id": key, "aws_secret_access_key": secret, "endpoint": endpoint})


def test_captured_environment_needs_no_environment_where_it_is_used(object_store, source):
    assert reads(source, capture("s3", None, object_store.environ))
    assert reads(source, capture("s3", {"region": "us-east-1"}, object_store.environ | {"AWS_PROFILE": "none"}))


def test_environment_of_the_process_that_opens(monkeypatch, object_store, source):
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    assert reads(source, {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_store.endpoint)
    assert reads(source, {})


def test_options_beat_the_environment(monkeypatch, object_store, source):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert reads(source, object_store.storage_options)
    assert reads(source, capture("s3", object_store.storage_options, os.environ))


@pytest.mark.parametrize("endpoint", ["plain", "services"])
@pytest.mark.parametrize("place", ["home", "AWS_CONFIG_FILE"])
@pytest.mark.parametrize("by", ["option", "environment", "default"])
def test_profile(monkeypatch, object_store, source, home, endpoint, place, by):
    directory = home / (".aws" if place == "home" else "elsewhere")
    directory.mkdir()
    section, name = ("[default]", "default") if by == "default" else ("[profile mine]", "mine")
    options = {} if by != "option" else {"profile": "mine"}
    if by == "environment":
        monkeypatch.setenv("AWS_PROFILE", "mine")
    if by == "option":
        # An explicit profile is stronger than keys in the environment, as with the AWS tools.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    where = f"endpoint_url = {object_store.endpoint}"
    (directory / "config").write_text(
        f"{section}\nregion = us-east-1\n{where}\n"
        if endpoint == "plain"
        else f"{section}\nregion = us-east-1\nservices = local\n[services local]\ns3 =\n  {where}\n"
    )
    (directory / "credentials").write_text(
        f"[{name}]\naws_access_key_id = {object_store.storage_options['key']}\n"
        f"aws_secret_access_key = {object_store.storage_options['secret']}\n"
    )
    if place != "home":
        monkeypatch.setenv("AWS_CONFIG_FILE", str(directory / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "credentials"))
    captured = capture("s3", options, os.environ)
    assert reads(source, captured)
    if place != "home":
        # Where they are used, only what was captured is known.
        monkeypatch.delenv("AWS_CONFIG_FILE")
        monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        assert reads(source, captured)


def test_profile_that_is_not_there(source):
    for options in ({"profile": "none"}, {"profile": "none", "region": "us-east-1", "endpoint_url": "http://x"}):
        with pytest.raises((InvalidInput, AccessDenied), match=r"s3://ufs-credentials: .*none"):
            open_ufs(source, options, SHORT).list_directory("")


def test_configuration_file_that_cannot_be_parsed(source, home):
    (home / ".aws").mkdir()
    (home / ".aws/config").write_text("[broken")
    with pytest.raises(InvalidInput, match=r"s3://ufs-credentials: AWS: "):
        open_ufs(source, {}, SHORT)


def test_no_credentials(source):
    ufs = open_ufs(source, {}, SHORT)
    start = time.monotonic()
    with pytest.raises(
        AccessDenied, match="s3://ufs-credentials/d: access denied: no AWS credentials found: set AWS_ACC"
    ):
        ufs.list_directory("d")
    assert time.monotonic() - start < 2


def test_no_credentials_and_a_network_that_swallows_the_question(monkeypatch, source):
    """A laptop: botocore asks for an instance role at an address where nobody answers."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")

        def refused(_: int) -> float:
            start = time.monotonic()
            with pytest.raises(AccessDenied, match="no AWS credentials found"):
                open_ufs(source, {}, SHORT).get("d/f", 0, 1, "")
            return time.monotonic() - start

        assert refused(0) < 4
        # Known by now, for a while: not two seconds for each read of each file.
        with ThreadPoolExecutor(8) as pool:
            assert max(pool.map(refused, range(16))) < 2


def test_half_a_key_in_the_environment(monkeypatch, source):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(AccessDenied, match="Partial credentials"):
        open_ufs(source, {}, SHORT).stat("d/f")


@pytest.mark.parametrize("endpoint", ["not a url", "127.0.0.1:9000", "http://", "http://a b", "s3://bucket"])
def test_endpoint_that_is_no_url(source, endpoint):
    with pytest.raises(InvalidInput, match="is no URL; write for example http://host:9000"):
        open_ufs(source, {"key": "k", "secret": "s", "endpoint_url": endpoint}, SHORT)
