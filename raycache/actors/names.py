"""Names and options of the actors, in one place."""

from __future__ import annotations

from typing import Any

MASTER = "raycache-master"
AUTH_MODE = "RAY_AUTH_MODE"
"""Ray's own variable: ``token`` or ``disabled``."""
RUNTIME_ENV_FIELD = "raycache"
"""Field of a runtime_env that says what a job wants mounted."""
PLUGINS = "RAY_RUNTIME_ENV_PLUGINS"
"""Ray's own variable: which plugins each node loads when it starts."""
MOUNT_PLUGIN = '[{"class": "raycache.actors.runtime_env.MountPlugin"}]'
METHOD_TIMEOUT_S = 30.0
"""Deadline of a control call that asks no under file system."""


WORKER_GROUPS = {"control": 8, "lending": 16, "taking": 8}
"""Threads of a worker that readers cannot use up: for what the master and other workers ask. A worker that takes a
block over waits for another one that lends it, never the other way round: no ring of workers waits for itself."""

_LEAN = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "2"}
"""What listed millions of files gives its memory back: large buffers are mapped and unmapped. Arrow's own allocator and
glibc's defaults kept 0.5 GB after five million files."""


def worker_name(node_id: str) -> str:
    """Name of the worker of a node."""
    return f"raycache-worker-{node_id}"


def master_options(namespace: str) -> dict[str, Any]:
    """The master sits on the head node, where its catalog is, and Ray restarts it for ever. Calls that were under way
    are the clients' business, not Ray's: they ask again for as long as they are set to, with the id of their request,
    and would be asking twice if Ray did so as well."""
    return {
        **_detached(MASTER, namespace, _LEAN),
        "resources": {"node:__internal_head__": 0.001},
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 64,
        "get_if_exists": True,
    }


def worker_options(namespace: str, node_id: str) -> dict[str, Any]:
    """A worker is bound to its node. Ray must not restart it: it would wait for a node that may never return; the
    master makes a new one instead."""
    return {
        **_detached(worker_name(node_id), namespace),
        "label_selector": {"ray.io/node-id": node_id},
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 128,
        "get_if_exists": True,
    }


def _detached(name: str, namespace: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    # Task events of a hot actor would fill the GCS; niceness 15, Ray's default, would slow every read.
    return {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "num_cpus": 0,
        "enable_task_events": False,
        "runtime_env": {"env_vars": {"RAY_worker_niceness": "0", **(environ or {})}},
    }
