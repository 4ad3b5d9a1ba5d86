"""Which versions this process has of what both ends of a connection should have alike."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from typing import Final

from cluster.version import __version__

__all__ = ["PACKAGES", "installed_versions"]

PACKAGES: Final = ("cloudpickle", "msgpack", "numpy", "pandas", "pyarrow")
"""What values and functions are made with: it should be the same on all sides."""
_METADATA: Final = re.compile(r"([A-Za-z0-9_.]+)-([^-]+)(?:-.*)?\.(?:dist|egg)-info")


def installed_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python, of cluster and of these packages for this process; what is missing is left out.

    For daemons that start: the folders of `sys.path` are listed, which takes a millisecond. `importlib.metadata`, which
    knows more kinds of installations, takes forty.

    >>> sorted(installed_versions())[:3]
    ['cloudpickle', 'cluster', 'msgpack']
    """
    found = {"python": platform.python_version(), "cluster": __version__}
    wanted = frozenset(names)
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue  # a zip file, or a folder that does not exist: nothing is installed there
        for name in names:
            match = _METADATA.fullmatch(name)
            if match is not None and match[1].lower() in wanted:
                found.setdefault(match[1].lower(), match[2])
    return found
