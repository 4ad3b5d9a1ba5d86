"""How the cluster stands, as a client asks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from cluster.client.core import ClientCore, each_future
from cluster.client.functions import label_of
from cluster.client.operations import Aside, Operation, Until
from cluster.client.options import worker_names
from cluster.client.results import rebuild_failure
from cluster.errors import ClusterError
from cluster.installed import PACKAGES
from cluster.session.machine import Failure
from cluster.session.table import runs_of
from cluster.units import format_bytes
from cluster.versions import differing_versions, package_versions
from cluster.wire.payload import dumps, loads

__all__ = ["Administration"]

KEYS_LIMIT: Final = 10_000
RUN_LIMIT_BYTES: Final = 8 << 20
UPLOAD_LIMIT_BYTES: Final = 8 << 20
UPLOADED: Final = (".py", ".zip", ".egg", ".whl")


class Administration(ClientCore):
    """The part of `Client` that looks at the cluster, and changes it."""

    def who_has(self, futures: Any) -> dict[str, list[str]]:
        """Which workers hold the values of futures: addresses by key."""
        return self._complete(self._holders(futures))

    def scheduler_info(self) -> dict[str, Any]:
        """A snapshot of the scheduler and its workers, as plain values."""
        return self._complete(self._scheduler_info())

    def nthreads(self) -> dict[str, int]:
        """How many slots each worker has, by its address."""
        return self._complete(self._slots())

    def has_what(self, workers: str | Iterable[str] | None = None) -> dict[str, list[str]]:
        """The keys of the values that workers hold, by address; at most 10,000 in all.

        `workers` are names or addresses; a replica is listed at the worker that made the value.
        """
        return self._complete(self._keys_at("has_what", workers))

    def processing(self, workers: str | Iterable[str] | None = None) -> dict[str, list[str]]:
        """The keys of the tasks that workers run or were granted ahead, by address; at most 10,000 in all."""
        return self._complete(self._keys_at("processing", workers))

    def run(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        workers: str | Iterable[str] | None = None,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Call a function once on each worker, outside of all tasks; return what it returned, by address.

        It runs in a process of its own beside the slots, so it answers while every slot is busy. What it returns takes
        at most 64 KiB. `on_error`: "raise" what the first one raised, "return" the exceptions in the values' places,
        or "ignore" those workers.

        >>> from cluster import Client
        >>> with Client() as client:
        ...     client.wait_for_workers(1)
        ...     list(client.run(sum, [1, 2]).values())
        [3]
        """
        return self._complete(self._run(function, args, kwargs, workers, on_error))

    def upload_file(self, filename: str | Path) -> None:
        """Give every worker, those that join later too, a module (.py) or an archive of packages (.zip, .egg, .whl).

        Tasks that start from now on can import it, ahead of what is installed; a slot that runs a task is renewed
        after that. At most 8 MiB a file.
        """
        path = Path(filename)
        return self._complete(self._upload(lambda: (path.name, path.read_bytes())))

    def upload_package(self, package: ModuleType | str | Path) -> None:
        """Give every worker a package: the imported one, or the folder that holds its `__init__.py`.

        As `upload_file` does with an archive of it; compiled Python files are left out.
        """
        # Loaded here, since few clients do this.
        archiving = import_module("cluster.client.package_archive")
        return self._complete(self._upload(lambda: archiving.archive_of(package)))

    def replicate(self, futures: Any, n: int | None = None, *, workers: str | Iterable[str] | None = None) -> None:
        """Wait for futures, and have each value on `n` workers (all by default), of those named if some are."""
        return self._complete(self._replicate(futures, n, workers))

    def rebalance(self, futures: Any = None, *, workers: str | Iterable[str] | None = None) -> None:
        """Move values from workers that hold much to those that hold little, by their memory limits.

        Waits until it is done. With `futures` only their values are moved, and waited for; with `workers` only those
        (names or addresses) give and take. A value that a running task takes stays where it is. Raises ClusterError if
        values could not be copied; they are where they were then.
        """
        return self._complete(self._rebalance(futures, workers))

    def retire_workers(self, workers: str | Iterable[str] | None = None, *, close_workers: bool = True) -> list[str]:
        """Have workers end once their tasks have, and what only they hold was handed on; return their addresses.

        They get nothing more at once; what they were granted and have not begun goes to others. Without names all
        workers are meant. With `close_workers=False` they stay connected and idle. Raises ClusterError if what they
        have would be lost; that worker goes on then.
        """
        return self._complete(self._retire(workers, close_workers))

    def restart(self) -> None:
        """Stop all tasks of all clients, and replace the processes of all slots; values that exist stay.

        The stopped tasks are cancelled. What modules hold in the slots' memory is gone.
        """
        return self._complete(self._restart())

    def wait_for_workers(self, n_workers: int = 1, timeout: float | None = None) -> None:
        """Wait until so many workers are there; raises TimeoutError after so many seconds."""
        return self._complete(self._wait_for_workers(n_workers, timeout))

    def get_versions(self, check: bool = False, packages: Iterable[str] = ()) -> dict[str, Any]:
        """The versions of Python and of packages: of the client, the scheduler, and each worker by address.

        With `check=True` ClusterError is raised if they differ, naming what differs where. `packages` are looked at
        besides those that matter to cluster itself.
        """
        return self._complete(self._versions(check, packages))

    def _holders(self, futures: Any) -> Operation[dict[str, list[str]]]:
        wanted = list(each_future(futures))
        for future in wanted:
            self._check_own(future)
        holders = yield from self._ask("who_has", [future._wanted() for future in wanted])
        return {future.key: addresses for future, addresses in zip(wanted, holders, strict=True)}

    def _scheduler_info(self) -> Operation[dict[str, Any]]:
        answer = yield from self._ask("scheduler_info")
        return dict(answer)

    def _slots(self) -> Operation[dict[str, int]]:
        info = yield from self._scheduler_info()
        return {address: worker["slots"] for address, worker in info["workers"].items()}

    def _keys_at(self, what: str, workers: str | Iterable[str] | None) -> Operation[dict[str, list[str]]]:
        found = yield from self._ask(what, {"workers": worker_names(workers), "limit": KEYS_LIMIT})
        return {address: keys for address, (_, keys) in found.items()}

    def _run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        workers: str | Iterable[str] | None,
        on_error: str,
    ) -> Operation[dict[str, Any]]:
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f'on_error must be "raise", "return" or "ignore", not {on_error!r}')
        label = label_of(function)
        code, arguments = dumps(function, name=label), dumps((args, kwargs), name="arguments")
        if code.futures or arguments.futures:
            raise ClusterError(f"run gives {label} its arguments as they are, not the values of futures: gather them")
        if code.nbytes + arguments.nbytes > RUN_LIMIT_BYTES:
            raise ClusterError(
                f"{label} and its arguments take {format_bytes(code.nbytes + arguments.nbytes)}, and run takes at most "
                f"{format_bytes(RUN_LIMIT_BYTES)}: submit a task for more"
            )
        detail = {
            "workers": worker_names(workers),
            "name": label,
            "function": code.to_bytes(),
            "arguments": arguments.to_bytes(),
        }
        answers = yield from self._ask("run", detail)
        found: dict[str, Any] = {}
        for address, (error, answer) in answers.items():
            try:
                found[address] = _outcome(error, answer)
            except Exception as failure:
                failure.add_note(f"{label} was run on worker {address}")
                if on_error == "raise":
                    raise
                if on_error == "return":
                    found[address] = failure
        return found

    def _upload(self, load: Callable[[], tuple[str, bytes]]) -> Operation[None]:
        name, data = yield Aside(load)
        if not name.endswith(UPLOADED):
            raise ValueError(f"{name} is none of {', '.join(UPLOADED)}: other files belong where tasks can open them")
        if len(data) > UPLOAD_LIMIT_BYTES:
            raise ClusterError(
                f"{name} takes {format_bytes(len(data))}, and at most {format_bytes(UPLOAD_LIMIT_BYTES)} are sent "
                "around: install it where the workers run"
            )
        errors = yield from self._ask("upload", {"name": name, "data": data})
        for address, error in errors.items():
            raise ClusterError(f"worker {address}: {error}")

    def _replicate(self, futures: Any, n: int | None, workers: str | Iterable[str] | None) -> Operation[None]:
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"n must be how many workers shall have each value, at least 1, not {n!r}")
        numbers = yield from self._finished(futures)
        detail = {"numbers": runs_of(numbers), "count": n or 0, "workers": worker_names(workers)}
        _, errors = yield from self._ask("replicate", detail)
        if errors:
            raise ClusterError(f"not all copies could be made: {'; '.join(errors)}")

    def _rebalance(self, futures: Any, workers: str | Iterable[str] | None) -> Operation[None]:
        numbers: list[int] = []
        if futures is not None:
            numbers = yield from self._finished(futures)
            if not numbers:
                return
        detail = {"numbers": runs_of(numbers), "workers": worker_names(workers)}
        _, _, errors = yield from self._ask("rebalance", detail)
        if errors:
            raise ClusterError(f"not all values could be moved: {'; '.join(errors)}")

    def _finished(self, futures: Any) -> Operation[list[int]]:
        """Wait for futures; their numbers. Raises ClusterError for one that has no value."""
        wanted = list(each_future(futures))
        for future in wanted:
            self._check_own(future)
        numbers = sorted({future._wanted() for future in wanted})
        with self._driver.guard():
            self._session.want(numbers)
            done = self._session.all_done(numbers)
        yield Until(done)
        for future in wanted:
            if future.status != "finished":
                raise ClusterError(f"{future.key} has no value that could be copied: it is {future.status}")
        return numbers

    def _retire(self, workers: str | Iterable[str] | None, close: bool) -> Operation[list[str]]:
        retired = yield from self._ask("retire_workers", {"workers": worker_names(workers), "close": close})
        return list(retired)

    def _restart(self) -> Operation[None]:
        yield from self._ask("restart")

    def _wait_for_workers(self, count: int, timeout: float | None) -> Operation[None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        if (yield from self._ask("wait_for_workers", count, deadline)) is None:
            there = (yield from self._ask("scheduler_info"))["workers"]
            raise TimeoutError(f"{len(there)} of {count} workers were there after {timeout} seconds")

    def _versions(self, check: bool, packages: Iterable[str]) -> Operation[dict[str, Any]]:
        names = [*PACKAGES, *packages]
        scheduler = (yield from self._ask("scheduler_info"))["versions"]
        workers = yield from self._run(package_versions, (names,), {}, None, "raise")
        versions = {"client": package_versions(names), "scheduler": scheduler, "workers": workers}
        differences = differing_versions(versions)
        if check and differences:
            raise ClusterError("versions differ:\n" + "\n".join(differences))
        return versions


def _outcome(error: str, answer: Any) -> Any:
    if error:
        raise ClusterError(error)
    if "data" in answer:
        return loads(answer["data"])
    raise rebuild_failure(Failure(answer["kind"], answer["error"], answer["details"]))
