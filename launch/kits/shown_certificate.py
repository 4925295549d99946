"""Which certificate the server shows, seen over a TLS connection of this module's own.

gRPC's Python shows a client no certificate of its server's and takes no list of revoked ones. So a site looks before it
dials. That finds a server that goes on with a certificate which was taken back. It does not stop somebody who sits on
the line with that certificate's key, lets this look pass to the true server, and takes the next connection himself.
Where a proxy opens TLS (``--tls proxy``) server and site shake hands inside it, and the check is part of that.
"""

from __future__ import annotations

import os
import socket
import ssl
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from suture.launch.kits.kit import Certificates

_SECONDS = 10.0
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_MOST_OF_AN_ANSWER = 2**14


def server_certificate(host: str, port: int, own: Certificates) -> bytes:
    """The certificate that a server shows, PEM; empty where it cannot be had, which gRPC then says in words.

    Args:
        host: the server's.
        port: its one.
        own: this site's, without which a server ends the handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(own.ca)
        context.load_cert_chain(own.cert, own.key)
        with _connected(host, port) as line, context.wrap_socket(line, server_hostname=host) as tls:
            shown = tls.getpeercert(binary_form=True)
    except (OSError, ValueError):  # ssl's errors are OSErrors
        return b""
    return ssl.DER_cert_to_PEM_cert(shown).encode() if shown else b""


def _connected(host: str, port: int) -> socket.socket:
    """A connection to the server, through the proxy that gRPC takes, where the environment names one."""
    named = next((os.environ[name] for name in _PROXIES if os.environ.get(name)), "")
    if not named or proxy_bypass(host):
        return socket.create_connection((host, port), _SECONDS)
    proxy = urlsplit(named if "//" in named else f"//{named}")
    line = socket.create_connection((proxy.hostname or "", proxy.port or 80), _SECONDS)
    try:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        line.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            if len(answer) > _MOST_OF_AN_ANSWER or not (more := line.recv(1)):  # what follows is TLS's
                raise OSError("the proxy did not connect")
            answer += more
        if answer.split(None, 2)[1:2] != [b"200"]:
            raise OSError("the proxy did not connect")
    except BaseException:
        line.close()
        raise
    return line
