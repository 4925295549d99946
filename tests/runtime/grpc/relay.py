"""A proxy that opens TLS: the sites see its certificate, the server a connection of its own, and it has every message in
clear.

It passes everything on unless a test gives it something else to do; it can make calls of its own, too.
"""

import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import torch

from suture.launch.kits.authority import Authority
from suture.runtime.consortium.credentials import Role
from suture.runtime.grpc.service import PLACE, PREFIX, SESSION, endpoint_of
from suture.runtime.grpc.tags import TAG_BYTES
from suture.runtime.wire import frames

Chunks = Iterator[bytes]


def as_it_is(endpoint: str, chunks: Chunks) -> Chunks:
    return chunks


@dataclass
class Call:
    """One that went through, as the proxy has read it."""

    endpoint: str
    session: str
    place: str
    request: list[bytes] = field(default_factory=list)
    answer: list[bytes] = field(default_factory=list)

    @property
    def messages(self) -> Any:
        """What the site said, decoded by the proxy."""
        return opened(self.request)


@dataclass(frozen=True)
class Status:
    """How a call of the proxy's own ended: what gRPC says, or the bytes of an answer."""

    code: grpc.StatusCode
    details: str = ""
    answer: bytes = b""


class Relay:
    """A gRPC proxy of its own authority between sites and the server at ``port``; to be used in a ``with``.

    Attributes:
        port: where sites dial it.
        ca: whom they must believe.
        calls: what went through, without what a test changed.
        request: what it makes of a request's chunks, by the endpoint.
        answer: what it makes of an answer's.
        called: what it calls instead of an endpoint, session and place.
    """

    def __init__(self, folder: Path, port: int, kit_ca: Path, server: str = "127.0.0.1") -> None:
        own = Authority(folder)
        own.issue("proxy", Role.SERVER)
        self.ca = own.ca.read_bytes()
        self.calls: list[Call] = []
        self.request: Callable[[str, Chunks], Chunks] = as_it_is
        self.answer: Callable[[str, Chunks], Chunks] = as_it_is
        self.called: Callable[[str, str, str], tuple[str, str, str]] = lambda *call: call
        files = [(folder / f"proxy.{kind}").read_bytes() for kind in ("key", "pem")]
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self._channel = grpc.secure_channel(
            f"{server}:{port}", grpc.ssl_channel_credentials(kit_ca.read_bytes()), options
        )
        self._server = grpc.server(ThreadPoolExecutor(64), handlers=[_Everything(self._pass_on)])
        self.port = self._server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(files[0], files[1])])
        )
        self._server.start()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def named(self, endpoint: str) -> list[Call]:
        """Those that went through under this name."""
        return [call for call in self.calls if call.endpoint == endpoint]

    def call(self, endpoint: str, chunks: list[bytes], session: str = "", place: str = "0") -> Status:
        """A call of the proxy's own."""
        made = self._begin(endpoint, iter(chunks), session, place)
        try:
            return Status(grpc.StatusCode.OK, answer=b"".join(made))
        except grpc.RpcError as error:
            return Status(error.code(), error.details())

    def again(self, call: Call, **changes: str) -> Status:
        """Sends a recorded request again."""
        said = {"session": call.session, "place": call.place} | changes
        return self.call(changes.pop("endpoint", call.endpoint), call.request, said["session"], said["place"])

    def _begin(self, endpoint: str, chunks: Chunks, session: str, place: str, timeout: float = 30.0) -> Any:
        metadata = ((SESSION, session), (PLACE, place))
        return self._channel.stream_stream(PREFIX + endpoint)(chunks, timeout=timeout, metadata=metadata)

    def _pass_on(self, method: str, chunks: Chunks, context: Any) -> Chunks:
        said = dict(context.invocation_metadata())
        call = Call(endpoint_of(method), said.get(SESSION, ""), said.get(PLACE, "0"))
        self.calls.append(call)

        def read() -> Chunks:
            with suppress(grpc.RpcError):  # the site has ended the call
                for chunk in chunks:
                    call.request.append(chunk)
                    yield chunk

        made = self._begin(
            *self._called_as(call, self.request(call.endpoint, read())),
            timeout=min(context.time_remaining(), 3600.0),
        )
        context.add_callback(made.cancel)

        def answered() -> Chunks:
            for chunk in made:
                call.answer.append(chunk)
                yield chunk

        try:
            yield from self.answer(call.endpoint, answered())
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())

    def _called_as(self, call: Call, chunks: Chunks) -> tuple[str, Chunks, str, str]:
        endpoint, session, place = self.called(call.endpoint, call.session, call.place)
        return endpoint, chunks, session, place


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, handle: Callable[[str, Chunks, Any], Chunks]) -> None:
        self._handle = handle

    def service(self, details: Any) -> Any:
        def handle(chunks: Chunks, context: Any) -> Chunks:
            return self._handle(details.method, chunks, context)

        return grpc.stream_stream_rpc_method_handler(handle)


def opened(chunks: list[bytes]) -> Any:
    """A message with its tag, as whoever is between the two ends can read it."""
    whole = b"".join(chunks)
    return frames.unpack(torch.frombuffer(bytearray(whole[8:-TAG_BYTES]), dtype=torch.uint8))


def sealed_by_nobody(value: Any) -> list[bytes]:
    """A message of whoever is between the two ends, with a tag that is none."""
    frame = b"".join(frames.pack(value))
    return [struct.pack("<Q", len(frame)) + frame + bytes(TAG_BYTES)]
