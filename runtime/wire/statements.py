"""What is signed of a statement, and its digest, by which others name it."""

from __future__ import annotations

import hashlib

from suture.runtime.wire.messages import Statement


def signed_bytes(kind: str, author: str, content: str) -> bytes:
    """The bytes under a signature; with lengths before its parts, so that no two statements have the same."""
    parts = [text.encode() for text in ("suture/statement", kind, author, content)]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def digest(statement: Statement) -> str:
    """SHA-256 (hex) of what is signed: names a statement."""
    return hashlib.sha256(signed_bytes(statement.kind, statement.author, statement.content)).hexdigest()
