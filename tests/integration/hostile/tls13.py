"""TLS 1.3 by hand, for a site that shows a certificate and signs with a key that is not its: no TLS library does that.

One cipher suite, one group, and nothing of the server's is checked: that is not what this is for.

Reference: RFC 8446.
"""

import os
import socket
import struct
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from peer import Said, plain

_ALERT, _HANDSHAKE, _DATA = 21, 22, 23
_ECDSA_P256 = 0x0403
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def shows(address: str, certificate: bytes, key: bytes) -> Said:
    """Shakes hands with ``certificate`` (PEM), signing with ``key`` (PEM), and begins HTTP/2; what came back."""
    line = _Line(plain(address))
    try:
        return line.shake(x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, None))
    except (ConnectionError, TimeoutError) as error:
        return Said("closed", type(error).__name__, sent=line.sent)
    finally:
        line.connection.close()


@dataclass
class _Keys:
    """Of one direction."""

    secret: bytes
    number: int = 0

    def _nonce(self) -> bytes:
        base = int.from_bytes(_expand(self.secret, "iv", b"", 12), "big")
        self.number += 1
        return (base ^ (self.number - 1)).to_bytes(12, "big")

    @property
    def _cipher(self) -> AESGCM:
        return AESGCM(_expand(self.secret, "key", b"", 16))

    def seal(self, kind: int, content: bytes) -> bytes:
        head = struct.pack(">BHH", _DATA, 0x0303, len(content) + 17)
        return head + self._cipher.encrypt(self._nonce(), content + bytes([kind]), head)

    def open(self, head: bytes, sealed: bytes) -> tuple[int, bytes]:
        content = self._cipher.decrypt(self._nonce(), sealed, head).rstrip(b"\0")
        return content[-1], content[:-1]


class _Line:
    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.sent = connection, 0
        self._transcript, self._waiting = b"", b""

    def shake(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Said:
        own = X25519PrivateKey.generate()
        hello = _message(1, _client_hello(own.public_key().public_bytes_raw()))
        self._transcript = hello
        self._send(struct.pack(">BHH", _HANDSHAKE, 0x0301, len(hello)) + hello)
        kind, body = self._record(None)
        assert kind == _HANDSHAKE and body[0] == 2, "no ServerHello"
        self._transcript += body
        shared = own.exchange(X25519PublicKey.from_public_bytes(_key_share(body)))
        early = _extract(b"", bytes(32))
        handshake = _extract(_derive(early, "derived", b""), shared)
        theirs = _Keys(_derive(handshake, "s hs traffic", self._transcript))
        ours = _Keys(_derive(handshake, "c hs traffic", self._transcript))
        context = b""
        while True:
            message = self._handshake_message(theirs)
            self._transcript += message
            if message[0] == 13:  # CertificateRequest: it asks for ours
                context = message[5 : 5 + message[4]]
            if message[0] == 20:
                break
        master = _extract(_derive(handshake, "derived", b""), bytes(32))
        after = self._transcript
        self._say(ours, _message(11, _certificate(certificate, context)))
        signed = b" " * 64 + b"TLS 1.3, client CertificateVerify\0" + _hash(self._transcript)
        signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
        self._say(ours, _message(15, struct.pack(">HH", _ECDSA_P256, len(signature)) + signature))
        finished = hmac.HMAC(_expand(ours.secret, "finished", b"", 32), hashes.SHA256())
        finished.update(_hash(self._transcript))
        self._say(ours, _message(20, finished.finalize()))
        ours, theirs = (
            _Keys(_derive(master, "c ap traffic", after)),
            _Keys(_derive(master, "s ap traffic", after)),
        )
        self._send(ours.seal(_DATA, _PREFACE))
        return self._answer(theirs)

    def _answer(self, theirs: _Keys) -> Said:
        """The first thing that it says in the connection: an alert, or HTTP/2; tickets are passed over."""
        while True:
            kind, content = self._record(theirs)
            if kind == _ALERT:
                return Said("closed", f"TLS alert {content[1]}", sent=self.sent)
            if kind == _DATA:
                return Said("answer", content[:20].hex(), content, self.sent)

    def _say(self, ours: _Keys, message: bytes) -> None:
        self._transcript += message
        self._send(ours.seal(_HANDSHAKE, message))

    def _handshake_message(self, theirs: _Keys) -> bytes:
        while len(self._waiting) < 4 or len(self._waiting) < 4 + int.from_bytes(self._waiting[1:4], "big"):
            kind, content = self._record(theirs)
            assert kind == _HANDSHAKE, f"record {kind}"
            self._waiting += content
        length = 4 + int.from_bytes(self._waiting[1:4], "big")
        message, self._waiting = self._waiting[:length], self._waiting[length:]
        return message

    def _record(self, theirs: _Keys | None) -> tuple[int, bytes]:
        while True:
            head = self._read(5)
            kind, _, length = struct.unpack(">BHH", head)
            content = self._read(length)
            if kind == _DATA and theirs is not None:
                return theirs.open(head, content)
            if kind != 20:  # ChangeCipherSpec is there for old boxes on the way
                return kind, content

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.connection.recv(length - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data

    def _send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.sent += len(data)


def _client_hello(share: bytes) -> bytes:
    extensions = [
        (0x002B, b"\x02\x03\x04"),
        (0x000A, b"\x00\x02\x00\x1d"),
        (0x000D, struct.pack(">HHH", 4, _ECDSA_P256, 0x0804)),
        (0x0033, struct.pack(">HHH", len(share) + 4, 0x001D, len(share)) + share),
        (0x0010, b"\x00\x03\x02h2"),
    ]
    packed = b"".join(struct.pack(">HH", number, len(body)) + body for number, body in extensions)
    return (
        b"\x03\x03" + os.urandom(32) + b"\x20" + os.urandom(32) + b"\x00\x02\x13\x01" + b"\x01\x00"
        + struct.pack(">H", len(packed)) + packed
    )  # fmt: skip


def _key_share(server_hello: bytes) -> bytes:
    at = 4 + 2 + 32
    at += 1 + server_hello[at] + 3
    end = at + 2 + int.from_bytes(server_hello[at : at + 2], "big")
    at += 2
    while at < end:
        number, length = struct.unpack(">HH", server_hello[at : at + 4])
        if number == 0x0033:
            return server_hello[at + 8 : at + 4 + length]
        at += 4 + length
    raise AssertionError("no key share")


def _certificate(certificate: x509.Certificate, context: bytes) -> bytes:
    der = certificate.public_bytes(Encoding.DER)
    entry = len(der).to_bytes(3, "big") + der + b"\0\0"
    return bytes([len(context)]) + context + len(entry).to_bytes(3, "big") + entry


def _message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def _hash(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()


def _extract(salt: bytes, secret: bytes) -> bytes:
    mac = hmac.HMAC(salt or bytes(32), hashes.SHA256())
    mac.update(secret)
    return mac.finalize()


def _expand(secret: bytes, label: str, context: bytes, length: int) -> bytes:
    name = b"tls13 " + label.encode()
    info = struct.pack(">H", length) + bytes([len(name)]) + name + bytes([len(context)]) + context
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def _derive(secret: bytes, label: str, transcript: bytes) -> bytes:
    return _expand(secret, label, _hash(transcript), 32)
