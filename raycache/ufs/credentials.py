"""Credentials and endpoints, found where the tools of each store find them. Nothing is written anywhere.

A client captures what its user has set (``capture``); the result goes to master and workers only, in memory. There
botocore resolves the rest as the AWS tools do: profiles, shared files, instance roles, and their expiry.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from raycache.errors import AccessDenied, InvalidInput

_CAPTURED = {
    "s3": ("AWS_",),
    "gs": ("GOOGLE_",),
    "az": ("AZURE_",),
}
"""Prefixes of the environment variables that belong to a family of stores."""

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


def capture(family: str, options: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The user's options over what the environment says, to be sent to master and workers.

    Raises InvalidInput for an option that an S3 source does not take.
    """
    found: dict[str, Any] = {
        name: value for name, value in environ.items() if name.startswith(_CAPTURED.get(family, ("\0",)))
    }
    if family != "s3":
        return found | dict(options or {})
    found = {name: value for name, value in found.items() if name in _S3_KNOWN}
    return found | _canonical(options or {})


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    flat = {**options, **options.get("client_kwargs", {})}
    flat.pop("client_kwargs", None)
    named = {_S3_OPTIONS.get(name, name): value for name, value in flat.items()}
    unknown = sorted(set(named) - _S3_KNOWN)
    if unknown:
        raise InvalidInput(f"S3 takes no option {', '.join(unknown)}; it takes {', '.join(sorted(_S3_OPTIONS))}")
    return named


def s3_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """obstore's configuration of an S3 store; credentials come from ``s3_credential_provider``."""
    known = _canonical(options)
    session = cache(partial(_session, known))  # takes a tenth of a second, so only where the options leave a gap
    endpoint = known.get("AWS_ENDPOINT_URL_S3") or known.get("AWS_ENDPOINT_URL") or _profile_endpoint(session())
    region = known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or session().get_config_variable("region")
    config: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    if known.get("anon"):
        config["skip_signature"] = True
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
    session = _session(known)

    def provide() -> dict[str, Any]:
        credentials = session.get_credentials()
        if credentials is None:
            raise AccessDenied(
                "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, "
                "or anon=True for a public bucket"
            )
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


def fsspec_s3_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same access, in the words of fsspec's s3fs."""
    known = _canonical(options)
    config = s3_config(options)
    found: dict[str, Any] = {"client_kwargs": {"region_name": config["region"]}, "use_listings_cache": False}
    for name, key in (
        ("key", "AWS_ACCESS_KEY_ID"),
        ("secret", "AWS_SECRET_ACCESS_KEY"),
        ("token", "AWS_SESSION_TOKEN"),
    ):
        if known.get(key):
            found[name] = known[key]
    if config.get("endpoint"):
        found["endpoint_url"] = config["endpoint"]
    if known.get("AWS_PROFILE") and "key" not in found:
        found["profile"] = known["AWS_PROFILE"]
    if known.get("anon"):
        found["anon"] = True
    return found


def _session(known: Mapping[str, Any]) -> Any:
    from botocore.session import Session

    session = Session(profile=known.get("AWS_PROFILE"))
    for variable, name in (("AWS_CONFIG_FILE", "config_file"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials_file")):
        if known.get(variable):
            session.set_config_variable(name, known[variable])
    return session


def _profile_endpoint(session: Any) -> str | None:
    from botocore.exceptions import ProfileNotFound

    try:
        scoped: Mapping[str, Any] = session.get_scoped_config()
    except ProfileNotFound as error:
        raise InvalidInput(f"AWS: {error}") from error
    endpoint = scoped.get("endpoint_url")
    return str(endpoint) if endpoint else None
