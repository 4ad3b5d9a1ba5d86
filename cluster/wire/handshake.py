"""How two processes prove to each other that they share one secret, before anything else is said.

The secret itself never travels. C is the side that connected, L the side that listens::

    C -> L   hello    magic "CLUSTER\\0", protocol number, 32 random bytes
    L -> C   hello    the same, with random bytes of its own
    C -> L   proof    length, HMAC over (label of C, both hellos, claims of C), claims of C
    L -> C   proof    length, HMAC over (label of L, both hellos, claims of C, claims of L), claims of L
                      length 0: refused, wrong secret

Claims are a role ("client", "scheduler", "worker"), versions, the channel, and in the last message the reason of a
refusal, if any. The channel says which encrypted connection these messages travel in (the fingerprint of the
certificate that this end sees there, "" for none). Since each side proves its claims and compares the other's, whoever
stands between the two and opens what is encrypted is found out, though nobody knows any certificate beforehand.

Both random parts are in both proofs, so a recorded handshake is worth nothing later; the labels differ, so a proof
cannot be sent back to its maker. L says who it is, or why it refuses, only to a C that has proved itself.

Nothing here does I/O: bytes come in by `feed` and go out by `data_to_send`. After an error, send what `data_to_send`
still has, so that the peer learns the reason, and close.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import Any, Final, NamedTuple

import msgpack

from cluster.errors import HandshakeFailed, Intercepted, SettingError, VersionMismatch, WrongSecret
from cluster.version import PYTHON_VERSION

__all__ = [
    "HANDSHAKE_LIMIT_BYTES",
    "HANDSHAKE_SECONDS",
    "PROTOCOL",
    "SECRET_BYTES",
    "TLS_HELLO",
    "TLS_REFUSAL",
    "Handshake",
    "PeerInfo",
]

PROTOCOL: Final = 1
SECRET_BYTES: Final = 32
# More than this a peer cannot make the other side keep before it has proved itself.
HANDSHAKE_LIMIT_BYTES: Final = 4096
# The shell that owns the socket closes it when the handshake takes longer.
HANDSHAKE_SECONDS: Final = 5.0

_MAGIC: Final = b"CLUSTER\0"
_hello = struct.Struct("<8sH32s")
_length = struct.Struct("<H")
_PROOF_BYTES: Final = 32
_PROOF_LIMIT_BYTES: Final = HANDSHAKE_LIMIT_BYTES - _hello.size - _length.size
_LABELS: Final = {False: b"cluster connecting side", True: b"cluster listening side"}

# How TLS begins, and how it says that it cannot agree (an alert: fatal, handshake failure).
TLS_HELLO: Final = b"\x16"
TLS_REFUSAL: Final = b"\x15\x03\x03\x00\x02\x02\x28"

_HTTP_METHODS: Final = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ")
_HTTP_TEXT: Final = b"This port speaks the cluster protocol, not HTTP.\n"
_HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_HTTP_TEXT), _HTTP_TEXT)
)


class PeerInfo(NamedTuple):
    """Who is at the other end: its role, and its versions by name ("python")."""

    role: str
    versions: dict[str, str]


class Handshake:
    """One side of the mutual proof: give it what came, send what it has, until `complete`.

    `peer_roles` are the roles that the other side may have. Raises WrongSecret, VersionMismatch (another protocol,
    another minor version of Python) or HandshakeFailed (not a peer of this kind at all).
    """

    def __init__(
        self,
        secret: bytes,
        role: str,
        listening: bool,
        peer_roles: tuple[str, ...],
        *,
        versions: dict[str, str] | None = None,
    ) -> None:
        if len(secret) != SECRET_BYTES:
            raise SettingError(f"the secret must have {SECRET_BYTES} bytes, not {len(secret)}")
        self.complete = False
        self.channel = ""
        """The encrypted connection that this handshake travels in; set it before anything is fed."""
        self.peer = PeerInfo("", {})
        self._secret = secret
        self._listening = listening
        self._peer_roles = peer_roles
        self._claims: dict[str, Any] = {"role": role, "versions": versions or {"python": PYTHON_VERSION}}
        self._received = bytearray()
        self._peer_hello = b""
        self._connecting_claims = b""
        self._own_hello = _hello.pack(_MAGIC, PROTOCOL, os.urandom(32))
        # A listener stays silent until the peer has shown that it speaks this protocol.
        self._outgoing = b"" if listening else self._own_hello

    def data_to_send(self) -> bytes:
        """Return what must be sent now (may be empty), also after an error."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    def rest(self) -> bytes:
        """Return what came behind the handshake: the peer's first frames."""
        rest = bytes(self._received)
        self._received.clear()
        return rest

    @property
    def peer_has_answered(self) -> bool:
        """Whether anything has come; a listener with too many strangers hangs up without a word."""
        return bool(self._peer_hello or self._received)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what came from the peer."""
        self._received += data
        if not self._peer_hello:
            self._read_hello()
        if self._peer_hello and not self.complete:
            self._read_proof()

    def _read_hello(self) -> None:
        start = bytes(self._received[: len(_MAGIC)])
        if not _MAGIC.startswith(start):
            if self._listening and start.startswith(_HTTP_METHODS):
                self._outgoing = _HTTP_ANSWER
            elif self._listening and start[:1] == TLS_HELLO:
                self._outgoing = TLS_REFUSAL
            raise HandshakeFailed(f"the peer does not speak the cluster protocol: it sent {_describe(start)}")
        if len(self._received) >= _hello.size:
            hello = bytes(self._received[: _hello.size])
            del self._received[: _hello.size]
            protocol = _hello.unpack(hello)[1]
            if self._listening:
                self._outgoing = self._own_hello
            if protocol != PROTOCOL:
                raise VersionMismatch(
                    f"the peer speaks version {protocol} of the cluster protocol, this process version {PROTOCOL}; "
                    "install the same version of cluster-scheduler on both sides"
                )
            if hello == self._own_hello:
                raise HandshakeFailed("the peer sent back what it was sent; it is no cluster process")
            self._peer_hello = hello
            if not self._listening:
                self._connecting_claims = msgpack.packb({**self._claims, "channel": self.channel})
                self._send_proof(self._connecting_claims, b"")

    def _hmac(self, listening: bool, listening_claims: bytes) -> bytes:
        hellos = [self._own_hello, self._peer_hello]
        if self._listening:
            hellos.reverse()
        parts = [_LABELS[listening], *hellos, self._connecting_claims, listening_claims]
        message = b"".join(_length.pack(len(part)) + part for part in parts)
        return hmac.new(self._secret, message, hashlib.sha256).digest()

    def _send_proof(self, claims: bytes, listening_claims: bytes) -> None:
        proof = self._hmac(self._listening, listening_claims) + claims
        self._outgoing += _length.pack(len(proof)) + proof

    def _read_proof(self) -> None:
        if len(self._received) < _length.size:
            return
        size = _length.unpack_from(self._received)[0]
        if size == 0 and not self._listening:
            raise WrongSecret(
                "the peer refused this process: it has another secret; "
                "copy the file `secret` from its settings directory, or pass the directory that holds it"
            )
        if not _PROOF_BYTES < size <= _PROOF_LIMIT_BYTES:
            raise HandshakeFailed(f"the peer announced a proof of {size} bytes, which cannot be")
        if len(self._received) < _length.size + size:
            return
        body = bytes(self._received[_length.size : _length.size + size])
        del self._received[: _length.size + size]
        proof, claims = body[:_PROOF_BYTES], body[_PROOF_BYTES:]
        if self._listening:
            self._connecting_claims = claims
            wanted = self._hmac(False, b"")
        else:
            wanted = self._hmac(True, claims)
        if not hmac.compare_digest(proof, wanted):
            if self._listening:
                self._outgoing += _length.pack(0)
            raise WrongSecret("the peer has another secret than this process; both must use the same file `secret`")
        self._peer_has_proved_itself(claims)

    def _peer_has_proved_itself(self, claims: bytes) -> None:
        role, versions, channel, refusal = _read_claims(claims)
        self.peer = PeerInfo(role, versions)
        error = self._reason_against_channel(channel) or self._reason_against_peer()
        if self._listening:
            answer = {**self._claims, "channel": self.channel, **({} if error is None else {"refusal": str(error)})}
            packed = msgpack.packb(answer)
            self._send_proof(packed, packed)
        if error is not None:
            raise error
        if refusal:
            raise HandshakeFailed(f"the {role} refused this {self._claims['role']}: {refusal}")
        self.complete = True

    def _reason_against_channel(self, channel: str) -> Intercepted | None:
        if hmac.compare_digest(channel.encode(), self.channel.encode()):
            return None
        if channel and self.channel:
            found = "the two ends of the connection see different certificates"
        else:
            found = "the connection is encrypted at one of its ends only"
        return Intercepted(
            f"{found}: somebody between this {self._claims['role']} and the {self.peer.role} opens what is encrypted, "
            "an attacker or a proxy; connect without anything between them that knows TLS"
        )

    def _reason_against_peer(self) -> HandshakeFailed | None:
        role, versions = self.peer
        own, other = self._claims["versions"].get("python", ""), versions.get("python", "")
        if own.split(".")[:2] != other.split(".")[:2]:
            return VersionMismatch(
                f"the {role} runs Python {other or 'of unknown version'}, the {self._claims['role']} Python {own}; "
                "functions can only be sent between equal minor versions, so run both under the same one"
            )
        if role not in self._peer_roles:
            return HandshakeFailed(
                f"the {self._claims['role']} expected a {' or a '.join(self._peer_roles)}, but met a {role}; "
                "check the address and the port"
            )
        return None


def _read_claims(claims: bytes) -> tuple[str, dict[str, str], str, str]:
    try:
        found = msgpack.unpackb(claims)
    except Exception as error:  # msgpack raises ValueError, its own exceptions and UnicodeDecodeError alike
        raise HandshakeFailed("the peer has the secret, but what it says of itself cannot be read") from error
    role = found.get("role") if isinstance(found, dict) else None
    versions = found.get("versions") if isinstance(found, dict) else None
    if not isinstance(role, str) or not isinstance(versions, dict):
        raise HandshakeFailed("the peer has the secret, but does not say its role and its versions")
    said = {str(name): str(version) for name, version in versions.items()}
    return role, said, str(found.get("channel", "")), str(found.get("refusal", ""))


def _describe(start: bytes) -> str:
    if start.startswith(_HTTP_METHODS):
        return "an HTTP request"
    if start[:1] == TLS_HELLO:
        return "a TLS hello, but nothing is encrypted on this port; write tcp:// on this machine, or insecure://"
    if start[:1] == TLS_REFUSAL[:1]:
        return "that it takes encrypted connections only; write tls:// before its host and port"
    return repr(start)
