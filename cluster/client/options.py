"""What a submit may be told beside the function and its arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["checked_options"]


def checked_options(
    *,
    workers: str | Iterable[str] | None = None,
    resources: Mapping[str, float] | None = None,
    retries: int = 0,
    priority: int = 0,
    allow_other_workers: bool = False,
    timeout_seconds: float | None = None,
) -> dict[str, Any]:
    """Check the options and keep what differs from the default, in the order of their names.

    >>> checked_options(priority=3, workers="anna")
    {'priority': 3, 'workers': ['anna']}
    """
    options: dict[str, Any] = {}
    if allow_other_workers:
        if workers is None:
            raise ValueError("allow_other_workers has a meaning only together with workers")
        options["allow_other_workers"] = True
    if priority:
        options["priority"] = _whole("priority", priority)
    if resources:
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
    names = [workers] if isinstance(workers, str) else list(workers)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"workers must be names or addresses of workers, not {type(name).__name__}")
    if not names:
        raise ValueError("workers is empty: no worker may run this. Leave it out to allow all")
    return names


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    return value


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return float(value)
