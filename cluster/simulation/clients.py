"""A simulated client: the session's machine, a user who submits, releases, cancels and looks, and values in memory."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from cluster.ids import task_key
from cluster.session import table as states
from cluster.session.machine import DropOffered, PushValue, Session
from cluster.session.parts import Call, Function
from cluster.simulation.gathering import Gather, begin_gather
from cluster.simulation.network import Connection
from cluster.simulation.workloads import Reference, Spec, encode_value
from cluster.wire import messages
from cluster.wire.task_output import CUT
from cluster.worker.pieces import IN_MESSAGE_BYTES

if TYPE_CHECKING:
    from cluster.simulation.world import World

__all__ = ["ClientProcess"]

LATE_FLUSH_SECONDS = 0.002
MOST_THAT_IS_NO_SUBMIT = 0.6


class PushLink:
    """A connection to an agent for values that are pushed, and the orders that were not answered."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.orders: deque[PushValue] = deque()


class ClientProcess:
    """One client."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.name = f"client{index}"
        self.client_id = self.name.encode().ljust(16, b".")
        weights = world.plan.weights
        self.weight = weights[index] if index < len(weights) else 1.0
        limit_bytes = world.plan.arguments_limit_bytes
        self.session = Session(self.client_id, self.name, {}, self.weight, arguments_limit_bytes=limit_bytes)
        self.asked: list[int] = []  # requests that were not answered yet
        self.alive = True
        self.acting = True
        self.held: dict[int, int] = {}  # number -> the spec's index
        self.shared: set[int] = set()  # numbers that another client took a future of
        self.number_of: dict[int, int] = {}  # of specs that are held
        self.offered: dict[int, Spec] = {}
        self.gathers: list[Gather] = []
        self._random = world.random_of(f"client {index}")
        self._cutting = world.random_of(f"parts of client {index}")  # apart, so that it changes nothing else
        self._calls: dict[str, Call] = {}
        self._links: dict[str, PushLink] = {}
        self._actions_left = world.plan.actions
        self._late_flush = False
        self.connection = world.scheduler.accept(self._hear, self._scheduler_gone)
        self.session.join()
        if index % 2 == 0:
            self.session.show_output(True)
        self.send()
        self._plan_action()

    # ------------------------------------------------------------------ the machine

    def send(self) -> None:
        """Carry out what the session wants done."""
        if not self.alive:
            return
        for message in self.session.take_messages(self.world.clock.now):
            self.world.note(self.name, message)
            self.world.send(self.connection.to_far, message)
        for effect in self.session.take_effects():
            if isinstance(effect, DropOffered):
                for number in effect.numbers:
                    del self.offered[number]
            else:
                self._push(effect)

    def flush(self) -> None:
        """Send what was gathered, too."""
        self.session.flush()
        self.send()

    def _flush_late(self) -> None:
        self._late_flush = False
        if self.alive:
            self.flush()

    def _arm(self) -> None:
        if not self._late_flush:
            self._late_flush = True
            self.world.clock.after(LATE_FLUSH_SECONDS, self._flush_late)

    def _hear(self, item: Any) -> None:
        if not self.alive:
            return
        self.session.receive(item[0])
        if isinstance(item[0], messages.Failed):
            self.world.progress_at = self.world.clock.now  # it may be the last of a row that failed one by one
        self._read_output()
        self.send()
        self.look()

    def _take_answers(self) -> None:
        for request in [known for known in self.asked if known in self.session.answers]:
            answer = self.session.answers.pop(request)
            assert isinstance(answer, messages.Answer) and not answer.error, answer
            self.asked.remove(request)

    def _read_output(self) -> None:
        """Every task writes its own index, so what comes under a number is what that task wrote."""
        while self.session.output:
            number, _, worker, entries = self.session.output.popleft()
            assert self.index % 2 == 0, f"{self.name} is shown what it did not want to see"
            for kind, _, data in entries:
                if kind == CUT:
                    continue  # this client was too slow for some
                index = self.world.index_of[self.client_id, number]
                assert int(data) == index, f"{data!r} was shown as written by task {index} on {worker}"

    def look(self) -> None:
        """See whether something that is waited for has come."""
        self._take_answers()
        for gather in list(self.gathers):
            gather.go_on()
        self.send()

    def judge(self, index: int, kind: str) -> str:
        """Why a task cannot have failed like that; empty if it can."""
        return self.world.workload.judge(index, kind)

    def _scheduler_gone(self) -> None:
        raise AssertionError(f"the scheduler hung up on {self.name}")

    def die(self) -> None:
        """The process is killed."""
        if self.alive:
            self.alive = False
            self.connection.near_dies()
            for link in self._links.values():
                if link.connection is not None:
                    link.connection.near_dies()
            for spec in self.offered.values():
                spec.uncertain = True
            self.world.client_ended(self)

    # ------------------------------------------------------------------ what its user does

    def _plan_action(self) -> None:
        self.world.clock.after(self.world.plan.pause_seconds * 2 * self._random.random(), self._act)

    def _act(self) -> None:
        if not self.alive or not self.acting:
            return
        if self._actions_left == 0:
            self.acting = False
            return
        self._actions_left -= 1
        plan, draw = self.world.plan, self._random.random()
        choices: list[tuple[float, Callable[[], None]]] = [
            (plan.releases, self._release_some),
            (plan.cancels, self._cancel_some),
            (plan.retries, self._retry_some),
            (plan.keeps, self._keep_some),
            (plan.gathers, self._gather_some),
            (plan.shares, self._share),
            (plan.offers, self._offer),
            (plan.asks, self._ask),
        ]
        # However much a seed likes the rest, there is something to do it to.
        draw /= min(1.0, MOST_THAT_IS_NO_SUBMIT / (sum(chance for chance, _ in choices) or 1.0))
        for probability, action in choices:
            if draw < probability:
                action()
                break
            draw -= probability
        else:
            self._submit()
        self.send()
        self._arm()
        self._plan_action()

    def _some(self, numbers: list[int], limit: int = 20) -> list[int]:
        count = self._random.randint(0, min(limit, len(numbers)))
        return sorted(self._random.sample(numbers, count))

    def _ask(self) -> None:
        for number in self._some(sorted(self.held), 3):
            what = "explain" if self._random.random() < 0.7 else "story"
            key = task_key("f0", self.client_id, -1, number)  # of some task, or of none
            detail = number if self._random.random() < 0.7 else {"key": key}
            self.asked.append(self.session.query(what, detail))

    def _submit(self) -> None:
        size = self._random.randint(1, self.world.plan.graph_size)
        for part in self.world.workload.graph(self.index, sorted(self.number_of), size):
            if len(part) == 1 and self._random.random() < 0.8:
                self._submit_one(part[0])
            else:
                self._submit_map(part)
        if self.session.flush_is_due(self.world.clock.now):
            self.session.flush()

    def _call(self, spec: Spec) -> Call:
        key = f"{spec.function} {sorted(spec.options.items())}"
        call = self._calls.get(key)
        if call is None:
            name = spec.function
            function = Function(name.encode().ljust(16, b"."), name, name.encode())
            call = self._calls[key] = Call(function, name, dict(spec.options), 0)
        return call

    def _hold(self, number: int, index: int) -> None:
        self.held[number] = index
        self.number_of[index] = number
        self.world.index_of[self.client_id, number] = index

    def _submit_one(self, spec: Spec) -> None:
        inputs = [self.number_of[source] for source in spec.inputs]
        self._hold(self.session.submit(self._call(spec), b"%d" % spec.index, inputs), spec.index)

    def _submit_map(self, tasks: list[Spec]) -> None:
        """Submit a map, whole or in parts."""
        batch = following = -1
        start = 0
        longest = self._cutting.choice((len(tasks), 1, 2, 4))
        while start < len(tasks):
            part = tasks[start : start + self._cutting.randint(1, longest)] if longest < len(tasks) else tasks
            start += len(part)
            first = self._submit_part(part, batch, following)
            batch, following = (first if first != following else batch), first + len(part)

    def _submit_part(self, part: list[Spec], batch: int, following: int) -> int:
        pieces = [b"%d" % spec.index for spec in part]
        starts = dependencies = b""
        self.session.flush()
        for number, spec in enumerate(part, self.session.table.next_number):
            self.number_of[spec.index] = number  # a task may take one before it in its part
        shared = part[0].inputs
        if shared and all(spec.inputs == shared for spec in part) and self._random.random() < 0.7:
            dependencies = array("q", [self.number_of[source] for source in shared]).tobytes()
        elif any(spec.inputs for spec in part):
            starts = array("I", accumulate((len(spec.inputs) for spec in part), initial=0)).tobytes()
            dependencies = array("q", [self.number_of[source] for spec in part for source in spec.inputs]).tobytes()
        first = self.session.submit_part(
            self._call(part[0]),
            len(part),
            array("I", accumulate(map(len, pieces), initial=0)).tobytes(),
            b"".join(pieces),
            starts,
            dependencies,
            batch=batch,
            following=following,
        )
        for number, spec in enumerate(part, first):
            self._hold(number, spec.index)
        return first

    def _offer(self) -> None:
        references: list[Reference] = []
        if self._random.random() < 0.5:
            mine = sorted(number for number, index in self.held.items() if self._own(number, index))
            references = [(self.client_id, number) for number in self._some(mine, 3)]
        spec = self.world.workload.offered(self.index, tuple(references))
        placement = self._random.choice(("demand", "demand", "spread", "broadcast"))
        contains = [[list(reference) for reference in references]] if references else []
        size = max(spec.nbytes, len(self._content(spec)))
        number = self.session.offer([size], contains, placement=placement)
        self.offered[number] = spec
        self._hold(number, spec.index)

    def _own(self, number: int, index: int) -> bool:
        return self.world.workload.specs[index].client == self.index and number not in self.offered

    def _release_some(self) -> None:
        waited = {number for gather in self.gathers for number in gather.numbers}
        free = sorted(set(self.held) - waited - self.shared)
        everything = self._random.random() < 0.1
        self.release(free if everything else self._some(free))

    def release(self, numbers: list[int]) -> None:
        """Let go of these futures."""
        for number in numbers:
            index = self.held.pop(number)
            if number in self.offered:
                self.offered[number].uncertain = True  # what was made of it cannot be made again
            if self.number_of.get(index) == number:
                del self.number_of[index]
        runs = states.runs_of(numbers)
        for first, count in zip(runs[::2], runs[1::2], strict=True):
            self.session.dropped.append(range(first, first + count) if count > 1 else first)

    def _cancel_some(self) -> None:
        chosen = self._some(sorted(self.held), 5)
        for number in chosen:
            if self.session.state(number) == states.PENDING:
                self.world.workload.specs[self.held[number]].cancelled = True
        self.session.cancel(chosen)
        self.look()

    def _retry_some(self) -> None:
        failed = [number for number in sorted(self.held) if self.session.state(number) == states.FAILED]
        self.session.retry(self._some(failed))

    def _keep_some(self) -> None:
        pending = [number for number in sorted(self.held) if self.session.state(number) == states.PENDING]
        pending = [number for number in pending if self._own(number, self.held[number])]
        self.session.keep(self._some(pending))

    def _gather_some(self) -> None:
        self.gather(self._some(sorted(self.held)))

    def gather(self, numbers: list[int]) -> Gather:
        """Wait for these, and compare their values."""
        self.flush()
        return begin_gather(self, numbers)

    def _share(self) -> None:
        others = [client for client in self.world.clients if client is not self and client.alive and client.held]
        if not others:
            return
        other = self._random.choice(others)
        sent = [number for number in sorted(other.held) if number < other.session.table.next_number]
        sent = [number for number in sent if other._own(number, other.held[number])]
        for number in self._some(sent, 3):
            other.flush()
            if self.world.knows(other.client_id, number):
                other.shared.add(number)
                self.take((other.client_id, number))

    def take(self, reference: Reference) -> None:
        """Unpickle a future."""
        index = self.world.index_of[reference]
        client_id, number = reference
        if client_id == self.client_id and self.session.refer(number):
            self.session.dropped.append(number)  # and let go of it at once; the number may be held besides
            return
        alias = self.session.alias([reference])
        self.held[alias] = index
        self.world.index_of[self.client_id, alias] = index
        self.number_of.setdefault(index, alias)

    # ------------------------------------------------------------------ pushing

    def _push(self, order: PushValue) -> None:
        spec = self.offered.get(order.number)
        if spec is None:
            self.session.pushed(order.number, order.address, "the client no longer holds this value")
            self.send()
            return
        link = self._links.get(order.address)
        if link is None:
            link = self._links[order.address] = PushLink(order.address)
            link.connection = self.world.connect_to_agent(
                order.address, lambda item: self._answered(link, item[0]), lambda: self._link_lost(link)
            )
        link.orders.append(order)
        assert link.connection is not None
        content = self._content(spec)
        nbytes = max(spec.nbytes, len(content))
        if nbytes > IN_MESSAGE_BYTES:
            self.world.send(link.connection.to_far, messages.PutRequest(order.row, order.attempt, nbytes))
        else:
            message = messages.PutValue(order.row, order.attempt, nbytes, content + bytes(nbytes - len(content)))
            self.world.send(link.connection.to_far, message, nbytes=nbytes)

    def _answered(self, link: PushLink, message: Any) -> None:
        order = next(each for each in link.orders if (each.row, each.attempt) == (message.row, message.attempt))
        spec = self.offered.get(order.number)
        if isinstance(message, messages.PutDone):
            self._put(link, order, message.error, full=message.full)
        elif spec is None:
            assert link.connection is not None
            link.connection.near_dies()
            self._link_lost(link)
        else:
            assert link.connection is not None
            content = self._content(spec)
            nbytes = max(spec.nbytes, len(content))
            put = messages.PutValue(order.row, order.attempt, nbytes, b"")
            self.world.send(link.connection.to_far, put, content, nbytes)

    def _content(self, spec: Spec) -> bytes:
        return encode_value(self.world.workload.digest(spec.index), spec.references, 0)

    def _put(self, link: PushLink, order: PushValue, error: str, *, full: bool = False) -> None:
        link.orders.remove(order)
        self.session.pushed(order.number, order.address, error, full=full)
        self.send()

    def _link_lost(self, link: PushLink) -> None:
        if self._links.get(link.address) is link:
            del self._links[link.address]
        while link.orders and self.alive:
            self._put(link, link.orders[0], "the connection has ended")
