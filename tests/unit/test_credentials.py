from __future__ import annotations

import pytest

from raycache.errors import AccessDenied, InvalidInput
from raycache.ufs import credentials
from raycache.ufs.credentials import capture, s3_config, s3_credential_provider

ENVIRON = {
    "AWS_ACCESS_KEY_ID": "env-key",
    "AWS_SECRET_ACCESS_KEY": "env-secret",
    "AWS_SESSION_TOKEN": "env-token",
    "AWS_ENDPOINT_URL": "http://env",
    "AWS_ENDPOINT_URL_S3": "http://env-s3",
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-2",
    "AWS_LAMBDA_SOMETHING": "x",
    "GOOGLE_APPLICATION_CREDENTIALS": "/key.json",
    "GOOGLE_CLOUD_PROJECT": "project",
    "AZURE_STORAGE_ACCOUNT_NAME": "account",
    "AZURE_CONFIG_DIR": "/azure",
    "HOME": "/home/me",
    "DATABASE_PASSWORD": "secret",
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch, tmp_path):
    for name in ENVIRON:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_each_family_takes_its_own_variables_and_no_others():
    assert capture("s3", None, ENVIRON) == dict(list(ENVIRON.items())[:7])
    assert capture("gs", None, ENVIRON) == {"GOOGLE_APPLICATION_CREDENTIALS": "/key.json"}
    assert capture("az", None, ENVIRON) == {"AZURE_STORAGE_ACCOUNT_NAME": "account"}
    assert capture("hdfs", {"user": "me"}, ENVIRON) == {"user": "me"}
    assert capture("file", None, ENVIRON) == {}


def test_options_are_put_into_the_words_of_aws():
    options = {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"region_name": "r", "endpoint_url": "http://e"},
        "token": None,
    }
    assert capture("s3", options, {}) == {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "r",
        "AWS_ENDPOINT_URL": "http://e",
    }


def test_key_never_goes_with_the_token_of_another():
    found = capture("s3", {"key": "k", "secret": "s"}, ENVIRON)
    assert (found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]) == ("k", "s")
    assert "AWS_SESSION_TOKEN" not in found


def test_profile_is_stronger_than_keys_in_the_environment():
    found = capture("s3", {"profile": "mine"}, ENVIRON)
    assert found["AWS_PROFILE"] == "mine"
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} & set(found)


def test_endpoint_and_region_of_the_options_are_the_strongest():
    found = capture("s3", {"endpoint_url": "http://mine", "region": "here"}, ENVIRON)
    assert s3_config(found) == {"endpoint": "http://mine", "region": "here", "skip_signature": False}


def test_capturing_twice_changes_nothing():
    once = capture("s3", {"key": "k", "secret": "s", "endpoint": "http://e", "anon": False}, ENVIRON)
    assert capture("s3", once, {}) == once


def test_config(monkeypatch):
    assert s3_config({}) == {"region": "us-east-1", "skip_signature": False}
    assert s3_config(capture("s3", None, ENVIRON)) == {
        "region": "eu-west-1",
        "endpoint": "http://env-s3",
        "skip_signature": False,
    }
    assert s3_config({"anon": True, "region": "x"}) == {"region": "x", "skip_signature": True}
    # obstore would prefer this variable to the endpoint that it is given.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://other")
    assert s3_config({"endpoint": "http://mine", "region": "x"})["aws_endpoint_url_s3"] == "http://mine"


@pytest.mark.parametrize("options", [{"keey": "x"}, {"client_kwargs": {"verify": False}}, {"AWS_BUCKET": "x"}])
def test_unknown_option(options):
    for call in (lambda: capture("s3", options, {}), lambda: s3_config(options)):
        with pytest.raises(
            InvalidInput, match=r"S3 takes no option (keey|verify|AWS_BUCKET); it takes .*endpoint_url, key"
        ):
            call()


@pytest.mark.parametrize("options", [{"key": "k"}, {"secret": "s"}])
def test_half_a_key(options):
    with pytest.raises(InvalidInput, match="together"):
        s3_credential_provider(options)


def test_fixed_keys_do_not_expire():
    provider = s3_credential_provider({"key": "k", "secret": "s", "token": "t"})
    assert provider() == {"access_key_id": "k", "secret_access_key": "s", "token": "t", "expires_at": None}
    assert s3_credential_provider({"anon": True}) is None


class Session:
    """Searches for a while and finds nothing."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.searches = clock, seconds, 0

    def get_credentials(self):
        self.searches += 1
        self.clock[0] += self.seconds


@pytest.mark.parametrize(("seconds", "searches"), [(0.1, 5), (2.0, 1)])
def test_slow_search_that_found_nothing_is_not_repeated_at_once(monkeypatch, seconds, searches):
    clock = [1000.0]
    monkeypatch.setattr(credentials.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(credentials, "_found_none_at", {})
    session = Session(clock, seconds)
    monkeypatch.setattr(credentials, "_session", lambda _: session)
    provider = s3_credential_provider({})
    for _ in range(5):
        with pytest.raises(AccessDenied, match="no AWS credentials found: set AWS_ACCESS_KEY_ID"):
            provider()
    assert session.searches == searches
    clock[0] += 11
    with pytest.raises(AccessDenied):
        provider()
    assert session.searches == searches + 1
