"""The HTTP proxy: end TLS for any host and pass each request to the emulated services. Nothing reaches the network.

An unchanged SDK is led here by ``HTTPS_PROXY``. It sends ``CONNECT host:443``; the proxy answers and then, instead of
connecting to the host, speaks TLS itself with a certificate that it makes for that host. Requests inside the tunnel
are handled by ``_TunnelHandler``, which knows the host from the CONNECT. The one exception is a container that ends
TLS itself: its tunnel is carried through, byte by byte (``_join``).
"""

from __future__ import annotations

import select
import socket
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from emulators.wire.certificates import Authority
from emulators.wire.http import Request, Response
from emulators.wire.services import Services


class Proxy(ThreadingHTTPServer):
    """Listens on a port of this machine; each connection has a thread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, authority: Authority, services: Services) -> None:
        super().__init__(("127.0.0.1", port), _ProxyHandler)
        self.authority = authority
        self.services = services

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients hang up, and planted faults make them do so."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: ``Services`` has a log."""

    def answer(self, host: str, port: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request.parse(self.command, host, self.path, headers, self._body(), port)
        response = self.server.services.answer(request)
        if response is None:
            self.close_connection = True
            self.connection.close()
            return
        self._send(response)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, response: Response) -> None:
        body, content_type = response.encoded()
        self.send_response(response.status)
        headers = {"Content-Type": content_type, "Content-Length": str(len(body)), **response.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _TunnelHandler(_Handler):
    """Inside a tunnel: the host is the one that CONNECT named."""

    host = ""
    port = 443

    def _any(self) -> None:
        self.answer(self.host, self.port)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any


class _ProxyHandler(_Handler):
    """Outside: CONNECT opens a tunnel; a plain request is for the emulator itself or for an ``http:`` address."""

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        self.close_connection = True
        behind = self.server.services.tunnel(host.lower(), int(port))
        self.send_response_only(200, "Connection established")
        self.end_headers()
        if behind:
            return _join(self.connection, behind)
        try:
            secure = self.server.authority.context(host).wrap_socket(self.connection, server_side=True)
        except (ssl.SSLError, OSError):
            return
        try:
            type("_", (_TunnelHandler,), {"host": host, "port": int(port)})(secure, self.client_address, self.server)
        finally:
            _hang_up(secure)

    def _any(self) -> None:
        if not self.path.startswith("http"):
            return self.answer("emulator", 0)
        host, _, port = self.path.split("/")[2].partition(":")
        self.answer(host, int(port or 80))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any


def _join(one: socket.socket, address: tuple[str, int]) -> None:
    """Carry bytes both ways until either side closes. The server behind the address ends TLS itself."""
    try:
        other = socket.create_connection(address, timeout=10)
    except OSError:
        return
    sockets = {one: other, other: one}
    with other:
        while True:
            ready = select.select(list(sockets), [], [], 120)[0]
            for source in ready:
                data = source.recv(65536)
                if not data:
                    return
                sockets[source].sendall(data)
            if not ready:
                return


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
