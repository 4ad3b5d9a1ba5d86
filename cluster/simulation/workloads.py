"""What the simulated programs compute, what each task must come to (the oracle), and graphs of random shapes.

A task's argument is its number in the workload, as text. What it does (how long it runs, whether it fails, how large
its value is) is looked up there by the slot that runs it; its value is a digest of its number and of its inputs'
digests. So a value that is right shows that the right argument met the right inputs, whatever happened on the way.
"""

from __future__ import annotations

import marshal
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

from cluster.scheduler.suspects import AGENT_DEATHS_ALLOWED

__all__ = ["Reference", "Shape", "Spec", "Workload", "decode_value", "encode_value"]

Reference = tuple[bytes, int]  # a client's id and its number: a future inside a value

SMALL_BYTES = (0, 0, 0, 500, 3_000, 20_000)  # padding of values that travel as bytes
BULKY_BYTES = (8_000, 30_000, 60_000)  # these too, so that a few fill a small memory
LARGE_BYTES = (100_000, 3_000_000, 400_000_000)


def encode_value(digest: bytes, references: tuple[Reference, ...], nbytes: int) -> bytes:
    """A value as bytes, padded to about that size."""
    data = marshal.dumps((digest, references))
    return data + bytes(max(0, nbytes - len(data)))


def decode_value(data: bytes) -> tuple[bytes, tuple[Reference, ...]]:
    """The digest and the futures inside a value."""
    digest, references = marshal.loads(data)
    return digest, references


@dataclass
class Spec:
    """One task, or one value that a client offers."""

    index: int
    client: int
    inputs: tuple[int, ...] = ()  # by index, a repeated one twice
    function: str = "f"
    seconds: float = 0.001
    nbytes: int = 0
    raises_first: int = 0  # so many runs raise
    dies_first: int = 0  # so many runs kill their slot
    impossible: bool = False  # asks for what no worker has
    ends_workers: bool = False  # every run takes its whole worker down
    stubborn: bool = False  # does not stop when it is asked to
    options: dict[str, object] = field(default_factory=dict)
    offered: bool = False
    references: tuple[Reference, ...] = ()  # of an offered value
    passes_on: bool = False  # the value contains the futures of its inputs
    children: tuple[int, ...] = ()  # by index: what it submits when it runs
    returned_by: int = -1  # by index: the parent whose value contains its future
    returns_children: bool = False  # it does not wait for them: its value contains their futures
    cancelled: bool = False  # somebody asked for that
    uncertain: bool = False  # it may end as lost: its client went, or its recipe was bounded
    wants_room: bool = False  # it waits for room for its value, or was stopped while it did
    runs: int = 0
    deaths: int = 0  # slots that died while running it
    worker_deaths: int = 0  # workers that ended while it was granted to them
    waiting_deaths: int = 0  # slots that died while it waited in them
    active: int = 0  # slots that run it now
    left_a_slot_at: float = 0.0

    @property
    def retries(self) -> int:
        """How often it is run again after an exception."""
        return int(str(self.options.get("retries", 0)))

    @property
    def memory_bytes(self) -> int:
        """What it says that it needs, 0 if it does not."""
        return int(str(self.options.get("memory_bytes", 0)))

    @property
    def timeout_seconds(self) -> float:
        """Its limit, 0 if it has none."""
        return float(str(self.options.get("timeout_seconds", 0.0)))

    def own_failures(self) -> set[str]:
        """The kinds of failure that this task itself may come to."""
        kinds = set()
        if self.raises_first > self.retries:
            kinds.add("exception")
        deaths = self.deaths + self.waiting_deaths
        # The first death of a worker is no charge.
        if (self.deaths and deaths >= 3) or deaths >= 10 or self.worker_deaths > AGENT_DEATHS_ALLOWED:
            kinds.add("died")
        if 0 < self.timeout_seconds < self.seconds or (self.timeout_seconds and (self.children or self.wants_room)):
            kinds.add("timeout")
        if self.cancelled:
            # Where another client's want outweighs a cancel, the task is forgotten with that want.
            kinds |= {"cancelled", "let go of"}
        if self.uncertain:
            kinds.add("lost")
        if self.impossible:
            kinds.add("unrunnable")
        return kinds

    @property
    def must_fail(self) -> bool:
        """Whether no run of it can succeed."""
        patience = 1.1 if self.stubborn else 0.0  # in which what was asked to stop may still end
        # Who has children takes part of its seconds only, and ends when they have.
        too_long = not self.children and 0 < self.timeout_seconds < self.seconds - patience
        hopeless = self.impossible or self.ends_workers or self.raises_first >= 1_000 or self.dies_first >= 1_000
        return hopeless or too_long


@dataclass(frozen=True)
class Shape:
    """What a seed's tasks are like: chances, by feature; 0 switches it off."""

    long: float = 0.0
    none: float = 0.0
    raising: float = 0.0
    flaky: float = 0.0
    killing: float = 0.0
    ending_workers: float = 0.0
    timeouts: float = 0.0
    large: float = 0.0
    large_bytes: tuple[int, ...] = LARGE_BYTES
    bulky: float = 0.0
    resources: float = 0.0
    named_workers: float = 0.0
    priorities: float = 0.0
    memory: float = 0.0
    references: float = 0.0
    impossible: float = 0.0
    parents: float = 0.0
    depth: int = 2  # of children's children
    functions: int = 3
    coroutines: float = 0.0  # not where tasks submit tasks
    skew: float = 1.0  # how many times longer the first client's tasks run


class Workload:
    """All tasks of all clients, and what each of them comes to."""

    def __init__(self, random: Random, shape: Shape, workers: list[str]) -> None:
        self.specs: list[Spec] = []
        self.shape = shape
        self.always_possible: set[str] = set()  # kinds of failure that any task may come to
        self._random = random
        self._workers = workers
        self._digests: dict[int, bytes] = {}

    # ------------------------------------------------------------------ the oracle

    def digest(self, index: int) -> bytes:
        """The value that a task must have."""
        stack = [index]
        known = self._digests
        while stack:
            current = stack[-1]
            missing = [source for source in self.specs[current].inputs if source not in known]
            if missing:
                stack += missing
                continue
            stack.pop()
            known[current] = self.combine(current, [known[source] for source in self.specs[current].inputs])
        return known[index]

    @staticmethod
    def combine(index: int, inputs: list[bytes]) -> bytes:
        """What a task makes of its inputs' digests."""
        return blake2b(b"%d:" % index + b"".join(inputs), digest_size=12).digest()

    def ancestry(self, index: int) -> set[int]:
        """A task and all that it needs, its children among that."""
        found = {index}
        stack = [index]
        while stack:
            spec = self.specs[stack.pop()]
            for source in spec.inputs if spec.returns_children else spec.inputs + spec.children:
                if source not in found:
                    found.add(source)
                    stack.append(source)
        return found

    def judge(self, index: int, failure: str | None) -> str:
        """Why this outcome (a kind of failure, or None for a value) cannot be; empty if it can."""
        ancestry = [self.specs[other] for other in sorted(self.ancestry(index))]
        if failure is None:
            hopeless = [spec.index for spec in ancestry if spec.must_fail]
            return f"task {index} has a value, though {hopeless} cannot succeed" if hopeless else ""
        kinds = {kind for spec in ancestry for kind in spec.own_failures()}
        if kinds and any(spec.children for spec in ancestry):
            kinds.add("exception")  # what a child comes to is raised in its parent
        if failure not in kinds | self.always_possible:
            return f"task {index} failed with {failure!r}, and nothing that it needs may fail but with {sorted(kinds)}"
        return ""

    # ------------------------------------------------------------------ making tasks

    def task(self, client: int, inputs: tuple[int, ...], like: Spec | None = None) -> Spec:
        """One more task; `like`: with the function and the options of another, as in a map."""
        random, shape = self._random, self.shape
        spec = Spec(len(self.specs), client, inputs)
        self.specs.append(spec)
        if like is None:
            spec.function = f"f{random.randrange(shape.functions)}"
            self._draw_options(spec)
        else:
            spec.function, spec.options, spec.impossible = like.function, like.options, like.impossible
        spec.seconds = self._seconds() * (1.0 if client else shape.skew)
        if spec.timeout_seconds:
            spec.seconds = spec.timeout_seconds * random.choice((0.01, 0.2, 20.0))
            spec.stubborn = random.random() < 0.3
        if random.random() < shape.large:
            spec.nbytes = random.choice(shape.large_bytes)
        else:
            spec.nbytes = random.choice(SMALL_BYTES)
            if shape.bulky and random.random() < shape.bulky:
                spec.nbytes = random.choice(BULKY_BYTES)
        if random.random() < shape.raising:
            spec.raises_first = 1_000_000
        elif random.random() < shape.flaky:
            spec.raises_first = random.randint(1, 3)
        elif random.random() < shape.killing:
            spec.dies_first = random.choice((1, 2, 1_000_000))
        if shape.ending_workers and random.random() < shape.ending_workers:
            spec.ends_workers = True
        spec.passes_on = random.random() < shape.references
        if shape.parents:
            self._draw_children(spec, shape.depth)
        return spec

    def _draw_children(self, spec: Spec, levels: int) -> None:
        random, shape = self._random, self.shape
        if levels == 0 or random.random() >= shape.parents:
            return
        spec.stubborn = False  # where it waits it cannot help being stopped
        children = []
        for _ in range(random.choice((1, 1, 2, 3, 8))):
            child = Spec(len(self.specs), spec.client, function=f"f{random.randrange(shape.functions)}")
            self.specs.append(child)
            child.seconds = self._seconds()
            child.nbytes = random.choice(SMALL_BYTES)
            if random.random() < shape.raising / 4:
                child.raises_first = 1_000_000
            elif random.random() < shape.killing:
                child.dies_first = random.choice((1, 2, 1_000_000))
            self._draw_children(child, levels - 1)
            children.append(child.index)
        spec.children = tuple(children)
        spec.returns_children = random.random() < 0.2
        if spec.returns_children:
            for index in children:
                self.specs[index].returned_by = spec.index

    def offered(self, client: int, references: tuple[Reference, ...]) -> Spec:
        """One more value that a client offers."""
        random = self._random
        nbytes = random.choice(self.shape.large_bytes if random.random() < self.shape.large else SMALL_BYTES)
        spec = Spec(len(self.specs), client, nbytes=nbytes, offered=True, references=references)
        self.specs.append(spec)
        return spec

    def _seconds(self) -> float:
        random, shape = self._random, self.shape
        draw = random.random()
        if draw < shape.long:
            return random.choice((0.5, 2.0, 8.0))
        if draw < shape.long + shape.none:
            return 0.0
        return random.choice((0.00005, 0.0005, 0.002, 0.02)) * (0.5 + random.random())

    def _draw_options(self, spec: Spec) -> None:
        random, shape, options = self._random, self.shape, spec.options
        if random.random() < 0.3:
            options["retries"] = random.randint(1, 3)
        if random.random() < shape.timeouts:
            options["timeout_seconds"] = random.choice((0.05, 1.0))
        if random.random() < shape.resources:
            options["resources"] = {"gpu": random.choice((1.0, 1.0, 0.5, 2.0))}
        elif random.random() < shape.named_workers:
            options["workers"] = random.sample(self._workers, random.randint(1, len(self._workers)))
            if random.random() < 0.3:
                options["allow_other_workers"] = True
        if shape.impossible and random.random() < shape.impossible:
            spec.impossible = True
            options["resources"] = {"gpu": 99.0}
            options.pop("workers", None)
            options.pop("allow_other_workers", None)
        if random.random() < shape.priorities:
            options["priority"] = random.randint(-2, 2)
        if shape.memory and random.random() < shape.memory:
            options["memory_bytes"] = random.choice(LARGE_BYTES)
        if shape.coroutines and random.random() < shape.coroutines:
            options["coroutine"] = True

    def graph(self, client: int, sources: list[int], size: int) -> list[list[Spec]]:
        """Tasks in a random shape, on top of some that exist, as parts in order; a part of several is a map."""
        random = self._random
        start = [random.choice(sources)] if sources and random.random() < 0.5 else []
        shape = random.choice(("chain", "tree", "fan", "all_to_all", "diamonds", "map", "web"))
        parts: list[list[Spec]] = []
        if shape == "chain":
            before = tuple(start)
            if random.random() < 0.3:
                parts.append([self.task(client, before)])
                for _ in range(size):
                    parts[0].append(self.task(client, (parts[0][-1].index,), parts[0][0]))
                return parts
            for _ in range(size):
                parts.append([self.task(client, before)])
                before = (parts[-1][0].index,)
        elif shape == "tree":
            level = self._map(client, [tuple(start)] * size)
            parts.append(level)
            while len(level) > 1:
                rest = [level[-1]] if len(level) % 2 else []
                pairs = zip(level[::2], level[1::2], strict=False)
                parts.append(self._map(client, [(one.index, two.index) for one, two in pairs]))
                level = parts[-1] + rest
        elif shape == "fan":
            parts.append([self.task(client, tuple(start))])
            parts.append(self._map(client, [(parts[0][0].index,)] * size))
            parts.append([self.task(client, tuple(spec.index for spec in parts[1]))])
        elif shape == "all_to_all":
            width = max(2, min(6, size // 3))
            level = self._map(client, [tuple(start)] * width)
            parts.append(level)
            for _ in range(max(1, size // width - 1)):
                level = self._map(client, [tuple(spec.index for spec in level)] * width)
                parts.append(level)
        elif shape == "diamonds":
            bottom = self.task(client, tuple(start))
            parts.append([bottom])
            for _ in range(max(1, size // 3)):
                sides = self._map(client, [(bottom.index,), (bottom.index, bottom.index)])
                bottom = self.task(client, (sides[0].index, sides[1].index))
                parts += [sides, [bottom]]
        elif shape == "map":
            parts.append(self._map(client, [()] * (2 * size)))
        else:
            known = list(sources)
            for _ in range(size):
                inputs = tuple(random.choice(known) for _ in range(random.randint(0, 3))) if known else ()
                parts.append([self.task(client, inputs)])
                known.append(parts[-1][0].index)
        return parts

    def _map(self, client: int, inputs: list[tuple[int, ...]]) -> list[Spec]:
        first = self.task(client, inputs[0])
        return [first, *(self.task(client, each, first) for each in inputs[1:])]
