"""Which peers of an agent share its host: what they have proved, and so what they may be shown."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from cluster.daemon.agent_store import Store
from cluster.storage.probes import is_segment_name, make_probe, proven, read_probe, renewed
from cluster.storage.segments import remove_if_dead
from cluster.transport.tcp import Connection
from cluster.wire import messages

__all__ = ["PeerHosts"]

SWEPT_AFTER_SECONDS: Final = 1.0
"""A client whose connection has ended may have been killed; a moment later the kernel has given up its lock."""


class PeerHosts:
    """What the peers that came in have proved. With `shares` false nobody is shown anything."""

    def __init__(self, store: Store, shares: bool) -> None:
        self._store = store
        directories = [str(path) for path in store.paths] if shares else []
        self._probes = [make_probe(directory) for directory in directories]
        self._positions = {directory: position for position, directory in enumerate(directories)}
        self._opens: dict[int, frozenset[int]] = {}  # by peer, the positions of our directories
        self._sources: dict[int, str] = {}  # by peer, its directory

    def heard(self, connection: Connection, peer: int, message: messages.HostProbe | messages.HostProof) -> None:
        """A peer asks for the probes, proves that it has read them, or names its own."""
        if isinstance(message, messages.HostProof):
            self._opens[peer] = proven(self._probes, message.contents)
        elif not message.paths:
            self._probes = list(map(renewed, self._probes))
            connection.send(messages.HostProbe([probe.path for probe in self._probes]))
        else:
            connection.send(messages.HostProof(self._read(peer, message.paths[0])))

    def _read(self, peer: int, path: str) -> list[bytes]:
        directory = path.rpartition("/")[0]
        content = read_probe(path) if self._probes else b""
        if not content or not self._can_link(directory):
            return [b""]
        self._sources[peer] = directory
        return [content]

    def _can_link(self, directory: str) -> bool:
        """Whether it lies in the file system of our segments: links cannot be made from one to another."""
        try:
            return os.stat(directory).st_dev == os.stat(self._store.paths[0]).st_dev
        except OSError:  # the peer has just ended
            return False

    def take_over(self, peer: int, message: messages.PutSegment) -> tuple[str, str]:
        """Link a segment of the peer's: its path here, or why that cannot be."""
        directory = self._sources.get(peer)
        if directory is None or not is_segment_name(message.name):
            return "", f"{message.name!r:.80} is no segment in a directory that was proved"
        return self._store.take_over(f"{directory}/{message.name}", message.nbytes)

    def show(self, peer: int, path: str) -> tuple[int, str] | None:
        """How to name a segment to a peer that can open it: its directory's position and its name.

        It can be used again once the peer needs it no more: under another name, when no link and no map of it is left.
        """
        opens = self._opens.get(peer)
        if not opens:
            return None
        directory, _, name = path.rpartition("/")
        position = self._positions.get(directory, -1)
        if position not in opens:
            return None
        return position, name

    def closed(self, peer: int) -> None:
        """A peer has gone."""
        self._opens.pop(peer, None)
        directory = self._sources.pop(peer, None)
        if directory is not None:
            asyncio.get_running_loop().call_later(SWEPT_AFTER_SECONDS, self._remove_if_dead, directory)

    def _remove_if_dead(self, directory: str) -> None:
        if directory not in self._sources.values():
            asyncio.get_running_loop().run_in_executor(None, remove_if_dead, Path(directory))
