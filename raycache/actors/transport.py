"""Joining Ray, and calling actors: deadlines on every call, and Ray's errors turned into ours.

This is the only module that uses private parts of Ray, for what has no public way in 2.60: to ask a cluster whether it
takes our token before ``ray.init`` does, which would retry for 20 seconds or hang; and which nodes are about to leave.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions as rx

from raycache.actors.local import local_ray
from raycache.actors.names import AUTH_MODE
from raycache.config import Settings
from raycache.errors import AccessDenied, ClusterUnavailable, InvalidInput, RaycacheError, Unavailable, WorkerLost

_LOST = (rx.RayActorError, rx.OwnerDiedError, rx.ObjectLostError, rx.GetTimeoutError, rx.NodeDiedError)


class ActorGone(WorkerLost):
    """The actor is dead for good: Ray will not start it again."""


class NoAnswer(WorkerLost):
    """The actor may be there, but did not answer in time."""


def join_ray(settings: Settings) -> str:
    """Be a driver of the Ray cluster: the one this process is in already, else ``settings.address``, RAY_ADDRESS, or
    the one on this machine. Returns its address, ``host:port``.

    Raises ClusterUnavailable (none there, or not answering within ``connect_timeout_s``), AccessDenied (token).
    """
    if not ray.is_initialized():
        address = find_address(settings)
        _check_reachable(address, settings.connect_timeout_s)
        _check_token(address)
        _init(address, settings)
    return str(ray.get_runtime_context().gcs_address)


def find_address(settings: Settings) -> str:
    """Address of the cluster to join: as set, from RAY_ADDRESS, ours that ``raycache start`` started, or the one that
    Ray finds on this machine.

    Raises ClusterUnavailable when there is none here, InvalidInput when it is no address of a node.
    """
    from ray._private import services

    given = settings.address or os.environ.get("RAY_ADDRESS") or local_ray(settings) or "auto"
    if given.startswith("ray://"):
        raise InvalidInput(
            f"{given}: Ray Client maps no shared memory; run on a node of the cluster and give its host:port"
        )
    if given == "local":
        raise InvalidInput("address 'local' would start a cluster that ends with this process; use `raycache start`")
    try:
        address = services.canonicalize_bootstrap_address(given)
    except ConnectionError:
        address = None
    if address is None:
        raise ClusterUnavailable(
            "no Ray cluster found on this machine; start one with `raycache start` or `ray start --head`, "
            "or give --address host:port"
        )
    if not address.rpartition(":")[2].isdigit():
        raise InvalidInput(f"{given!r} is no Ray address; write host:port")
    return str(address)


def _check_reachable(address: str, timeout_s: float) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise ClusterUnavailable(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


def _check_token(address: str) -> None:
    from ray._private.authentication import authentication_token_setup as setup

    raylet: Any = importlib.import_module("ray._raylet")
    loader = raylet.AuthenticationTokenLoader.instance()
    if os.environ.get(AUTH_MODE) == "token" and not loader.has_token(ignore_auth_mode=True):
        # GcsClient would abort the process here.
        raise AccessDenied(
            f"{AUTH_MODE}=token but there is no token; put the cluster's into ~/.ray/auth_token or RAY_AUTH_TOKEN"
        )
    try:
        with _silent_stderr():
            raylet.GcsClient(address=address)
    except rx.AuthenticationError as error:
        if AUTH_MODE not in os.environ and loader.has_token(ignore_auth_mode=True):
            setup._enable_token_auth()  # sets the mode for this process and its children
            return _check_token(address)
        raise AccessDenied(
            f"the Ray cluster at {address} refused our token; put the cluster's into ~/.ray/auth_token or "
            f"RAY_AUTH_TOKEN and set {AUTH_MODE}=token"
        ) from error
    return None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ side writes to descriptor 2 what the caller is about to be told, or to put right, anyway."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _init(address: str, settings: Settings) -> None:
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, namespace=settings.namespace, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            failure.append(error)

    # ray.init takes no deadline and has been seen to hang; a stuck thread is better than a stuck caller.
    thread = threading.Thread(target=connect, name="ray-init", daemon=True)
    thread.start()
    thread.join(settings.connect_timeout_s * 2)
    if thread.is_alive():
        raise ClusterUnavailable(f"the Ray cluster at {address} accepts connections but did not let us join in time")
    if failure:
        raise ClusterUnavailable(f"cannot join the Ray cluster at {address}: {failure[0]}") from failure[0]


def is_in_job(job_id: str) -> bool:
    """Whether this process still is in the Ray job that it was. For threads of ours, which run whenever: where it has
    left Ray meanwhile, a call would make it start or join another one."""
    return ray.is_initialized() and ray.get_runtime_context().get_job_id() == job_id


def cluster_token() -> str | None:
    """The token that Ray's processes show each other, None where they need none."""
    if os.environ.get(AUTH_MODE) != "token":
        return None
    raylet: Any = importlib.import_module("ray._raylet")
    token = raylet.AuthenticationTokenLoader.instance().get_raw_token()
    return token.decode() if isinstance(token, bytes) else str(token)


def draining_nodes() -> set[str]:
    """Ids of the nodes that Ray is about to take away: scaled in by the autoscaler, or preempted."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def get(ref: Any, timeout_s: float, what: str) -> Any:
    """The result of a call. ``what`` names the callee in messages.

    Raises the error that the actor raised, WorkerLost when the callee is gone or silent, Unavailable for the rest.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except rx.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RaycacheError):
            raise cause from None
        raise Unavailable(f"{what} failed: {cause or error}") from error
    except rx.GetTimeoutError as error:
        raise NoAnswer(f"{what} did not answer within {timeout_s:g} s") from error
    except rx.ActorDiedError as error:
        if error.actor_init_failed:
            raise ActorGone(f"{what} could not start: {_last_line(error)}") from error
        raise ActorGone(f"{what} is gone: {_reason(error)}") from error
    except _LOST as error:
        raise WorkerLost(f"{what} is gone: {_reason(error)}") from error
    except rx.RayError as error:
        raise Unavailable(f"{what}: {_reason(error)}") from error


def get_views(refs: Sequence[Any], timeout_s: float, what: str) -> list[memoryview]:
    """Objects as read-only views, without a copy where they lie on this node."""
    return [memoryview(buffer).cast("B") for buffer in get(list(refs), timeout_s, what)]


def _reason(error: BaseException) -> str:
    return _lines(error)[0]


def _last_line(error: BaseException) -> str:
    """What an actor's own ``__init__`` raised: Ray hands it over as text, below its traceback."""
    return _lines(error)[-1].removeprefix("raycache.errors.").partition(": ")[2] or _reason(error)


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
