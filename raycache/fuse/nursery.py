"""The nursery: has imported what a direct gateway needs, and forks one whenever the holder asks.

Starting Python and importing numpy, Arrow and an object store client takes a second on a busy machine, in which readers
would wait; a fork takes milliseconds, if all that it will need is imported by then. It has one thread of its own and
opens nothing, so that forking it is safe.
``python -m raycache.fuse.nursery``, started by the holder.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys

# Imported here so that no gateway has to.
import botocore.session  # noqa: F401 - most of the time of opening a bucket
import pyarrow as pa

import raycache.ufs.generic
import raycache.ufs.local
import raycache.ufs.object  # noqa: F401
from raycache.fuse.gateway import serve_kernel
from raycache.fuse.task import Task


def main() -> None:
    """Fork direct gateways until the holder is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    task = Task.from_line(sys.stdin.readline())
    link = socket.socket(fileno=task.control_fd)
    # Nobody here waits for the gateways: the holder watches them, and the kernel buries them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    pa.array([])  # with the first array pyarrow imports pandas, where there is one: a quarter of a second
    link.send(b"ready")
    while True:
        message, fds, _, _ = socket.recv_fds(link, 65_536, 1)
        if not message:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            link.close()
            root = json.loads(message)["root"]
            serve_kernel(task.but(direct=True, root=root, control_fd=fds[0]))
            logging.shutdown()
            os._exit(0)
        os.close(fds[0])
        link.send(json.dumps({"pid": pid}).encode())


if __name__ == "__main__":
    main()
