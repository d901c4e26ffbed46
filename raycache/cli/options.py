"""What several commands take and how all of them print JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from raycache.config import load_settings
from raycache.errors import InvalidInput

Address = Annotated[str | None, typer.Option(help="Ray cluster, host:port. Default: RAY_ADDRESS, else the one here.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_SECRET = {"secret", "password", "token", "account_key", "sas_token"} | {
    f"{prefix}{name}" for prefix in ("", "aws_") for name in ("secret_access_key", "session_token")
}
"""Storage options that an argument list must not show."""


def connect(address: str | None) -> Any:
    """The cache that runs there. Raises ClusterUnavailable where none does."""
    from raycache.actors.cluster import current

    return current(load_settings(address=address), start=False)


def key_value(text: str) -> tuple[str, str]:
    """A storage option, KEY=VALUE. Raises InvalidInput, also for a secret."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInput(f"-o {text!r}: write KEY=VALUE, as in -o endpoint_url=http://host:9000")
    if key.lower() in _SECRET:
        raise InvalidInput(
            f"-o {key}=...: what is typed here is shown to every user of this machine; set the store's environment "
            "variable (for S3 AWS_SECRET_ACCESS_KEY or AWS_SESSION_TOKEN), or use a profile"
        )
    return key, value


def print_json(value: Any) -> None:
    """One JSON object."""
    typer.echo(json.dumps(value, default=str))
