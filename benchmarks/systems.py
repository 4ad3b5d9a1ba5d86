"""The protocol that every measured system is brought to, and our own system.

A *handle* is what stands for one task's result, a *level* what stands for many; a level can be sliced. Either may be
passed as an argument to later tasks. Systems without dependencies between tasks compute a level at once and pass values
on: their users write programs that way.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psutil

SLOTS = 2

SINGLE = "single submits"
HANDLES = "handles of tasks that have not run"
ACTORS = "objects that stay at a worker, whose methods are called"
PARALLEL = "joblib's Parallel runs on it"
COLLECTIONS = "its `client` computes Dask's collections and graphs"


class System:
    """One system in one setting. Subclasses say how it is opened and used; what they do not say is not measured."""

    name = ""
    setting = ""
    module = ""
    distribution = ""
    abilities: frozenset[str] = frozenset({SINGLE, HANDLES})
    client: Any = None
    only_where_named = False
    first_result_program = ""
    places_tasks = False
    """Whether `submit_elsewhere` says where a task runs."""

    def version(self) -> str:
        return importlib.metadata.version(self.distribution) if self.distribution else "of this Python"

    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One task; its arguments may be handles."""
        raise NotImplementedError

    def result(self, handle: Any) -> Any:
        raise NotImplementedError

    def wait(self, handle: Any) -> None:
        """Return when the task has ended, and leave its value where it is."""
        raise NotImplementedError

    def submit_elsewhere(self, value: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """One task, in another process than where that value lies."""
        raise NotImplementedError

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        """A level of tasks, one for each place of the columns; a column may be a level."""
        raise NotImplementedError

    def gather(self, level: Any) -> list[Any]:
        raise NotImplementedError

    def start_many(self, function: Callable[..., Any], items: Sequence[Any]) -> Sequence[Any]:
        """Handles of tasks that need not have run yet."""
        return [self.submit(function, item) for item in items]

    def all_to_all(self, level: Any) -> Any:
        """The next level, as wide as this one, each of whose tasks sums all results of this one and adds its place."""
        raise NotImplementedError

    def first_value(self, function: Callable[..., Any], items: Sequence[Any]) -> Any:
        """The first result of a map, as early as the system's users can have it."""
        return self.result(self.start_many(function, items)[0])

    def actor(self, kind: type[Any]) -> Any:
        """An object of that class at a worker, and what calls it: `actor.method(...)` gives a handle."""
        raise NotImplementedError

    def call(self, actor: Any, method: str, *arguments: Any) -> Any:
        """A call of an actor's method; its handle."""
        return getattr(actor, method)(*arguments)

    def parallel(self) -> AbstractContextManager[Any]:
        """Within it joblib's `Parallel` runs on this system."""
        raise NotImplementedError

    def processes(self) -> dict[str, list[int]]:
        """The process ids by role; "client" is this process."""
        children = psutil.Process().children(recursive=True)
        return {"client": [os.getpid()], "workers": [child.pid for child in children]}


class Cluster(System):
    """This project."""

    name = "cluster"
    setting = f"LocalCluster(n_workers=1, slots={SLOTS})"
    module = "cluster"
    abilities = frozenset({SINGLE, HANDLES, ACTORS, COLLECTIONS, PARALLEL})
    first_result_program = (
        "from cluster import Client, LocalCluster\n"
        "if __name__ == '__main__':\n"
        f"    cluster = LocalCluster(n_workers=1, slots={SLOTS}); client = Client(cluster)\n"
        "    assert client.submit(abs, -1).result() == 1\n"
        "    first_result()\n"
        "    client.close(); cluster.close()\n"
    )

    def version(self) -> str:
        from cluster.version import __version__

        return __version__

    def open(self) -> None:
        from benchmarks import tasks
        from cluster import Client, LocalCluster

        self.cluster = LocalCluster(n_workers=1, slots=SLOTS)
        self.client = Client(self.cluster)
        self.total = tasks.total

    def close(self) -> None:
        self.client.close()
        self.cluster.close()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(function, *arguments)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def wait(self, handle: Any) -> None:
        from cluster import wait

        wait(handle)

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        return self.client.map(function, *columns)

    def gather(self, level: Any) -> list[Any]:
        return list(self.client.gather(level))

    def start_many(self, function: Callable[..., Any], items: Sequence[Any]) -> Sequence[Any]:
        return self.client.map(function, items)

    def all_to_all(self, level: Any) -> Any:
        return self.client.map(self.total, [level] * len(level), range(len(level)))

    def actor(self, kind: type[Any]) -> Any:
        return self.client.submit(kind, actor=True).result()

    def parallel(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.client.joblib()
        return context

    def processes(self) -> dict[str, list[int]]:
        information = self.client.scheduler_info()
        agents = [int(worker["process_id"]) for worker in information["workers"].values()]
        slots = [child.pid for agent in agents for child in psutil.Process(agent).children(recursive=True)]
        return {"client": [os.getpid()], "scheduler": [int(information["process_id"])], "agent": agents, "slots": slots}
