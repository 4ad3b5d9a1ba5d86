"""What both kinds of encrypted connections need: how to connect by TLS, what the channel is called, why it failed.

Kept apart from `encryption.py`, so that a command that only asks something need not load an event loop.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import cache
from typing import cast

from cluster.certificate import fingerprint
from cluster.errors import HandshakeFailed

__all__ = ["channel_of", "client_context", "describe_tls_error", "read_into"]


@cache
def client_context() -> ssl.SSLContext:
    """Return what connects by TLS 1.3 to any certificate: which one it was is compared in the handshake inside."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def channel_of(encryption: ssl.SSLObject) -> str:
    """Return the name of the connection that the connecting side has made: the fingerprint of what it was shown."""
    shown = encryption.getpeercert(binary_form=True)
    assert shown is not None  # TLS 1.3 with a certificate is the only way that is open
    return fingerprint(shown)


def describe_tls_error(error: ssl.SSLError) -> HandshakeFailed:
    """Return why a connection could not be encrypted, or not any longer."""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "alert handshake failure" in reason:
        said = (
            "it refuses encrypted connections; on its own machine write tcp://, for one without encryption insecure://"
        )
    elif "wrong version number" in reason or "record layer" in reason or "unknown protocol" in reason:
        said = "what it sends is not TLS; check the address and the port"
    elif "bad record mac" in reason or "decryption failed" in reason:
        said = "what it sent was changed on the way"
    else:
        said = reason
    return HandshakeFailed(f"no encrypted connection with the peer: {said}")


def read_into(encryption: ssl.SSLObject, target: memoryview) -> tuple[int, ssl.SSLError | None]:
    """Decrypt what has come into `target`: how many bytes that were, and what ended it if that was neither a full
    target nor that no more had come."""
    read: Callable[[int, bytearray], int] = encryption.read  # type: ignore[assignment]
    size, filled = len(target), 0
    try:
        while filled < size:
            # The stubs of the standard library know bytearrays only; any writable buffer is filled.
            count = read(size - filled, cast(bytearray, target[filled:]))
            if not count:
                break
            filled += count
    except ssl.SSLWantReadError:
        return filled, None
    except ssl.SSLError as error:
        return filled, error
    return filled, None
