"""The version of this package, in a module of its own so that the build reads it without importing anything."""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["PYTHON_VERSION", "__version__"]

__version__ = "0.1.0"

# As `platform.python_version()` says it; that module takes as long to load as ten of ours.
PYTHON_VERSION: Final = sys.version.partition(" ")[0]
