"""Mounts that come and go with Ray jobs: ``runtime_env={"raycache": {"mounts": {"/data": "s3://bucket/train"}}}``.

Ray's runtime-env agent, one process on each node, loads the plugin that RAY_RUNTIME_ENV_PLUGINS names when the node
starts. It asks for the mounts of an environment before the first process of a job starts there, and gives them back
when the last one has gone. The agent must not become a driver of Ray, nor wait: what mounts is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from logging import Logger
from typing import Any

from ray._private.runtime_env.plugin import RuntimeEnvPlugin

from raycache.actors.names import RUNTIME_ENV_FIELD
from raycache.core.arguments import check_mounts

MOUNT_S, UNMOUNT_S = 120.0, 20.0
_SIZE_BYTES = 2**50
"""What a mount is said to take of a node: Ray deletes what nobody uses when that is over ten gigabytes, not before."""
_COMMAND = (sys.executable, "-m", "raycache.cli")


@dataclass
class _Mounted:
    """A mount point and what it is there for."""

    made_mount: bool
    """By us: what an operator had mounted before stays when the job goes."""
    made_directory: bool
    uris: set[str] = field(default_factory=set)


class MountPlugin(RuntimeEnvPlugin):
    """See the module. A URI, in Ray's words, is one mount of one environment."""

    name = RUNTIME_ENV_FIELD

    def __init__(self) -> None:
        self._mounted: dict[str, _Mounted] = {}

    @staticmethod
    def validate(runtime_env_dict: Mapping[str, Any]) -> None:
        """Raise InvalidInput, a ValueError, for what is no such field."""
        check_mounts(runtime_env_dict[RUNTIME_ENV_FIELD])

    def get_uris(self, runtime_env: Mapping[str, Any]) -> list[str]:
        """One for each mount. Names no credentials, as Ray logs it."""
        about = runtime_env.get(RUNTIME_ENV_FIELD)
        cache = {name: value for name, value in _environ(runtime_env).items() if name.startswith("RAYCACHE_")}
        mounts = check_mounts(about) if about is not None else {}
        return [json.dumps([mountpoint, source, cache], sort_keys=True) for mountpoint, source in mounts.items()]

    async def create(self, uri: str | None, runtime_env: Mapping[str, Any], context: Any, logger: Logger) -> float:
        """Mount. Raises RuntimeError, which whoever started the job is shown."""
        if uri is None:
            return 0
        mountpoint, source, _ = json.loads(uri)
        made_directory = _make_directory(mountpoint)
        words = ("mount", source, mountpoint, "--reuse", "--json", "--address", _gcs_address())
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *words,
            env={**os.environ, **_environ(runtime_env)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), MOUNT_S)
        except BaseException:  # cancelled or too late: what nobody waits for must not mount
            with suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode:
            said = err.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise RuntimeError(f"{source} could not be mounted on {mountpoint}: {said[-1]}")
        made_mount = json.loads(out.splitlines()[-1])["made"]
        there = self._mounted.setdefault(mountpoint, _Mounted(made_mount, made_directory))
        there.uris.add(uri)
        logger.info("%s is at %s", source, mountpoint)
        return _SIZE_BYTES

    def modify_context(self, uris: list[str], runtime_env: Mapping[str, Any], context: Any, logger: Logger) -> None:
        """Tell the job's processes of the cluster whose cache this is."""
        context.env_vars.setdefault("RAYCACHE_ADDRESS", _gcs_address())

    def delete_uri(self, uri: str, logger: Logger) -> float:
        """Unmount, when no environment has the mount any more. Files that are open still can be read to their end."""
        mountpoint, source, cache = json.loads(uri)
        there = self._mounted.get(mountpoint)
        if there is None:
            return _SIZE_BYTES
        there.uris.discard(uri)
        if not there.uris:
            del self._mounted[mountpoint]
            if there.made_mount:
                self._unmount(mountpoint, cache, logger)
            if there.made_directory:
                with suppress(OSError):  # in use by somebody else meanwhile
                    os.rmdir(mountpoint)
            logger.info("%s is no longer at %s", source, mountpoint)
        return _SIZE_BYTES

    def _unmount(self, mountpoint: str, cache: Mapping[str, str], logger: Logger) -> None:
        try:
            subprocess.run(
                [*_COMMAND, "umount", "--lazy", mountpoint],
                env={**os.environ, **cache},
                check=True,
                capture_output=True,
                timeout=UNMOUNT_S,
            )
        except subprocess.SubprocessError as error:
            logger.error("%s could not be unmounted: %s", mountpoint, getattr(error, "stderr", None) or error)


def _environ(runtime_env: Mapping[str, Any]) -> dict[str, str]:
    return dict(runtime_env.get("env_vars") or {})


def _make_directory(mountpoint: str) -> bool:
    """Whether it was not there."""
    if os.path.lexists(mountpoint):  # a mount there is not looked into: its gateway might be gone
        return False
    os.makedirs(mountpoint, exist_ok=True)
    return True


def _gcs_address() -> str:
    """Address of this node's cluster, which Ray starts the agent with."""
    flag = "--gcs-address="
    return next((word.removeprefix(flag) for word in sys.argv if word.startswith(flag)), "auto")
