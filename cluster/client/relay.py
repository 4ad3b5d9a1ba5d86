"""The way to workers that the client cannot reach: through the scheduler, which it can.

A further connection to the scheduler carries the bytes of a connection to the worker (`cluster.daemon.relays`). Here a
pair of sockets stands for that connection: whoever speaks to the worker has one end, and two threads move bytes between
the other and the scheduler, each no faster than its taker takes them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Final

from cluster.errors import ClusterError, ConnectionLost
from cluster.transport.blocking import BlockingConnection
from cluster.wire import messages

__all__ = ["relay_to"]

PIECE_BYTES: Final = 256 * 1024
ANSWER_SECONDS: Final = 10.0


def relay_to(address: str, scheduler_address: str, secret: bytes) -> socket.socket:
    """Give a socket that leads to the worker at that address; raises ConnectionLost if there is no way."""
    scheduler = BlockingConnection.connect(scheduler_address, secret, "client", ("scheduler",))
    try:
        scheduler.send(messages.Relay(address))
        error = scheduler.receive_one(messages.Relayed, ANSWER_SECONDS).error
        if error:
            raise ConnectionLost(error)
        ours, theirs = socket.socketpair()
    except BaseException:
        scheduler.close()
        raise
    outward = threading.Thread(target=_outward, args=(theirs, scheduler), name="cluster-relay-out", daemon=True)
    threading.Thread(target=_inward, args=(scheduler, theirs, outward), name="cluster-relay-in", daemon=True).start()
    outward.start()
    return ours


def _outward(theirs: socket.socket, scheduler: BlockingConnection) -> None:
    """Pass on what goes to the worker, until one of the two ends."""
    with contextlib.suppress(OSError, ClusterError):
        while data := theirs.recv(PIECE_BYTES):
            scheduler.send(messages.RelayData(data))
    scheduler.shutdown()  # the other thread wakes


def _inward(scheduler: BlockingConnection, theirs: socket.socket, outward: threading.Thread) -> None:
    """Pass on what comes from the worker, until one of the two ends; then end both."""
    with contextlib.suppress(OSError, ClusterError):
        while True:
            for message in scheduler.receive(None):
                if isinstance(message, messages.RelayData):
                    theirs.sendall(message.data)
    with contextlib.suppress(OSError):
        theirs.shutdown(socket.SHUT_RDWR)  # the other thread wakes
    outward.join()
    scheduler.close()
    theirs.close()
