"""A gigabyte through a plain blocking socket, to compare with: `python -m benchmarks.raw_copy send|receive …`.

    send HOST NBYTES DIRECTORY            listen, say the port, and send a file in that directory as each peer likes
    receive HOST PORT NBYTES DIRECTORY WAY   take it into a fresh mapped file there, and say how many seconds that took

The ways: "sendfile", "send" (from a map of the file), "tls" (the same, encrypted).
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import ssl
import sys
import time
from pathlib import Path

from cluster.certificate import load_or_create_certificate

WAYS = {"sendfile": b"f", "send": b"s", "tls": b"t"}
STEP_BYTES = 1 << 20


def send(host: str, nbytes: int, directory: Path) -> None:
    path = directory / "raw-source"
    block = os.urandom(STEP_BYTES)
    with path.open("wb") as file:
        for _ in range(nbytes // STEP_BYTES):
            file.write(block)
    context = load_or_create_certificate(directory / "raw-certificate").context
    source = os.open(path, os.O_RDONLY)
    view = memoryview(mmap.mmap(source, nbytes, prot=mmap.PROT_READ))
    listener = socket.create_server((host, 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        peer, _ = listener.accept()
        way = peer.recv(1)
        if way == WAYS["sendfile"]:
            offset = 0
            while offset < nbytes:
                offset += os.sendfile(peer.fileno(), source, offset, nbytes - offset)
        elif way == WAYS["send"]:
            peer.sendall(view)
        else:
            with context.wrap_socket(peer, server_side=True) as encrypted:
                for start in range(0, nbytes, STEP_BYTES):
                    encrypted.sendall(view[start : start + STEP_BYTES])
        peer.close()


def receive(host: str, port: int, nbytes: int, directory: Path, way: str) -> float:
    path = directory / "raw-target"
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    peer = socket.create_connection((host, port))
    peer.sendall(WAYS[way])
    if way == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        peer = context.wrap_socket(peer)
    target = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, nbytes)
    view = memoryview(mmap.mmap(target, nbytes))
    offset = 0
    while offset < nbytes:
        count = peer.recv_into(view[offset : offset + STEP_BYTES])
        if not count:
            raise RuntimeError(f"the sender ended after {offset} bytes")
        offset += count
    seconds = time.perf_counter() - began
    peer.close()
    path.unlink()
    return seconds


if __name__ == "__main__":
    what, host, *rest = sys.argv[1:]
    if what == "send":
        send(host, int(rest[0]), Path(rest[1]))
    else:
        seconds = receive(host, int(rest[0]), int(rest[1]), Path(rest[2]), rest[3])
        print(json.dumps({"seconds": seconds, "processor_seconds": time.process_time()}))
