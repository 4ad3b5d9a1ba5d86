"""TLS on a socket that is read and written by whoever waits: what `BlockingConnection` needs of a socket, encrypted.

Whoever waits looks at the socket itself for something to read, so nothing may stay behind here that could be had. No
more is taken from the socket than what fits into the place for it, as plain bytes are fewer than their records; only a
record may be larger than that place, and its rest is given first. A sender ends a record with each thing that it sends.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Final

from cluster.errors import HandshakeFailed
from cluster.transport.channels import channel_of, client_context, describe_tls_error, read_into
from cluster.wire.handshake import HANDSHAKE_LIMIT_BYTES

__all__ = ["EncryptedSocket"]

_HEADER_BYTES: Final = 5
_RECORD_LIMIT_BYTES: Final = _HEADER_BYTES + (1 << 14) + 256
_STEP_BYTES: Final = 256 * 1024


class EncryptedSocket:
    """A connected socket with TLS on it, for one thread that sends and one that receives, each at a time."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = client_context().wrap_bio(self._incoming, self._outgoing)
        # OpenSSL's object is not for two threads at a time; no call of it waits for anything.
        self._lock = threading.Lock()
        # What came and is not yet a whole record, at the beginning.
        self._records = memoryview(bytearray(_STEP_BYTES + _RECORD_LIMIT_BYTES))
        self._kept_bytes = 0
        # Encrypted and not yet taken by the system, and how much of the caller's bytes that is.
        self._unsent = memoryview(b"")
        self._owed_bytes = 0

    def agree(self, deadline: float) -> str:
        """Agree with the listener on keys; return the name of the channel. Raises HandshakeFailed or OSError."""
        received_bytes = 0
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                raise describe_tls_error(error) from error
            else:
                self.sendall(b"")
                return channel_of(self._tls)
            self.sendall(b"")
            self.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._socket.recv(HANDSHAKE_LIMIT_BYTES)
            received_bytes += len(data)
            if not data:
                raise HandshakeFailed("the peer ended the connection during the handshake")
            if received_bytes > 2 * HANDSHAKE_LIMIT_BYTES:
                raise HandshakeFailed("the peer sends more than a handshake before it has agreed on encryption")
            self._incoming.write(data)

    def sendall(self, data: bytes) -> None:
        """Send a little, and wait until the system has taken it; while the handshake lasts."""
        if data:
            self._tls.write(data)
        self._socket.sendall(self._outgoing.read())

    def recv(self, wanted_bytes: int) -> bytes:
        """Return what has come, at least a byte, or none at the end of the connection; while the handshake lasts."""
        target = memoryview(bytearray(wanted_bytes + _RECORD_LIMIT_BYTES))
        return bytes(target[: self._receive(target, wanted_bytes)])

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send what the system takes now and return how much that was. After BlockingIOError offer the same again."""
        if not self._unsent:
            with self._lock:
                self._owed_bytes = self._encrypt(buffers)
                self._unsent = memoryview(self._outgoing.read())
        while self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        sent, self._owed_bytes = self._owed_bytes, 0
        return sent

    def _encrypt(self, buffers: Sequence[bytes | memoryview]) -> int:
        taken = 0
        for buffer in buffers:
            view = memoryview(buffer)[: _STEP_BYTES - taken]
            taken += len(view)
            while len(view):
                view = view[self._tls.write(view) :]
            if taken == _STEP_BYTES:
                break
        return taken

    def recv_into(self, target: memoryview) -> int:
        """Put what has come into `target` and return how much, 0 at the end; BlockingIOError if nothing has."""
        return self._receive(target, len(target))

    def _receive(self, target: memoryview, wanted_bytes: int) -> int:
        with self._lock:
            filled = self._decrypt(target) if self._tls.pending() else 0
        while not filled:
            # A record must be whole before any of it can be read, so its rest is taken even if it is more than wanted.
            limit = max(min(wanted_bytes, _STEP_BYTES) - self._kept_bytes, self._missing_bytes())
            count = self._socket.recv_into(self._records[self._kept_bytes : self._kept_bytes + limit])
            if not count:
                return 0
            self._kept_bytes += count
            with self._lock:
                self._hand_over_whole_records()
                filled = self._decrypt(target)
        return filled

    def _missing_bytes(self) -> int:
        """How much is missing of the record that has begun; of its header, if that is not whole."""
        if self._kept_bytes < _HEADER_BYTES:
            return _HEADER_BYTES - self._kept_bytes
        return _record_bytes(self._records, 0) - self._kept_bytes

    def _hand_over_whole_records(self) -> None:
        records, kept, end = self._records, self._kept_bytes, 0
        while end + _HEADER_BYTES <= kept:
            size = _record_bytes(records, end)
            if end + size > kept:
                break
            end += size
        if end:
            self._incoming.write(records[:end])
            records[: kept - end] = records[end:kept]
            self._kept_bytes = kept - end

    def _decrypt(self, target: memoryview) -> int:
        filled, error = read_into(self._tls, target)
        if isinstance(error, ssl.SSLZeroReturnError):
            raise ConnectionResetError(errno.ECONNRESET, "it ended the encryption") from error
        if error is not None:
            raise ConnectionAbortedError(errno.EPROTO, str(describe_tls_error(error))) from error
        return filled

    def settimeout(self, seconds: float | None) -> None:
        """As a socket's."""
        self._socket.settimeout(seconds)

    def setblocking(self, blocking: bool) -> None:
        """As a socket's."""
        self._socket.setblocking(blocking)

    def fileno(self) -> int:
        """As a socket's."""
        return self._socket.fileno()

    def shutdown(self, how: int) -> None:
        """As a socket's."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """As a socket's."""
        self._socket.close()


def _record_bytes(records: memoryview, at: int) -> int:
    """The size of the record that begins there, with its header; no larger than records may be."""
    size = _HEADER_BYTES + (records[at + 3] << 8 | records[at + 4])
    if size > _RECORD_LIMIT_BYTES:
        raise ConnectionAbortedError(errno.EPROTO, "what it sends is not TLS any longer")
    return size
