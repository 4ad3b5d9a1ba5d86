"""TLS between a socket's transport and a `Connection`.

Nothing here proves who the peer is: the handshake inside does (`wire/handshake.py`), together with which certificate
was seen. OpenSSL works in memory, in both kinds of connections, so few and large pieces go to the system.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from cluster.certificate import Certificate
from cluster.errors import HandshakeFailed
from cluster.transport.addresses import is_loopback
from cluster.transport.channels import channel_of, client_context, describe_tls_error, read_into
from cluster.transport.connection import Connection, receive_buffer
from cluster.wire.handshake import HANDSHAKE_LIMIT_BYTES, TLS_HELLO, TLS_REFUSAL

__all__ = ["EncryptedTransport"]

# What a peer may send before it has proved itself: TLS's own handshake, then ours, each in records with their overhead.
_UNPROVED_LIMIT_BYTES: Final = 3 * HANDSHAKE_LIMIT_BYTES


class EncryptedTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """The socket's protocol, and the transport of one `Connection`.

    A listening side without the peer's first byte does not know yet what the peer speaks: TLS goes on here; whoever
    speaks plainly from this machine itself is left to the connection and the socket's transport alone.
    """

    def __init__(self, connection: Connection, certificate: Certificate | None) -> None:
        super().__init__()
        self.connection = connection
        self._certificate = certificate
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = client_context() if certificate is None else certificate.context
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=certificate is not None)
        self._loop = asyncio.get_running_loop()
        # What came is OpenSSL's before anything is decrypted, so both may be the same place.
        self._buffer = receive_buffer(self._loop)
        self._socket_transport: asyncio.Transport | None = None
        self._agreed = False
        self._peer_has_begun = certificate is None
        self._unproved_bytes = 0
        # Written before both sides had agreed on keys.
        self._waiting: list[bytes] = []
        self._paused = False
        self._decrypting = False
        self._resuming = False

    # ------------------------------------------------------------------ the socket's transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket_transport = transport
        self.connection.connection_made(self)
        if self._certificate is None and not self.connection.closed:
            self._agree()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer if self.connection.proved else self._buffer[:HANDSHAKE_LIMIT_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self.connection.closed:
            return
        data = self._buffer[:nbytes]
        if not self._peer_has_begun:
            self._peer_has_begun = True
            if bytes(data[:1]) != TLS_HELLO:
                self._go_on_plainly(bytes(data))
                return
        if not self.connection.proved:
            self._unproved_bytes += nbytes
            if self._unproved_bytes > _UNPROVED_LIMIT_BYTES:
                limit = f"more than {_UNPROVED_LIMIT_BYTES} bytes"
                self.connection.refuse(HandshakeFailed(f"the peer sent {limit} without proving itself"))
                return
        self._incoming.write(data)
        if not self._agreed:
            self._agree()
        self._decrypt()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.connection_lost(exc)

    # ------------------------------------------------------------------ agreeing on keys

    def _go_on_plainly(self, data: bytes) -> None:
        """The peer speaks plainly: one on this machine may, and others are not what this port is for."""
        transport, connection = self._require_transport(), self.connection
        peer: tuple[Any, ...] = transport.get_extra_info("peername") or ("",)
        if not is_loopback(str(peer[0])) and b"CLUSTER"[: len(data)] == data[:7]:
            transport.write(TLS_REFUSAL)
            connection.refuse(
                HandshakeFailed("it does not encrypt, and only processes of this machine need not; write tls:// there")
            )
            return
        connection.goes_on_plainly(transport)
        transport.set_protocol(connection)
        connection.get_buffer(-1)[: len(data)] = data
        connection.buffer_updated(len(data))

    def _agree(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._failed(error)
            return
        self._agreed = True
        name = channel_of(self._tls) if self._certificate is None else self._certificate.fingerprint
        self.connection.is_encrypted(name)
        self._flush()
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self.write(data)

    def _failed(self, error: ssl.SSLError) -> None:
        if self.connection.closed:
            return
        self._flush()  # TLS tells the peer by an alert
        described = describe_tls_error(error)
        described.__cause__ = error
        if self.connection.proved:
            self.connection.abort(f"the peer {self.connection.peer_address} was given up: {described}")
        else:
            self.connection.refuse(described)

    # ------------------------------------------------------------------ receiving

    def _decrypt(self) -> None:
        """Hand on everything that has come, piece by piece, until the connection asks for a pause."""
        if not self._agreed or self._decrypting:
            return
        self._decrypting = True
        try:
            while not self._paused and not self.connection.closed:
                target = self.connection.get_buffer(-1)
                filled = self._read_into(target)
                if filled:
                    self.connection.buffer_updated(filled)
                if filled < len(target):
                    break
        finally:
            self._decrypting = False

    def _read_into(self, target: memoryview) -> int:
        filled, error = read_into(self._tls, target)
        # What came before its end was whole, and is handed on first.
        if isinstance(error, ssl.SSLZeroReturnError):
            self._loop.call_soon(self.close)
        elif error is not None:
            self._loop.call_soon(self._failed, error)
        if self._outgoing.pending:
            self._flush()
        return filled

    def pause_reading(self) -> None:
        self._paused = True
        self._require_transport().pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._require_transport().resume_reading()
            # What was decrypted up to now came before the pause; the rest comes when the caller is ready for it.
            self._loop.call_soon(self._decrypt)

    # ------------------------------------------------------------------ sending

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt all of it at once; it ends with a record, so nothing that is written later shares one with it."""
        if not self._agreed:
            self._waiting.append(bytes(data))
            return
        view = memoryview(data)
        while len(view):
            view = view[self._tls.write(view) :]
        self._flush()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and self._socket_transport is not None:
            self._socket_transport.write(data)

    def get_write_buffer_size(self) -> int:
        return self._require_transport().get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._require_transport().set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        return self._require_transport().get_extra_info(name, default)

    # ------------------------------------------------------------------ the end

    def is_closing(self) -> bool:
        return self._require_transport().is_closing()

    def close(self) -> None:
        self._require_transport().close()

    def abort(self) -> None:
        self._require_transport().abort()

    def _require_transport(self) -> asyncio.Transport:
        assert self._socket_transport is not None
        return self._socket_transport
