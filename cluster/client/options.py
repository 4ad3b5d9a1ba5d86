"""What a submit may be told beside the function and its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import SettingError
from cluster.units import parse_bytes

__all__ = ["checked_options"]

TEXT_LIMIT = 1000
"""Characters of a key, a label or a worker's name: they travel with every task, and into every log line."""
NAMES_LIMIT = 10_000
WHOLE_LIMIT = 1_000_000_000
LEAST_WEIGHT = 0.001
MEMORY_LIMIT_BYTES = 1 << 50


def checked_options(
    *,
    workers: str | Iterable[str] | None = None,
    resources: Mapping[str, float] | None = None,
    retries: int = 0,
    priority: int = 0,
    allow_other_workers: bool = False,
    timeout_seconds: float | None = None,
    memory: str | int | None = None,
    key: str | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Check the options and keep what differs from the default, in the order of their names.

    Key and label are checked only: they are no options of the tasks.

    >>> checked_options(priority=3, workers="anna", memory="2GB")
    {'memory_bytes': 2000000000, 'priority': 3, 'workers': ['anna']}
    """
    options: dict[str, Any] = {}
    check_text("key", key)
    check_text("label", label)
    if allow_other_workers:
        if workers is None:
            raise ValueError("allow_other_workers has a meaning only together with workers")
        options["allow_other_workers"] = True
    if memory is not None:
        options["memory_bytes"] = _memory_bytes(memory)
    if priority:
        options["priority"] = _whole("priority", priority)
    if resources:
        if not isinstance(resources, Mapping):
            raise TypeError(f'resources must be a mapping, as {{"GPU": 1}}, not {type(resources).__name__}')
        options["resources"] = {
            str(name): _positive(f"resources[{name!r}]", amount) for name, amount in resources.items()
        }
    if retries:
        options["retries"] = _whole("retries", retries)
        if retries < 0:
            raise ValueError(f"retries must be at least 0, not {retries}")
    if timeout_seconds is not None:
        options["timeout_seconds"] = _positive("timeout_seconds", timeout_seconds)
    if workers is not None:
        options["workers"] = worker_names(workers)
    return options


def worker_names(workers: str | Iterable[str] | None) -> list[str]:
    """One name or address, or several, as a list; None is an empty one."""
    if workers is None:
        return []
    if not isinstance(workers, Iterable):
        raise TypeError(f"workers must be names or addresses of workers, not {type(workers).__name__}")
    names = [workers] if isinstance(workers, str) else list(workers)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"workers must be names or addresses of workers, not {type(name).__name__}")
        check_text("a worker's name", name)
    if len(names) > NAMES_LIMIT:
        raise ValueError(f"workers names {len(names)} workers, and at most {NAMES_LIMIT} can be named")
    if not names:
        raise ValueError("workers is empty: no worker may run this. Leave it out to allow all")
    return names


def check_text(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless it is None, or text that can be sent and shown."""
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {type(value).__name__}; str({value!r:.50}) would do")
    if not 0 < len(value) <= TEXT_LIMIT:
        raise ValueError(f"{name} must have 1 to {TEXT_LIMIT} characters, not {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has a character that is none ({error.reason}): {value[:100]!a}") from None


def check_weight(weight: object) -> None:
    """Raise TypeError or ValueError unless it can be a client's weight."""
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"weight must be a number, not {weight!r:.50}")
    if not LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT:
        raise ValueError(f"weight must lie between {LEAST_WEIGHT:g} and {1 / LEAST_WEIGHT:g}, not {weight}")


def _memory_bytes(memory: Any) -> int:
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise TypeError(f'memory must be an amount of bytes, as 2_000_000_000 or "2GB", not {memory!r:.100}')
    try:
        nbytes = parse_bytes(memory)
    except SettingError as error:
        raise ValueError(f"memory: {error}") from None
    if not 0 < nbytes <= MEMORY_LIMIT_BYTES:
        raise ValueError(f"memory must be above 0 and at most {MEMORY_LIMIT_BYTES} bytes, not {memory!r:.100}")
    return nbytes


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if abs(value) > WHOLE_LIMIT:
        raise ValueError(f"{name} must lie between -{WHOLE_LIMIT} and {WHOLE_LIMIT}")
    return value


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {value}")
    return float(value)
