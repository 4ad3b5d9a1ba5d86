"""How a client asks for what clients share by name, and the datasets that it publishes.

The scheduler's side is `cluster/scheduler/coordination.py`. A request stays open until its answer was taken in: only
then does the client say, with its next request, that everything below is settled. Whoever stops waiting withdraws.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any, Final

from cluster.client.core import ClientCore
from cluster.client.future import Future, check_reference
from cluster.client.inputs import Inputs
from cluster.client.operations import Aside, Operation, Until
from cluster.errors import ClusterError, ConnectionLost
from cluster.wire import messages
from cluster.wire.encoded import Encoded, Reference
from cluster.wire.payload import dumps, loads

__all__ = ["ITEM_LIMIT_BYTES", "Coordination", "Datasets"]

ITEM_LIMIT_BYTES = 64 * 1024
"""What an item of a queue or the value of a variable may take."""
_NO_DEFAULT: Final = object()
DATASET_LIMIT_BYTES = 1 << 20
DATASET_LIMIT_FUTURES = 4000
"""What the scheduler keeps of a published object itself; it takes little more in one step."""


class Coordination(ClientCore):
    """The part of `Client` that shares named things with other clients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._open_requests: dict[int, None] = {}  # in the order of their numbers
        self._withdrawn: deque[tuple[int, int]] = deque()  # requests, and those that withdrew them
        super().__init__(*arguments, **options)

    def _holding_task(self) -> tuple[int, int] | None:
        """The task, as (attempt, row), with which what is acquired now ends; None: it is the client's."""
        return None

    def _offering(self, values: list[Any], names: Sequence[str], broadcast: bool) -> Operation[list[Future]]:
        """Put values on workers, as `scatter`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ datasets

    def publish_dataset(self, *value: Any, name: str | None = None, override: bool = False, **datasets: Any) -> None:
        """Share values under names with all clients, until they are unpublished, also after this client has gone.

        `client.publish_dataset(prices=futures)`, or `client.publish_dataset(futures, name="prices")`: futures, in any
        container, are kept, and so are collections that were persisted. An object over 1 MiB, or with more than 4,000
        futures inside, is scattered, and lies on a worker.
        Raises KeyError when a name is taken, unless `override`.
        """
        if len(value) != (name is not None):
            raise TypeError('write publish_dataset(name=value), or publish_dataset(value, name="name") for any name')
        named = datasets if name is None else {name: value[0], **datasets}
        return self._complete(self._publish_all(named, override))

    def publish(self, name: str, value: Any, *, override: bool = False) -> None:
        """As `publish_dataset`, for one name, which may be any text of up to 1,000 characters."""
        return self._complete(self._publish(name, value, override))

    def get_dataset(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """What was published under a name, its futures bound to this client; without a `default` raises KeyError."""
        return self._complete(self._get_dataset(name, default))

    def list_datasets(self) -> tuple[str, ...]:
        """The names under which something is published (the first 10,000), sorted."""
        return self._complete(self._list_datasets())

    def unpublish_dataset(self, name: str) -> None:
        """Take a name back: its futures are no longer kept by it. Raises KeyError when there is none."""
        return self._complete(self._unpublish(name))

    def unpublish(self, name: str) -> None:
        """As `unpublish_dataset`."""
        return self._complete(self._unpublish(name))

    @property
    def datasets(self) -> Datasets:
        """What is published, as a mapping: `client.datasets["prices"] = futures`."""
        if self.asynchronous:
            raise TypeError("a mapping cannot be awaited: use publish, get_dataset and unpublish of an AsyncClient")
        return Datasets(self)

    def _publish_all(self, datasets: dict[str, Any], override: bool) -> Operation[None]:
        for name, value in datasets.items():
            yield from self._publish(name, value, override)

    def _publish(self, name: str, value: Any, override: bool) -> Operation[None]:
        encoded = yield Aside(partial(dumps, value))
        if encoded.nbytes > DATASET_LIMIT_BYTES or len(encoded.futures) > DATASET_LIMIT_FUTURES:
            del encoded  # it may be a second copy of the data
            (future,) = yield from self._offering([value], (), False)
            encoded = dumps(_Elsewhere(future))
        data, references = yield from self._shared(encoded)
        published = yield from self._coordinate("dataset", name, "publish", data, references, bool(override))
        if not published:
            raise KeyError(f"a dataset {name!r} is published already: unpublish it, or pass override=True")

    def _get_dataset(self, name: str, default: Any) -> Operation[Any]:
        found = yield from self._coordinate("dataset", name, "get", load=self._load_shared_if_any)
        if found is None:
            if default is not _NO_DEFAULT:
                return default
            raise KeyError(f"no dataset {name!r} is published")
        if isinstance(found[0], _Elsewhere):
            return (yield from self._results.value(found[0].future.number, None))
        return found[0]

    def _list_datasets(self) -> Operation[tuple[str, ...]]:
        names = yield from self._ask("datasets")
        return tuple(names)

    def _unpublish(self, name: str) -> Operation[None]:
        known = yield from self._coordinate("dataset", name, "delete")
        if not known:
            raise KeyError(f"no dataset {name!r} is published")

    # ------------------------------------------------------------------ requests

    def _coordinate(
        self,
        kind: str,
        name: str,
        action: str,
        *arguments: Any,
        timeout: float | None = None,
        load: Callable[[Any], Any] | None = None,
    ) -> Operation[Any]:
        """Ask for something of a named object; `load` makes the result of what the scheduler says.

        The scheduler waits, for up to `timeout` seconds (None: for ever), and then says None. Whatever comes with the
        answer is the scheduler's until `load` has returned: futures are bound by then. Raises ClusterError.
        """
        if not isinstance(name, str):
            raise TypeError(f"a name is a text, not {type(name).__name__}: {name!r:.100}")
        session = self._session
        self._driver.check()
        request = -1
        try:
            with self._driver.guard():
                self._sweep()
                request = session.query("coordinate", [self._floor(), kind, name, action, timeout, list(arguments)])
                self._open_requests[request] = None
            yield Until(lambda: request in session.answers)
            with self._driver.guard():
                answer = session.answers.pop(request, None)
            if not isinstance(answer, messages.Answer):
                raise ConnectionLost(session.lost or "the connection has ended")
            return self._outcome(request, answer, load)
        except BaseException:
            self._withdraw(request)
            raise

    def _outcome(self, request: int, answer: messages.Answer, load: Callable[[Any], Any] | None) -> Any:
        """The result of an answer. Whether it can be loaded or not, it was taken; only an interrupt gives it back."""
        try:
            if answer.error:
                raise ClusterError(answer.error)
            result = answer.result if load is None else load(answer.result)
        except Exception:
            self._settle_request(request)
            raise
        if load is None:
            self._open_requests.pop(request)
        else:
            self._settle_request(request)
        return result

    def _settle_request(self, request: int) -> None:
        """An answer was taken in. What it carried is freed now, for the next request may be long in coming."""
        with self._driver.guard():
            self._open_requests.pop(request, None)
            self._session.query("coordinate_settle", self._floor())
        self._driver.send()

    def _withdraw(self, request: int) -> None:
        """Nobody will look at this request's answer."""
        with self._driver.guard():
            if request in self._open_requests and self._session.lost is None:
                withdrawal = self._session.query("coordinate_withdraw", [self._floor(), request])
                self._withdrawn.append((request, withdrawal))
            self._open_requests.pop(request, None)
        self._driver.send()

    def _sweep(self) -> None:
        """Drop the answers of what was withdrawn."""
        answers = self._session.answers
        while self._withdrawn and self._withdrawn[0][1] in answers:
            for request in self._withdrawn.popleft():
                answers.pop(request, None)

    def _floor(self) -> int:
        """The oldest open request; -1 stands for the one that is about to be made."""
        return next(iter(self._open_requests), -1)

    # ------------------------------------------------------------------ values

    def _encode_shared(self, value: Any, limit_bytes: int) -> Operation[tuple[bytes, list[Any]]]:
        """A value's bytes, and the futures in it; raises ValueError when they are too many for the scheduler."""
        encoded = dumps(value)
        if encoded.nbytes > limit_bytes:
            raise ValueError(
                f"a {type(value).__name__} of {encoded.nbytes} bytes is too large to be kept by the scheduler, which "
                f"takes {limit_bytes} of it: scatter it and put the future, as in put(client.scatter(value))"
            )
        return (yield from self._shared(encoded))

    def _shared(self, encoded: Encoded) -> Operation[tuple[bytes, list[Any]]]:
        references = [[reference[0], check_reference(reference[1])] for reference in encoded.futures]
        if any(reference[0] != self.id for reference in references):
            yield Aside(lambda: Inputs(self._submission).settle(encoded.futures))
        return encoded.to_bytes(), references

    def _load_shared(self, value: list[Any]) -> Any:
        """The value behind what the scheduler handed out."""
        data, _, translations = value
        owners = {(known[0], known[1]): (known[2], known[3]) for known in translations}

        def bind_future(reference: Reference) -> Any:
            owner = owners.get((reference[0], reference[1]))
            return self._bind_future(reference if owner is None else (*owner, *reference[2:]))

        return loads(data, bind_future=bind_future)

    def _load_shared_if_any(self, value: list[Any] | None) -> tuple[Any] | None:
        return None if value is None else (self._load_shared(value),)


class _Elsewhere:
    """What stands for a published object that is too large for the scheduler."""

    def __init__(self, future: Future) -> None:
        self.future = future


class Datasets(MutableMapping[str, Any]):
    """What is published, by name; each access asks the scheduler. `Client.datasets` makes it."""

    def __init__(self, client: Coordination) -> None:
        self._client = client

    def __getitem__(self, name: str) -> Any:
        return self._client.get_dataset(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._client.publish(name, value, override=True)

    def __delitem__(self, name: str) -> None:
        self._client.unpublish_dataset(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._client.list_datasets())

    def __contains__(self, name: object) -> bool:
        return name in self._client.list_datasets()

    def __len__(self) -> int:
        return len(self._client.list_datasets())

    def __repr__(self) -> str:
        return f"<Datasets {', '.join(self)}>"
