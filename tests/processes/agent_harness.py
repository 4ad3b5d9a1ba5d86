"""A real `cluster-worker` process under a scheduler played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import cloudpickle

from cluster.secret import load_or_create_secret
from cluster.transport.tcp import Connection, connect, listen
from cluster.wire import messages

Kind = TypeVar("Kind")

DEADLINE_SECONDS = 20.0
EPOCH = 7


class PlayedScheduler:
    """Listens, welcomes agents, and keeps what they say; everything else is the test's."""

    def __init__(self, secret: bytes) -> None:
        self.address = ""
        self.received: queue.Queue[tuple[Connection, Any]] = queue.Queue()
        self.connections: list[Connection] = []
        self.connections_out: list[Connection] = []
        self.closed = threading.Event()
        self._seen: list[Any] = []
        self._secret = secret
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(DEADLINE_SECONDS)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._listener = self._loop.run_until_complete(
            listen(
                "127.0.0.1",
                0,
                secret=self._secret,
                role="scheduler",
                peer_roles=("worker",),
                on_connected=self.connections.append,
                on_message=self._message,
                on_closed=lambda connection, reason: self.closed.set(),
            )
        )
        self.address = self._listener.address
        self._listening.set()
        self._loop.run_forever()
        self._listener.close()
        for connection in self.connections + self.connections_out:
            connection.abort()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def _message(self, connection: Connection, message: Any) -> None:
        if isinstance(message, messages.WorkerJoin):
            connection.send(messages.WorkerWelcome(EPOCH, 0, {}))
        if not isinstance(message, messages.AgentHeartbeat):
            self.received.put((connection, message))

    def send(self, *outgoing: Any, to: int = 0) -> None:
        """Send messages to the agent that came `to`-th."""
        connection = self.connections[to]
        self._loop.call_soon_threadsafe(lambda: [connection.send(message) for message in outgoing])

    def hang_up(self) -> None:
        """End the connections."""
        for connection in self.connections:
            self._loop.call_soon_threadsafe(connection.abort)

    def expect(self, kind: type[Kind] | tuple[type[Kind], ...], seconds: float = DEADLINE_SECONDS) -> Kind:
        """The next message of that class, or of one of these; others that come before are kept for later."""
        for position, message in enumerate(self._seen):
            if isinstance(message, kind):
                del self._seen[position]
                return message
        deadline = time.monotonic() + seconds
        while True:
            try:
                _, message = self.received.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind} came; {self._seen} did") from None
            if isinstance(message, kind):
                return message
            self._seen.append(message)

    def peer(self, address: str) -> Peer:
        """A connection to that agent, as another worker or a client would have it."""
        return Peer(self, self._loop, address, self._secret)

    def done(self, tasks: int) -> dict[tuple[int, int], bytes]:
        """Wait until so many tasks have succeeded: (attempt, row) -> the bytes that came along."""
        values: dict[tuple[int, int], bytes] = {}
        while len(values) < tasks:
            for attempt, row, _, data in done_rows(self.expect(messages.Done)):
                values[attempt, row] = data
        return values


class Peer:
    """Asks an agent for values, and pushes some."""

    def __init__(
        self, scheduler: PlayedScheduler, loop: asyncio.AbstractEventLoop, address: str, secret: bytes
    ) -> None:
        self._loop = loop
        self._answers: queue.Queue[Any] = queue.Queue()
        self.connection = asyncio.run_coroutine_threadsafe(
            connect(
                address,
                secret=secret,
                role="client",
                peer_roles=("worker",),
                on_message=self._message,
                on_closed=lambda connection, reason: self._answers.put(reason),
            ),
            loop,
        ).result(DEADLINE_SECONDS)
        scheduler.connections_out.append(self.connection)

    def _message(self, connection: Connection, message: Any) -> None:
        if isinstance(message, messages.ValueStream | messages.ValuePiece):
            data = bytearray(message.nbytes)
            connection.receive_raw(memoryview(data), lambda: self._answers.put((message, bytes(data))))
        else:
            self._answers.put((message, getattr(message, "data", b"")))

    def get(self, names: list[tuple[int, int]]) -> list[bytes]:
        """The values of these (row, attempt); empty where there is none."""
        self.ask(names)
        found = []
        for name in names:
            message, data = self._answers.get(timeout=DEADLINE_SECONDS)
            assert (message.row, message.attempt) == name
            found.append(data)
        return found

    def ask(self, names: list[tuple[int, int]]) -> None:
        """Ask for values without waiting for them."""
        request = messages.GetValues(1, [number for name in names for number in name])
        self._loop.call_soon_threadsafe(self.connection.send, request)

    def stop_reading(self) -> None:
        """Read nothing more from the agent."""
        transport = self.connection._transport
        assert transport is not None
        self._loop.call_soon_threadsafe(transport.pause_reading)

    def put(self, row: int, attempt: int, data: bytes, *, asks: bool = False) -> str:
        """Push a value, perhaps asking first whether there is room; the error, if any."""
        small = len(data) <= 1 << 20

        def send() -> None:
            self.connection.send(messages.PutValue(row, attempt, len(data), data if small else b""))
            if not small:
                self.connection.send_encoded(data)

        if asks and isinstance(answer := self.asks_room(row, attempt, len(data)), messages.PutDone):
            return answer.error
        self._loop.call_soon_threadsafe(send)
        message, _ = self._answers.get(timeout=DEADLINE_SECONDS)
        assert (message.row, message.attempt) == (row, attempt)
        return str(message.error)

    def asks_room(self, row: int, attempt: int, nbytes: int) -> messages.PutReady | messages.PutDone:
        """Ask whether there is room for a value; the answer."""
        request = messages.PutRequest(row, attempt, nbytes)
        self._loop.call_soon_threadsafe(self.connection.send, request)
        message, _ = self._answers.get(timeout=DEADLINE_SECONDS)
        assert isinstance(message, messages.PutReady | messages.PutDone)
        return message

    def hang_up(self) -> None:
        """End the connection."""
        self._loop.call_soon_threadsafe(self.connection.abort)


def done_rows(done: messages.Done) -> Iterator[tuple[int, int, int, bytes]]:
    """What a Done says, row by row: attempt, row, nbytes, data."""
    rows = [
        row for first, count in zip(done.runs[::2], done.runs[1::2], strict=True) for row in range(first, first + count)
    ]
    sizes = array("Q", done.sizes)
    offsets = array("I", done.offsets)
    assert len(sizes) == len(rows)
    for position, row in enumerate(rows):
        data = done.blob[offsets[position] : offsets[position + 1]] if offsets else b""
        yield done.attempt, row, sizes[position], data


def function_message(function: Callable[..., Any], name: str = "f") -> messages.DefineFunction:
    """The function by value, under an id made of its name."""
    return messages.DefineFunction(name.encode().ljust(16, b"."), name, cloudpickle.dumps(function))


def grant(
    attempt: int,
    calls: list[tuple[Any, ...]],
    *,
    first_row: int = 0,
    name: str = "f",
    inline: int = 4096,
    values: list[Any] | None = None,
    needs: list[list[int]] | None = None,
    **options: Any,
) -> messages.Grant:
    """A grant of consecutive rows, each with its arguments."""
    offsets, blob = array("I", [0]), b""
    for call in calls:
        blob += cloudpickle.dumps(call, 5)
        offsets.append(len(blob))
    starts, inputs = array("I", [0]), array("I")
    for need in needs or []:
        inputs.extend(need)
        starts.append(len(inputs))
    return messages.Grant(
        attempt=attempt,
        runs=[first_row, len(calls)],
        function_id=name.encode().ljust(16, b"."),
        label=name,
        arguments=0,
        offsets=offsets.tobytes(),
        blob=blob,
        input_starts=starts.tobytes() if needs else b"",
        inputs=inputs.tobytes(),
        values=values or [],
        inline_limit_bytes=inline,
        options=options,
        origin=[b"c" * 16, -1, 0, "", [], True],
    )


class Worker:
    """The process of a `cluster-worker`."""

    def __init__(self, address: str, *arguments: str, wait_until_joined: bool = True, **popen: Any) -> None:
        program = popen.pop("program", ("-m", "cluster.cli.worker"))
        self.process = subprocess.Popen(
            [sys.executable, *program, address, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            **popen,
        )
        self.first_line = ""
        if wait_until_joined:
            assert self.process.stdout is not None
            self.first_line = self.process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, seconds: float = DEADLINE_SECONDS) -> tuple[int, str]:
        """Wait for the process to end: its exit status, and what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors

    def descendants(self) -> list[int]:
        """The process ids of the starter, the slots and all that these started."""
        return descendants(self.process.pid)


def descendants(process_id: int) -> list[int]:
    """All processes below that one."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process_id}/task").iterdir():
            for word in (task / "children").read_text().split():
                found += [int(word), *descendants(int(word))]
    return found


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait for what no event tells of: another process's end, a file's removal."""
    deadline = time.monotonic() + seconds
    while not (outcome := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.005)
    return outcome


def alive(process_ids: list[int]) -> list[int]:
    """Those of the processes that still run; one that ended and was not waited for does not."""
    running = []
    for process_id in process_ids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                running.append(process_id)
    return running


def segments_below(directory: Path) -> list[Path]:
    """The segments and segment directories of all agents there."""
    return [path for path in directory.glob("cluster-*/*")]


def make_scheduler() -> PlayedScheduler:
    """A scheduler with the secret of the test's own directory."""
    return PlayedScheduler(load_or_create_secret(Path(os.environ["CLUSTER__DIRECTORY"])))
