"""The tasks of one client, kept for an engine: what waits for what, who is next, what is still wanted. Pure.

It speaks the client's side of the protocol (`cluster.wire.messages`) as a scheduler does, and forgets nothing and loses
nothing, since it lives and dies with the client. All is called under the client's lock.

A task is *held* by each number under which the client wants it, by each task that takes it as input until that has
succeeded (a failed one may be retried), and by each value in which a future of it lies. What nobody holds is let go.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Final

from cluster.adapters.engines.protocol import Outcome, Run
from cluster.errors import ProtocolError
from cluster.ids import task_key
from cluster.session.machine import Failure
from cluster.session.parts import Function
from cluster.wire import messages

__all__ = ["Desk"]

WAITING, READY, RUNNING, FINISHED, FAILED, GONE = range(6)

_NO_FUNCTION: Final = Function(b"", "", b"")
# Questions of the client, in the words of its methods.
_ASKED_FOR: Final = {
    "coordinate": "locks, queues, variables and datasets by name",
    "datasets": "datasets",
    "explain": "explain",
    "has_what": "has_what",
    "processing": "processing",
    "replicate": "replicate",
    "restart": "restart",
    "retire_workers": "retire_workers",
    "run": "run, upload_file and get_versions",
    "scheduler_info": "scheduler_info and nthreads",
    "story": "story",
    "task_output": "Future.logs",
    "upload": "upload_file",
    "wait_for_workers": "wait_for_workers",
    "who_has": "who_has",
}


class Task:
    """A task of the client, or a value that it offered."""

    __slots__ = (
        "arguments",
        "attempts",
        "contains",
        "dependents",
        "depth",
        "failure",
        "function",
        "holds",
        "inputs",
        "key",
        "keywords",
        "label",
        "missing",
        "nbytes",
        "number",
        "numbers",
        "offered",
        "order",
        "parent",
        "priority",
        "retries",
        "root",
        "run",
        "state",
        "taken",
        "value",
    )

    def __init__(self, number: int, key: str, label: str) -> None:
        self.number = number
        self.key = key
        self.label = label
        self.state = WAITING
        self.function = _NO_FUNCTION
        self.arguments = b""
        self.keywords = False
        self.taken = True  # its arguments do not count any more for what the client may send
        self.inputs: list[Task] = []
        self.missing = 0
        self.dependents: dict[Task, None] = {}
        self.holds = 0
        self.numbers: dict[int, None] = {}  # under which the client wants it
        self.value: Any = None
        self.nbytes = 0
        self.offered = False
        self.contains: list[Task] = []
        self.failure: Failure | None = None
        self.root: Task | None = None  # whose failure it shares
        self.attempts = 0
        self.retries = 0
        self.priority = 0
        self.order = 0
        self.parent: Run | None = None
        self.depth = 0
        self.run: Run | None = None


class Desk:
    """Decides for one client what an engine runs."""

    def __init__(self, client_id: bytes, engine_name: str, slots: int) -> None:
        self.free = slots
        """How many further runs may be under way."""
        self.going_on = 0
        """How many suspended runs wait for a free slot."""
        self.stopping: list[Run] = []
        """Runs that are of no use any more: the shell tells the engine, and empties this."""
        self._client_id = client_id
        self._engine = engine_name
        self._tasks: dict[int, Task] = {}
        self._functions: dict[bytes, Function] = {}
        self._ready: list[tuple[int, int, int, Task]] = []
        self._ready_of: dict[Run, list[tuple[int, int, Task]]] = {}
        self._running: dict[Run, Task] = {}
        self._order = count()
        self._outgoing: list[Any] = []
        self._taken_bytes = 0
        self._told_bytes = 0
        self._letting_go: list[Task] = []

    # ------------------------------------------------------------------ the client's messages

    def take_messages(self) -> list[Any]:
        """What the client is to be told, in order."""
        if self._taken_bytes != self._told_bytes:
            self._told_bytes = self._taken_bytes
            self._outgoing.append(messages.ArgumentsTaken(self._taken_bytes))
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def receive(self, message: Any, parent: Run | None = None) -> None:
        """Take a message of the client in; `parent` is the run that sends it."""
        match message:
            case messages.Submit():
                self._submit(message, parent)
            case messages.DefineFunction():
                self._functions[message.function_id] = Function(*message)
            case messages.Offer():
                self._offer(message)
            case messages.Alias():
                for number, reference in enumerate(message.references, message.first):
                    self._alias(number, reference)
            case messages.Release():
                for number in _numbers(message.runs):
                    self._release(number)
                self._let_go()
            case messages.Keep():
                for task in self._known(message.runs):
                    if task.state in (WAITING, READY, RUNNING) and -1 not in task.numbers:
                        task.numbers[-1] = None  # nobody's number: a want that ends with the task
                        task.holds += 1
            case messages.Cancel():
                for task in self._known(message.runs):
                    self._cancel(task)
            case messages.Retry():
                self._retry(list(self._known(message.runs)))
            case messages.Locate():
                self._outgoing.append(messages.Located(message.request, self._places(message.runs)))
            case messages.Query():
                self._answer(message)
            case messages.ClientJoin():
                self._outgoing.append(messages.ClientWelcome(1, {}))
            case messages.Leave():
                for number in list(self._tasks):
                    self._release(number)
                self._let_go()
            case messages.Await() | messages.ShowOutput():
                pass  # small values always come along, and what tasks print is printed where they run
            case _:
                raise ProtocolError(f"{type(message).__name__} means nothing to the engine {self._engine}")

    def _submit(self, message: messages.Submit, parent: Run | None) -> None:
        function = self._functions[message.function_id]
        options = message.options
        offsets = array("I", message.offsets)
        starts, numbers = array("I", message.dependency_starts), array("q", message.dependencies)
        if not offsets and message.count > 1:
            self._taken_bytes += len(message.blob)  # all tasks share it
        for place in range(message.count):
            number = message.first + place
            key = options.get("key") or task_key(message.label, self._client_id, message.batch, number)
            task = Task(number, key, message.label)
            task.function = function
            task.arguments = message.blob[offsets[place] : offsets[place + 1]] if offsets else message.blob
            task.taken = not offsets and message.count > 1
            task.keywords = bool(message.arguments)
            task.priority = options.get("priority", 0)
            task.retries = options.get("retries", 0)
            task.parent = parent
            task.depth = 0 if parent is None else parent.depth + 1
            needed = numbers[starts[place] : starts[place + 1]] if starts else numbers
            task.inputs = [self._tasks[each] for each in needed]
            for source in task.inputs:
                source.holds += 1
                source.dependents[task] = None
            self._want(number, task)
            self._wait(task)

    def _offer(self, message: messages.Offer) -> None:
        sizes = array("Q", message.sizes)
        for place, number in enumerate(range(message.first, message.first + message.count)):
            task = Task(number, task_key("data", self._client_id, -1, number), "data")
            task.state = FINISHED
            task.offered = True
            task.nbytes = sizes[place]
            self._contain(task, [(reference[0], reference[1]) for reference in message.contains[place]])
            self._want(number, task)

    def _alias(self, number: int, reference: Sequence[Any]) -> None:
        client_id, source = reference[0], reference[1]
        task = self._tasks.get(source) if client_id == self._client_id else None
        if task is None:
            task = Task(number, task_key("future", client_id, -1, source), "future")
            self._want(number, task)
            details = {
                "type": "ValueLost",
                "message": f"the engine {self._engine!r} does not know the task behind this future",
                "remedy": "of a future of another client, pass the value; keep what a future lies in until then",
            }
            self._fail(task, Failure("lost", b"", details))
            return
        self._want(number, task)
        if task.state == FINISHED:
            self._tell_finished(task, [number])
        elif task.failure is not None:
            self._outgoing.append(messages.Failed([number, 1], *task.failure))

    def _want(self, number: int, task: Task) -> None:
        self._tasks[number] = task
        task.numbers[number] = None
        task.holds += 1

    def _known(self, runs: list[int]) -> Iterator[Task]:
        for number in _numbers(runs):
            task = self._tasks.get(number)
            if task is not None:
                yield task

    # ------------------------------------------------------------------ running

    def next_run(self, parent: Run | None = None, inside: Run | None = None) -> Run | None:
        """The run that is to begin now, if one may: of `parent`, one of its children; `inside` another, any. Both take
        no further slot."""
        task = None
        if parent is not None:
            task = _pop_ready(self._ready_of.get(parent, []))
        elif inside is not None or self.free > self.going_on:
            task = _pop_ready(self._ready)
        if task is None:
            return None
        run = self._begin(task)
        if parent is inside is None:
            run.has_slot = True
            self.free -= 1
        return run

    def has_next(self) -> bool:
        """Whether `next_run` would give one."""
        if self.free <= self.going_on:
            return False
        while self._ready and self._ready[0][-1].state != READY:
            heapq.heappop(self._ready)
        return bool(self._ready)

    def is_running(self, run: Run) -> bool:
        """Whether a run is one of this client's that has not ended."""
        return run in self._running

    def leave_slot(self, run: Run) -> None:
        """A run waits; another may have its slot."""
        if run.has_slot:
            run.has_slot = False
            self.free += 1

    def take_slot(self, run: Run) -> bool:
        """A run that waited goes on, if there is a slot for it."""
        if not run.has_slot and self.free > 0:
            run.has_slot = True
            self.free -= 1
        return run.has_slot

    def has_put(self, number: int, value: Any) -> None:
        """The engine has taken a value that the client offered."""
        self._tasks[number].value = value

    def _begin(self, task: Task) -> Run:
        task.state = RUNNING
        self._take_arguments(task)
        task.attempts += 1
        inputs = [source.value for source in task.inputs]
        run = Run(task.key, task.function, task.arguments, task.keywords, inputs, task.attempts, task.depth)
        run.offered = [
            (place, source.number)
            for place, source in enumerate(task.inputs)
            if source.offered and source.value is None
        ]
        task.run = run
        self._running[run] = task
        return run

    def ended(self, run: Run, outcome: Outcome) -> None:
        """A run has ended."""
        run.ended = True
        self.free += run.has_slot
        task = self._running.pop(run)
        self._ready_of.pop(run, None)
        if task.run is not run:
            return  # it was cancelled, or let go, and may run again by now
        task.run = None
        if outcome.failure is None:
            self._succeed(task, outcome)
        elif task.attempts <= task.retries and outcome.failure.kind == "exception":
            self._wait(task)
        else:
            kind, error, details = outcome.failure
            further = {"key": task.key, "worker": self._engine, "attempts": task.attempts}
            self._fail(task, Failure(kind, error, {**details, **further}))
        self._let_go()

    def _succeed(self, task: Task, outcome: Outcome) -> None:
        task.state = FINISHED
        task.value, task.nbytes = outcome.value, outcome.nbytes
        self._contain(task, outcome.contains)
        own = [number for number in task.numbers if number >= 0]
        if own:
            self._tell_finished(task, own, outcome.small)
        for dependent in list(task.dependents):
            if dependent.state == WAITING:
                dependent.missing -= 1
                if not dependent.missing:
                    self._make_ready(dependent)
        self._leave_inputs(task)
        task.arguments = b""
        self._end_keep(task)

    def _contain(self, task: Task, references: Sequence[tuple[bytes, int]]) -> None:
        for client_id, number in references:
            inner = self._tasks.get(number) if client_id == self._client_id else None
            if inner is not None:
                inner.holds += 1
                task.contains.append(inner)

    def _tell_finished(self, task: Task, numbers: Sequence[int], small: bytes = b"") -> None:
        for number in numbers:
            if small:
                offsets = array("I", (0, len(small))).tobytes()
                self._outgoing.append(messages.Finished([number, 1], offsets, small))
            else:
                self._outgoing.append(messages.Finished([number, 1], b"", b""))

    def _wait(self, task: Task) -> None:
        """It waits for its inputs, or is ready, or fails as one of them did."""
        task.state = WAITING
        task.missing = 0
        for source in dict.fromkeys(task.inputs):  # one task may be there under several numbers
            if source.state == FAILED:
                assert source.failure is not None
                self._fail(task, source.failure, source.root or source)
                return
            task.missing += source.state != FINISHED
        if not task.missing:
            self._make_ready(task)

    def _make_ready(self, task: Task) -> None:
        task.state = READY
        task.order = next(self._order)
        heapq.heappush(self._ready, (-task.priority, -task.depth, task.order, task))
        if task.parent is not None and not task.parent.ended:
            heapq.heappush(self._ready_of.setdefault(task.parent, []), (-task.priority, task.order, task))

    def _take_arguments(self, task: Task) -> None:
        if not task.taken:
            task.taken = True
            self._taken_bytes += len(task.arguments)

    # ------------------------------------------------------------------ failing, cancelling, retrying

    def _fail(self, task: Task, failure: Failure, root: Task | None = None) -> None:
        """It ends without a value, and so does all that depends on it."""
        stack = [task]
        while stack:
            each = stack.pop()
            if each.state not in (WAITING, READY, RUNNING):
                continue
            each.state = FAILED
            each.failure = failure
            each.root = root if each is task else root or task
            self._stop(each)
            self._take_arguments(each)
            for number in each.numbers:
                if number >= 0:
                    self._outgoing.append(messages.Failed([number, 1], *failure))
            stack.extend(each.dependents)
            self._end_keep(each)

    def _cancel(self, task: Task) -> None:
        details = {"type": "CancelledError", "message": f"{task.key} was cancelled", "key": task.key}
        self._fail(task, Failure("cancelled", b"", details))
        self._let_go()

    def _stop(self, task: Task) -> None:
        run, task.run = task.run, None
        if run is not None:
            run.cancelled = True
            self.stopping.append(run)

    def _retry(self, tasks: list[Task]) -> None:
        """Run failed tasks again: those named, the ones whose failure they share, and all that failed with them."""
        stack = [task.root or task for task in tasks if task.state == FAILED]
        revived: dict[Task, None] = {}
        while stack:
            task = stack.pop()
            if task.state == FAILED and task not in revived:
                revived[task] = None
                stack.extend(task.dependents)
        for task in revived:
            task.state = WAITING
            task.root = None
            task.attempts = 0
            for number in task.numbers:
                self._outgoing.append(messages.Reset([number, 1]))
        for task in revived:
            if task.state != WAITING:
                continue  # it has failed again with another of them
            failure, task.failure = task.failure, None
            if task.function is _NO_FUNCTION and failure is not None:
                self._fail(task, failure)  # nobody here can run it
            else:
                self._wait(task)

    # ------------------------------------------------------------------ what is wanted

    def _release(self, number: int) -> None:
        task = self._tasks.get(number)
        if task is None or number not in task.numbers:
            return
        if number != task.number:
            del self._tasks[number]  # its own stays as long as the task: a future in a value names it by that
        del task.numbers[number]
        self._unhold(task)

    def _end_keep(self, task: Task) -> None:
        if -1 in task.numbers:
            del task.numbers[-1]
            self._unhold(task)

    def _leave_inputs(self, task: Task) -> None:
        inputs, task.inputs = task.inputs, []
        for source in inputs:
            source.dependents.pop(task, None)
            self._unhold(source)

    def _unhold(self, task: Task) -> None:
        task.holds -= 1
        if not task.holds:
            self._letting_go.append(task)

    def _let_go(self) -> None:
        """Forget what nobody holds any more; of a chain, all of it."""
        while self._letting_go:
            task = self._letting_go.pop()
            if task.holds or task.state == GONE:
                continue
            self._stop(task)
            self._take_arguments(task)
            task.state = GONE
            task.value = None
            self._tasks.pop(task.number, None)
            self._leave_inputs(task)
            contains, task.contains = task.contains, []
            for inner in contains:
                self._unhold(inner)

    # ------------------------------------------------------------------ questions

    def value(self, number: int) -> Any:
        """The engine's value of a finished task; None of what the client offered, until a run has taken it."""
        task = self._tasks.get(number)
        return None if task is None else task.value

    def keeps_any(self) -> bool:
        """Whether there is a task yet to end that the client wants to end though it has no future of it."""
        return any(-1 in task.numbers for task in self._tasks.values())

    def _places(self, runs: list[int]) -> list[Any]:
        found = []
        for number in _numbers(runs):
            task = self._tasks.get(number)
            if task is not None and task.state == FINISHED:
                found.append([number, 0, 0, task.nbytes, [self._engine]])
        return found

    def _answer(self, query: messages.Query) -> None:
        error, result = "", None
        if query.what == "recipe":
            error, result = self._recipe(query.detail)
        elif query.what == "progress":
            running = [task for task in self._known(query.detail) if task.run is not None]
            told = [[task.number, task.key, *task.run.progress] for task in running if task.run and task.run.progress]
            result = [len(running), told]
        elif query.what not in ("ping", "scattered", "coordinate_settle", "coordinate_withdraw"):
            asked_for = _ASKED_FOR.get(query.what, query.what)
            error = (
                f"the engine {self._engine!r} has no scheduler and no workers, so there is no {asked_for}; "
                'Client(engine="processes") has, and a cluster'
            )
        self._outgoing.append(messages.Answer(query.request, error, result))

    def _recipe(self, number: int) -> tuple[str, Any]:
        task = self._tasks.get(number)
        if task is None or task.offered:
            return "no function made its value", None
        if task.state == FINISHED:
            return f"it succeeded, and the engine {self._engine!r} keeps what a task was given only until then", None
        inputs = [[self._client_id, source.number, source.label] for source in task.inputs]
        return "", {
            "function": task.function.blob,
            "arguments": task.arguments,
            "keywords": task.keywords,
            "label": task.label,
            "inputs": inputs,
        }


def _pop_ready(heap: list[Any]) -> Task | None:
    """The first that is still ready: what was cancelled, or began from another heap, is passed over."""
    while heap:
        task: Task = heapq.heappop(heap)[-1]
        if task.state == READY:
            return task
    return None


def _numbers(runs: list[int]) -> Iterator[int]:
    for first, length in zip(runs[::2], runs[1::2], strict=True):
        yield from range(first, first + length)
