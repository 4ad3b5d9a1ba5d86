"""Which peers of an agent share its host: what they have proved, and so what they may be shown."""

from __future__ import annotations

from cluster.daemon.agent_store import Store
from cluster.storage.probes import make_probe, proven, read_probes
from cluster.transport.tcp import Connection
from cluster.wire import messages

__all__ = ["PeerHosts"]


class PeerHosts:
    """What the peers that came in have proved. With `shares` false nobody is shown anything."""

    def __init__(self, store: Store, shares: bool) -> None:
        self._store = store
        directories = [str(path) for path in store.paths] if shares else []
        self._probes = [make_probe(directory) for directory in directories]
        self._positions = {directory: position for position, directory in enumerate(directories)}
        self._opens: dict[int, frozenset[int]] = {}

    def heard(self, connection: Connection, peer: int, message: messages.HostProbe | messages.HostProof) -> None:
        """A peer asks for the probes, proves that it has read them, or names its own."""
        if isinstance(message, messages.HostProof):
            self._opens[peer] = proven(self._probes, message.contents)
        elif not message.paths:
            connection.send(messages.HostProbe([probe.path for probe in self._probes]))
        else:
            contents = read_probes(message.paths) if self._probes else []
            connection.send(messages.HostProof(contents))

    def show(self, peer: int, path: str) -> tuple[int, str] | None:
        """How to name a segment to a peer that can open it, its directory's position and its name; noted as shown."""
        opens = self._opens.get(peer)
        if not opens:
            return None
        directory, _, name = path.rpartition("/")
        position = self._positions.get(directory, -1)
        if position not in opens:
            return None
        self._store.mark_shown(path)
        return position, name

    def closed(self, peer: int) -> None:
        """A peer has gone."""
        self._opens.pop(peer, None)
