"""A peer that keeps no rule: it sends whatever bytes it is told to over gRPC or TLS, and says what came back.

Nothing of the program's own client is used to send, so that no refusal can be this side's: what counts is an answer of the
other side's, or that it ended the connection. `Said.kind` tells which.
"""

import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch

from suture.launch.kits.kit import Certificates
from suture.runtime.grpc.service import PREFIX, SESSION
from suture.runtime.wire import frames
from suture.runtime.wire.messages import Refusal


@dataclass(frozen=True)
class Said:
    """What came back.

    Attributes:
        kind: "answer" (of the protocol), "refused" (an answer that refuses), "status" (gRPC ended the call), or
            "closed" (the connection was ended).
        text: of the refusal or status.
        value: of the answer.
        sent: bytes that this side has written before.
    """

    kind: str
    text: str
    value: Any = None
    sent: int = 0


class Peer:
    """A gRPC channel without limits.

    Args:
        shown: the certificate that it shows, and its key.
        address: HOST:PORT.
        ca: whom it trusts.
    """

    def __init__(self, shown: Certificates, address: str, ca: Path) -> None:
        files = (shown.key.read_bytes(), shown.cert.read_bytes())
        credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *files)
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.secure_channel(
            address,
            credentials,
            [*unlimited, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
        )
        self.session = ""

    def ask(self, endpoint: str, *messages: Any, session: str | None = None) -> Said:
        """Sends well-formed messages."""
        return self.send(PREFIX + endpoint, framed(list(messages)), session)

    def send(
        self, method: str, chunks: Iterable[bytes], session: str | None = None, timeout: float = 30
    ) -> Said:
        """Sends ``chunks`` as they are to any method."""
        sent = [0]

        def counted() -> Iterator[bytes]:
            for chunk in chunks:
                sent[0] += len(chunk)
                yield chunk

        shown = self.session if session is None else session
        call = self._channel.stream_stream(method)(counted(), timeout=timeout, metadata=((SESSION, shown),))
        try:
            data = b"".join(call)
        except grpc.RpcError as error:
            kind = "closed" if error.code() is grpc.StatusCode.UNAVAILABLE else "status"
            return Said(kind, f"{error.code().name}: {error.details()}", sent=sent[0])
        if method == f"{PREFIX}hello":
            self.session = dict(call.initial_metadata()).get(SESSION, self.session)
        value = frames.unpack(torch.frombuffer(bytearray(data[8:]), dtype=torch.uint8))
        if isinstance(value, Refusal):
            return Said("refused", f"{value.error}: {value.message}", sent=sent[0])
        return Said("answer", type(value).__name__, value, sent[0])

    def hold(self) -> grpc.Future:
        """Opens the stream of a site that is there, and pings for as long as nobody cancels what is returned."""

        def pings() -> Iterator[bytes]:
            while True:
                yield b"."
                time.sleep(1)

        return self._channel.stream_stream(f"{PREFIX}alive")(pings(), metadata=((SESSION, self.session),))

    def close(self) -> None:
        self._channel.close()


def framed(value: Any) -> list[bytes]:
    """A frame of the protocol as one chunk."""
    frame = b"".join(frames.pack(value))
    return [struct.pack("<Q", len(frame)) + frame]


def raw_frame(text: bytes, table: bytes, values: bytes = b"") -> list[bytes]:
    """A frame of which nothing needs to be true."""
    frame = struct.pack("<II", len(text), len(table)) + text + table + values
    return [struct.pack("<Q", len(frame)) + frame]


def tls(
    address: str, ca: Path, cert: Path | None = None, key: Path | None = None, **options: Any
) -> ssl.SSLSocket:
    """A TLS connection made by Python's own ssl; ``newest`` bounds its version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if "newest" in options:
        context.maximum_version = options["newest"]
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context.wrap_socket(plain(address))


def plain(address: str) -> socket.socket:
    """A TCP connection."""
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=20)
    made.settimeout(20)
    return made


def answered(connection: socket.socket, data: bytes) -> Said:
    """Sends bytes and reads until the other end closes or has said something."""
    try:
        connection.sendall(data)
        said = connection.recv(4096)
    except (ConnectionError, ssl.SSLError) as error:
        return Said("closed", type(error).__name__, sent=len(data))
    except TimeoutError:
        return Said("silence", "", sent=len(data))
    finally:
        connection.close()
    return Said("answer" if said else "closed", said[:40].hex(), said, len(data))
