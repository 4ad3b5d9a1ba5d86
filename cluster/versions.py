"""Which versions of Python and of packages there are, and where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.installed import installed_versions

__all__ = ["differing_versions", "package_versions"]


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """The versions of Python, of cluster and of these distributions in this process; None: not installed."""
    wanted = list(names)
    found = installed_versions(wanted)
    return {name: found.get(name) for name in ("python", "cluster", *wanted)}


def differing_versions(versions: Mapping[str, Any]) -> list[str]:
    """A line for each package of which the sides have different versions: `{"client", "scheduler", "workers"}`.

    >>> differing_versions({"client": {"numpy": "2.1"}, "scheduler": {}, "workers": {"tcp://a:1": {"numpy": None}}})
    ['numpy: client 2.1, tcp://a:1 not installed']
    """
    sides = {"client": versions["client"], "scheduler": versions["scheduler"], **versions["workers"]}
    names = dict.fromkeys(name for side in sides.values() for name in side)
    lines = []
    for name in names:
        found = {side: of_side[name] for side, of_side in sides.items() if name in of_side}
        if len(set(found.values())) > 1:
            told = (f"{side} {version or 'not installed'}" for side, version in found.items())
            lines.append(f"{name}: {', '.join(told)}")
    return lines
