"""Settings: values only, no components and no I/O beyond reading them.

Precedence, strongest first: arguments, ``RAYCACHE_*`` environment variables, a TOML file
(``RAYCACHE_CONFIG``, else ``~/.config/raycache/config.toml``), the defaults below.
Sizes may be written as ``"8GB"``, ``"512MiB"`` or, where a share makes sense, ``"40%"``.
"""

from __future__ import annotations

import os
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from raycache.errors import InvalidInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*$")
_SHARE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*%\s*$")


def parse_size(text: str | int) -> int:
    """Bytes of ``"300 KiB"``, ``"8GB"`` or a plain number.

    Raises InvalidInput when the text is no size.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _SIZE.match(text) if isinstance(text, str) else None
    unit = match and _UNITS.get(match.group(2).lower())
    if not match or not unit:
        raise InvalidInput(f"{text!r} is not a size; write for example 512MiB or 8GB")
    return int(Decimal(match.group(1)) * unit)


def parse_memory(text: str | int, total_bytes: int) -> int:
    """Bytes of a size, or of a share such as ``"40%"`` of ``total_bytes``.

    Raises InvalidInput when the text is neither, or the share is over 100 %.
    """
    share = _SHARE.match(text) if isinstance(text, str) else None
    if share is None:
        return parse_size(text)
    percent = Decimal(share.group(1))
    if percent > 100:
        raise InvalidInput(f"{text!r}: a share of the object store is at most 100%")
    return int(total_bytes * percent / 100)


def _check_memory(text: str | int) -> str | int:
    parse_memory(text, 0)
    return text


class Tier(NamedTuple):
    """A directory in which a worker may keep blocks."""

    directory: Path
    """``{node}`` in it stands for the name of the worker's node, where several nodes of one machine share its disks."""
    quota_bytes: int

    def on(self, node_name: str) -> Tier:
        """This tier as a node of that name has it (Ray's ``--node-name``; its address where none was given)."""
        return self._replace(directory=Path(str(self.directory).replace("{node}", node_name.replace("/", "-"))))

    def __str__(self) -> str:
        """As ``parse_tiers`` reads it."""
        return f"{self.directory}:{self.quota_bytes}"


def parse_tiers(value: Any) -> tuple[Tier, ...]:
    """``["/nvme/cache:500GB", "/hdd/cache:2TB"]``, or the same as one text with commas; first is asked first.

    Raises InvalidInput for what is no such list, or names a directory twice.
    """
    texts = [text for text in value.split(",") if text.strip()] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise InvalidInput(f"tiers={value!r}: write a list such as ['/nvme/cache:500GB', '/hdd/cache:2TB']")
    tiers = tuple(text if isinstance(text, Tier) else _parse_tier(text) for text in texts)
    if len({tier.directory for tier in tiers}) < len(tiers):
        raise InvalidInput(f"tiers={value!r} names a directory twice")
    return tiers


def _parse_tier(text: Any) -> Tier:
    path, colon, size = text.strip().rpartition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not path:
        raise InvalidInput(f"{text!r} is no tier; write DIRECTORY:SIZE, for example /nvme/cache:500GB")
    directory = Path(path).expanduser()
    if not directory.is_absolute():
        raise InvalidInput(f"{text!r}: the directory of a tier is an absolute path, the same on every node")
    return Tier(directory, parse_size(size))


def _tier_texts(tiers: tuple[Tier, ...]) -> list[str]:
    return [str(tier) for tier in tiers]


def _config_file() -> Path:
    return Path(os.environ.get("RAYCACHE_CONFIG") or "~/.config/raycache/config.toml").expanduser()


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "raycache"


def _absolute(place: str) -> str:
    """A directory as seen from here, wherever the master runs; a URI as it is."""
    return place if "://" in place else str(Path(place).expanduser().absolute())


Size = Annotated[int, BeforeValidator(parse_size)]
Memory = Annotated[str | int, BeforeValidator(_check_memory)]
Place = Annotated[str, AfterValidator(_absolute)]
Eviction = Literal["keep", "sieve", "lru"]
Tiers = Annotated[
    tuple[Tier, ...], NoDecode, BeforeValidator(parse_tiers), PlainSerializer(_tier_texts, when_used="json")
]
Directory = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Settings(BaseSettings):
    """What a cache is made with. Frozen and picklable: master, workers and gateways get it as an argument."""

    model_config = SettingsConfigDict(env_prefix="RAYCACHE_", frozen=True, extra="forbid")

    address: str | None = None
    """Ray cluster to join, ``host:port``; None finds the one on this machine."""
    namespace: str = "raycache"
    """Ray namespace of the cache's actors; two caches on one cluster need two."""
    state_dir: Directory = Field(default_factory=_default_state_dir)
    """Catalog, mount records, logs, and what is written where a worker has no tier. Created with mode 0700."""
    mem: Memory = "40%"
    """What each worker may keep in plasma: a size, or a share of its node's object store. Above about half,
    Ray begins to spill."""
    tiers: Tiers = ()
    """Directories where each worker keeps blocks that memory has no room for, in this order: DIRECTORY:SIZE each, in
    RAYCACHE_TIERS separated by commas. The size is a quota per worker; blocks lie in a directory per namespace.
    ``{node}`` in one is the name of the Ray node: needed only where several nodes share one machine's disks."""
    write_quota: Size | None = None
    """What each worker may hold of what was written and is not persisted, on disk beside its first tier, or below
    ``state_dir`` where it has none. None: half of what that disk has free when the worker starts."""
    eviction: Eviction = "keep"
    """What a full tier does with one more block: refuse it, or let another one go for it (see core/eviction.py)."""
    block_bytes: Size = Field(default=32 * 2**20, gt=0)
    """Size of a block: small files are packed up to it, large ones are cut into it."""
    fetch_concurrency: int = Field(default=32, ge=1, le=1024)
    """Requests to the under file system that one worker has under way."""
    source_requests: int | None = Field(default=None, ge=1, le=1024)
    """Of these, requests to one source. None: all. A quarter of them is kept from background fills."""
    source_bytes_per_s: Size | None = Field(default=None, gt=0)
    """What one worker may fetch from one source in a second: ``"200MB"``. None: as much as comes."""
    persist_concurrency: int = Field(default=16, ge=1, le=1024)
    """Files that one worker brings to their sources at once."""
    stop_wait_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """How long the end of a cache waits for what its sources have not got yet; what is left stays on the disks."""
    connect_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """How long to wait for Ray, and for an under file system to accept a connection."""
    request_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Deadline of one request to an under file system, retries included."""
    read_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Deadline of one read through the cache, whatever dies meanwhile; then the reader gets an error."""
    master_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """How long a client goes on asking a master that is away, before the caller gets an error."""
    backup_to: Place | None = None
    """Where the master backs its catalog up: a directory, or a URI such as ``s3://bucket/backups``. None: nowhere."""
    backup_every_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Time between two of those backups. What came after the last one is lost with the head node's disk."""

    @property
    def catalog_file(self) -> Path:
        """Where the master keeps its catalog, on the head node."""
        return self.state_dir / f"catalog-{self.namespace}.db"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=_config_file())


def load_settings(**overrides: Any) -> Settings:
    """Settings with ``overrides`` on top; an override of None leaves the value alone.

    Raises InvalidInput for an unknown name or a value that does not fit, and says where it came from.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    known = ", ".join(sorted(Settings.model_fields))
    unknown = sorted(set(given) - set(Settings.model_fields))
    if unknown:
        raise InvalidInput(f"no setting named {', '.join(unknown)}; there are {known}")
    file = _config_file()
    if os.environ.get("RAYCACHE_CONFIG") and not file.is_file():
        raise InvalidInput(f"RAYCACHE_CONFIG names {file}, which is no file")
    try:
        return Settings(**given)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise InvalidInput(f"{file}: no setting named {name}; there are {known}") from error
        raise InvalidInput(
            f"setting {name} = {first['input']!r}: {first['msg']} (from an argument, RAYCACHE_{name.upper()} or {file})"
        ) from error
