from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.config import Settings, load_settings, parse_memory, parse_size
from raycache.errors import InvalidInput


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    """No settings of the machine that runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name in ["config", *Settings.model_fields]:
        monkeypatch.delenv(f"RAYCACHE_{name.upper()}", raising=False)


@pytest.fixture
def file(monkeypatch, tmp_path):
    path = tmp_path / "settings.toml"
    monkeypatch.setenv("RAYCACHE_CONFIG", str(path))
    return path


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (5, 5),
        ("0", 0),
        ("1234", 1234),
        ("8GB", 8 * 10**9),
        ("8 GB", 8 * 10**9),
        ("300 KiB", 300 * 2**10),
        ("1.5MiB", 3 * 2**19),
        ("2g", 2**31),
        ("1 TiB", 2**40),
        ("9007199254740993", 9007199254740993),
        (" 7 b ", 7),
    ],
)
def test_size(text, size):
    assert parse_size(text) == size


@given(st.integers(0, 2**63))
def test_size_of_a_plain_number_is_exact(number):
    assert parse_size(str(number)) == parse_size(number) == number


@pytest.mark.parametrize("text", ["", "GB", "-1", -1, "1 XB", "1e3", "8GB!", "40%", True, None, 1.5, [1]])
def test_not_a_size(text):
    with pytest.raises(InvalidInput, match="not a size; write for example"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("40%", 400), ("100 %", 1000), ("0%", 0), ("0.1%", 1), ("1KB", 1000), ("5KB", 5000), (17, 17)],
)
def test_share_of_memory(text, size):
    assert parse_memory(text, 1000) == size


def test_share_over_the_whole_is_refused():
    with pytest.raises(InvalidInput, match="at most 100%"):
        parse_memory("101%", 1000)


def test_defaults(tmp_path):
    settings = load_settings()
    assert settings.block_bytes == 32 * 2**20
    assert settings.mem == "40%"
    assert settings.state_dir == tmp_path / "home/.local/state/raycache"


def test_state_directory_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert load_settings().state_dir == tmp_path / "state/raycache"


def test_argument_beats_environment_beats_file(monkeypatch, file):
    file.write_text('namespace = "file"\nblock_bytes = "1MiB"\nfetch_concurrency = 3\n')
    assert load_settings().namespace == "file"
    monkeypatch.setenv("RAYCACHE_NAMESPACE", "environment")
    monkeypatch.setenv("RAYCACHE_BLOCK_BYTES", "2MiB")
    assert load_settings().namespace == "environment"
    settings = load_settings(namespace="argument", block_bytes=None)
    assert settings.namespace == "argument"
    assert settings.block_bytes == 2 * 2**20
    assert settings.fetch_concurrency == 3


def test_file_in_the_usual_place(tmp_path):
    usual = tmp_path / "home/.config/raycache/config.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text('namespace = "usual"')
    assert load_settings().namespace == "usual"


def test_empty_config_variable_means_the_usual_place(monkeypatch):
    monkeypatch.setenv("RAYCACHE_CONFIG", "")
    assert load_settings().namespace == "raycache"


def test_named_file_must_exist(file):
    with pytest.raises(InvalidInput, match=f"RAYCACHE_CONFIG names {file}, which is no file"):
        load_settings()


@pytest.mark.parametrize("content", [b"namespace =", b"\xff = 1"])
def test_file_that_is_no_toml(file, content):
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=f"{file} is not valid TOML"):
        load_settings()


@pytest.mark.parametrize("content", ["blok_bytes = 5", "[tier]\nssd = 1"])
def test_misspelt_setting_in_the_file(file, content):
    file.write_text(content)
    with pytest.raises(InvalidInput, match=f"{file}: no setting named (blok_bytes|tier); there are address, backup_e"):
        load_settings()


def test_misspelt_argument():
    with pytest.raises(InvalidInput, match="no setting named blok_bytes; there are address, backup_every_s"):
        load_settings(blok_bytes=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_bytes", 0),
        ("block_bytes", -1),
        ("block_bytes", True),
        ("block_bytes", "many"),
        ("mem", "140%"),
        ("mem", -5),
        ("mem", True),
        ("mem", 0.4),
        ("mem", ["40%"]),
        ("fetch_concurrency", 0),
        ("read_timeout_s", "inf"),
        ("read_timeout_s", "nan"),
        ("connect_timeout_s", 0),
        ("request_timeout_s", "soon"),
        ("state_dir", 5),
    ],
)
def test_bad_value_names_the_setting_and_the_places(name, value):
    with pytest.raises(InvalidInput, match=f"setting {name} = .*from an argument, RAYCACHE_{name.upper()} or .*toml"):
        load_settings(**{name: value})


def test_bad_value_in_the_environment(monkeypatch):
    monkeypatch.setenv("RAYCACHE_BLOCK_BYTES", "much")
    with pytest.raises(InvalidInput, match=r"setting block_bytes = 'much': .*write for example 512MiB"):
        load_settings()


def test_settings_are_values():
    settings = load_settings(block_bytes="1MiB", state_dir="~/x")
    assert settings.state_dir == Path("~/x").expanduser()
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert load_settings(**settings.model_dump(mode="json")) == settings, "a gateway gets them as JSON"
    with pytest.raises(ValueError, match="frozen"):
        settings.block_bytes = 5


def test_unpickled_settings_ignore_the_environment_of_the_other_process(monkeypatch):
    packed = pickle.dumps(load_settings())
    monkeypatch.setenv("RAYCACHE_NAMESPACE", "other")
    assert pickle.loads(packed).namespace == "raycache"


def test_tiers_as_a_list_and_from_the_environment(monkeypatch):
    listed = load_settings(tiers=["/nvme/a:b:500GB", "/hdd:2TB"]).tiers
    assert [(str(tier.directory), tier.quota_bytes) for tier in listed] == [
        ("/nvme/a:b", 500 * 10**9),
        ("/hdd", 2 * 10**12),
    ]
    monkeypatch.setenv("RAYCACHE_TIERS", "/nvme/a:b:500GB, /hdd:2TB")
    settings = load_settings()
    assert settings.tiers == listed
    assert pickle.loads(pickle.dumps(settings)) == settings
    monkeypatch.setenv("RAYCACHE_TIERS", "")
    assert load_settings().tiers == ()


@pytest.mark.parametrize(
    "tiers", ["/nvme", "/nvme:", ":5GB", "/nvme:5XB", "relative:5GB", ["/a:1GB", "/a:2GB"], [5], {"a": 1}]
)
def test_tiers_that_cannot_be_meant(tiers):
    with pytest.raises(InvalidInput, match="tiers"):
        load_settings(tiers=tiers)


def test_eviction_is_one_of_three():
    with pytest.raises(InvalidInput, match="eviction"):
        load_settings(eviction="random")
