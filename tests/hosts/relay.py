"""A relay between two parties that spoils what passes: delays, stalls, cuts and changes it.

`python -m tests.hosts.relay HOST PORT TARGET_HOST TARGET_PORT` prints "ready PORT" and obeys lines:

    delay 0.05     everything arrives so many seconds later, in each direction
    stall, go      nothing passes any more, and nobody is told; it passes again
    cut N          the connections end when N more bytes have come from the target (0: now); later ones pass
    corrupt N      of what comes from the target, the byte after N more is changed, once

It says "cut" and "corrupted" when it has done that.
"""

from __future__ import annotations

import asyncio
import sys


class Relay:
    """All connections that pass, and what is to be done to them."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._delay_seconds = 0.0
        self._bytes_until_cut = -1
        self._bytes_until_change = -1

    def obey(self, order: str, number: float = 0) -> None:
        """Do what a line says."""
        if order == "delay":
            self._delay_seconds = number
        elif order == "stall":
            self._passing.clear()
        elif order == "go":
            self._passing.set()
        elif order == "cut" and number:
            self._bytes_until_cut = int(number)
        elif order == "cut":
            self._cut()
        elif order == "corrupt":
            self._bytes_until_change = int(number)
        else:
            raise ValueError(order)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on one connection until either end has gone."""
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        passing = [
            asyncio.create_task(self._pass(reader, there_writer, from_target=False)),
            asyncio.create_task(self._pass(there_reader, writer, from_target=True)),
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, there_writer):
            each.close()
            self._writers.discard(each)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_target: bool) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def write() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(due - loop.time())
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
                if not data:
                    return

        writing = asyncio.create_task(write())
        try:
            while data := await reader.read(65536):
                if from_target:
                    data = self._spoil(data)
                await waiting.put((loop.time() + self._delay_seconds, data))
            await waiting.put((loop.time() + self._delay_seconds, b""))
            await writing
        except OSError:
            return
        finally:
            writing.cancel()

    def _spoil(self, data: bytes) -> bytes:
        if 0 <= self._bytes_until_change < len(data):
            at, self._bytes_until_change = self._bytes_until_change, -1
            print("corrupted", flush=True)
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        self._bytes_until_change -= min(len(data), max(0, self._bytes_until_change))
        if self._bytes_until_cut > 0:
            self._bytes_until_cut -= len(data)
            if self._bytes_until_cut <= 0:
                self._bytes_until_cut = -1
                self._cut()
        return data

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        print("cut", flush=True)


async def main(host: str, port: str, target_host: str, target_port: str) -> None:
    """Relay until the input ends."""
    relay = Relay(target_host, int(target_port))
    server = await asyncio.start_server(relay.accept, host, int(port))
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        relay.obey(line[0], *map(float, line[1:]))
        print("obeyed", *line, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
