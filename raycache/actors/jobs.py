"""Submitting Ray jobs that find the cache: what ``ray job submit`` does, with the cache's part of the environment."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raycache.actors.names import RUNTIME_ENV_FIELD
from raycache.core.arguments import check_mounts
from raycache.errors import ClusterUnavailable, InvalidInput


def submit(
    entrypoint: Sequence[str],
    mounts: Mapping[str, str],
    dashboard: str | None,
    working_dir: str | None,
    show: Callable[[str], object],
) -> tuple[str, str]:
    """Run a command as a job to its end, and show what it prints; its id, and its state in Ray's words.

    ``mounts``: source by mount point, there on each node where the job's tasks run. ``dashboard``: http address of the
    cluster's dashboard; None takes RAY_API_SERVER_ADDRESS, else the one of this machine.
    Raises InvalidInput, ClusterUnavailable.
    """
    from ray.job_submission import JobSubmissionClient

    if not entrypoint:
        raise InvalidInput(
            "give the command after --, as in: raycache submit --mount s3://b/train:/data -- python a.py"
        )
    fields: dict[str, Any] = {"env_vars": cache_environ(os.environ)}
    if mounts:
        fields[RUNTIME_ENV_FIELD] = {"mounts": check_mounts({"mounts": mounts})}
    if working_dir is not None:
        fields["working_dir"] = working_dir
    try:
        client: Any = JobSubmissionClient(dashboard)
        job_id = client.submit_job(entrypoint=shlex.join(entrypoint), runtime_env=fields)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterUnavailable(
            f"the job could not be submitted: {error}; `raycache submit` needs Ray's dashboard (ray start --head, "
            "port 8265): give its address with --dashboard"
        ) from error
    asyncio.run(_show_output(client, job_id, show))
    return job_id, str(client.get_job_status(job_id).value)


def cache_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of the cache that this process was given by variables, for a job to be given the same."""
    return {
        name: value for name, value in environ.items() if name.startswith("RAYCACHE_") and name != "RAYCACHE_CONFIG"
    }


async def _show_output(client: Any, job_id: str, show: Callable[[str], object]) -> None:
    async for lines in client.tail_job_logs(job_id):
        show(lines)
