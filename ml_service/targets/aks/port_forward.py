"""Forward a port of this machine to a port of one pod, through the cluster's API and past every Service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ml_service.targets.aks.client import Cluster

PORT = 8080
"""The port that the scoring server listens on in its pod."""

_CHUNK = 65536


@contextmanager
def forwarded(cluster: Cluster, pod: str, port: int) -> Iterator[str]:
    """Yield the URL, which works inside the block. Each connection gets a stream of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, cluster, pod, port), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # close() alone would leave the thread in accept().
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _accept(listener: socket.socket, cluster: Cluster, pod: str, port: int) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_connect, args=(client, cluster, pod, port), daemon=True).start()


def _connect(client: socket.socket, cluster: Cluster, pod: str, port: int) -> None:
    from kubernetes.client import ApiException, CoreV1Api
    from kubernetes.stream import portforward

    with client:
        try:
            core = CoreV1Api(cluster.api)
            stream = portforward(core.connect_get_namespaced_pod_portforward, pod, cluster.namespace, ports=str(port))
        except (ApiException, OSError):
            # The client sees a closed connection, as from a pod that does not answer.
            return
        remote = stream.socket(port)
        answers = threading.Thread(target=_copy, args=(remote, client), daemon=True)
        answers.start()
        _copy(client, remote)
        answers.join(30)
        stream.close()


def _copy(source: Any, sink: Any) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
