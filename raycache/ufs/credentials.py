"""Credentials and endpoints, found where the tools of each store find them. Nothing is written anywhere.

A client captures what its user has set (``capture``); the result goes to master and workers only, in memory. There
botocore resolves the rest as the AWS tools do: profiles, shared files, instance roles, and their expiry.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from raycache.errors import AccessDenied, InvalidInput

_S3_OPTIONS = {
    "key": "AWS_ACCESS_KEY_ID",
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
    "session_token": "AWS_SESSION_TOKEN",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "endpoint": "AWS_ENDPOINT_URL",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region": "AWS_REGION",
    "region_name": "AWS_REGION",
    "profile": "AWS_PROFILE",
    "anon": "anon",
}
"""Names that ``storage_options`` may use, and the AWS variable that each stands for."""

_S3_KNOWN = {
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
    "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "anon",
}  # fmt: skip
_GS_KNOWN = {
    "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SKIP_SIGNATURE",
}  # fmt: skip
_AZ_KNOWN = {
    "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_CLIENT_ID", "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_TENANT_ID", "AZURE_STORAGE_ENDPOINT", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_SKIP_SIGNATURE",
}  # fmt: skip
_CAPTURED = {"s3": _S3_KNOWN, "gs": _GS_KNOWN, "az": _AZ_KNOWN}
"""Environment variables that belong to a family of stores. Others of their prefixes, such as GOOGLE_CLOUD_PROJECT,
are for other tools, and obstore would refuse them."""

_OVERRIDDEN = {
    "AWS_ACCESS_KEY_ID": {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"},
    "AWS_PROFILE": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"},
    "AWS_ENDPOINT_URL": {"AWS_ENDPOINT_URL_S3"},
    "AWS_REGION": {"AWS_DEFAULT_REGION"},
}
"""What an option displaces beside the variable of its own name: a key never goes with another key's token."""

_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._\-]+(:\d+)?(/[^\s?#]*)?|https?://\[[0-9a-fA-F:.]+\](:\d+)?(/[^\s?#]*)?")
_SLOW_LOOKUP_S = 0.5
_REMEMBERED_S = 10.0
_found_none_at: dict[tuple[Any, ...], float] = {}
"""When a slow search for credentials ended with none. A machine outside of AWS asks the metadata service for seconds
in vain, and would again for every read."""


def capture(family: str, options: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The user's options over what the environment says, to be sent to master and workers.

    Raises InvalidInput for an option that an S3 source does not take.
    """
    known = _CAPTURED.get(family, set())
    found: dict[str, Any] = {name: value for name, value in environ.items() if name in known}
    if family != "s3":
        return found | dict(options or {})
    given = _canonical(options or {})
    displaced = {name for option in given for name in _OVERRIDDEN.get(option, ())}
    return {name: value for name, value in found.items() if name not in displaced} | given


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    flat = {**options, **(options.get("client_kwargs") or {})}
    flat.pop("client_kwargs", None)
    named = {_S3_OPTIONS.get(name, name): value for name, value in flat.items() if value is not None}
    unknown = sorted(set(named) - _S3_KNOWN)
    if unknown:
        raise InvalidInput(f"S3 takes no option {', '.join(unknown)}; it takes {', '.join(sorted(_S3_OPTIONS))}")
    return named


def s3_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """obstore's configuration of an S3 store; credentials come from ``s3_credential_provider``."""
    known = _canonical(options)
    session = cache(partial(_session, known))  # takes a tenth of a second, so only where the options leave a gap
    region = known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or _configured(session, "region")
    endpoint = (
        known.get("AWS_ENDPOINT_URL_S3")
        or known.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or _configured(session, "endpoint_url")
    )
    # obstore reads the environment for what it is not told, so it is told all that could differ there.
    config: dict[str, Any] = {"region": region or "us-east-1", "skip_signature": bool(known.get("anon"))}
    if endpoint:
        # obstore panics at one that is no URL (measured with 0.12).
        if not _ENDPOINT.fullmatch(endpoint):
            raise InvalidInput(f"S3 endpoint {endpoint!r} is no URL; write for example http://host:9000")
        config["endpoint"] = endpoint
        if os.environ.get("AWS_ENDPOINT_URL_S3", endpoint) != endpoint:
            config["aws_endpoint_url_s3"] = endpoint
    return config


def s3_credential_provider(options: Mapping[str, Any]) -> Callable[[], Any] | None:
    """What obstore calls for S3 credentials, again before they expire. None for anonymous access."""
    known = _canonical(options)
    if known.get("anon"):
        return None
    key, secret = known.get("AWS_ACCESS_KEY_ID"), known.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        fixed = {"access_key_id": key, "secret_access_key": secret, "token": known.get("AWS_SESSION_TOKEN")}
        return lambda: {**fixed, "expires_at": None}
    if key or secret:
        raise InvalidInput("S3 takes an access key id and a secret access key together; one of them is missing")
    session = _session(known)
    place = tuple(known.get(name) for name in ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"))

    def provide() -> dict[str, Any]:
        credentials = _search(session, place)
        frozen = credentials.get_frozen_credentials()
        # botocore refreshes expiring credentials by itself; asking again every few minutes picks that up.
        again = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=5)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": again,
        }

    return provide


def _search(session: Any, place: tuple[Any, ...]) -> Any:
    start = time.monotonic()
    credentials = None
    if start - _found_none_at.get(place, -_REMEMBERED_S) >= _REMEMBERED_S:
        credentials = session.get_credentials()
        if credentials is None and time.monotonic() - start > _SLOW_LOOKUP_S:
            _found_none_at[place] = time.monotonic()
    if credentials is None:
        raise AccessDenied(
            "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, "
            "or anon=True for a public bucket"
        )
    return credentials


def fsspec_s3_options(options: Mapping[str, Any], connect_timeout_s: float, request_timeout_s: float) -> dict[str, Any]:
    """The same access, in the words of fsspec's s3fs."""
    known = _canonical(options)
    config = s3_config(options)
    found: dict[str, Any] = {
        "client_kwargs": {"region_name": config["region"]},
        "config_kwargs": {"connect_timeout": connect_timeout_s, "read_timeout": request_timeout_s},
        "use_listings_cache": False,
    }
    if config.get("endpoint"):
        found["endpoint_url"] = config["endpoint"]
    if known.get("anon"):
        return {**found, "anon": True}
    if known.get("AWS_ACCESS_KEY_ID"):
        named = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN"}
        return {**found, **{name: known.get(variable) for name, variable in named.items()}}
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    return {**found, "session": _at_places(AioSession(profile=known.get("AWS_PROFILE")), known)}


def _session(known: Mapping[str, Any]) -> Any:
    from botocore.session import Session

    return _at_places(Session(profile=known.get("AWS_PROFILE")), known)


def _at_places(session: Any, known: Mapping[str, Any]) -> Any:
    for variable, name in (("AWS_CONFIG_FILE", "config_file"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials_file")):
        if known.get(variable):
            session.set_config_variable(name, known[variable])
    return session


def _configured(session: Callable[[], Any], name: str) -> str | None:
    """``region`` or ``endpoint_url`` as the AWS configuration file has it."""
    from botocore.exceptions import BotoCoreError

    try:
        if name == "region":
            return session().get_config_variable("region") or None
        scoped: Mapping[str, Any] = session().get_scoped_config()
        service = session().full_config.get("services", {}).get(scoped.get("services"), {}).get("s3", {})
    except BotoCoreError as error:  # no such profile, or a file that cannot be parsed
        raise InvalidInput(f"AWS: {error}") from error
    return service.get("endpoint_url") or scoped.get("endpoint_url") or None
