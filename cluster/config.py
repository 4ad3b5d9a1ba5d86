"""What can be set, in one place: `load` finds each setting's value and checks it.

The order is: an argument, the environment (`CLUSTER__SCHEDULER_PORT=9000`), the user's file (`settings.toml` in the
settings directory, `scheduler_port = 9000`), the default. A name that is no setting is an error wherever it stands, so
a typing mistake is never silently without effect.
"""

from __future__ import annotations

import difflib
import math
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from cluster.errors import SettingError
from cluster.units import parse_bytes

__all__ = ["ENVIRONMENT_PREFIX", "SETTINGS_FILE", "Settings", "load"]

ENVIRONMENT_PREFIX: Final = "CLUSTER__"
SETTINGS_FILE: Final = "settings.toml"


def _default_directory() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    # The specification of XDG_CONFIG_HOME says that a relative path there is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "cluster"


def _default_shared_memory_directory() -> Path:
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting that is in force; `load` makes it."""

    directory: Path = field(default_factory=_default_directory)
    """The user's own directory with the secret and settings.toml."""
    address: str | None = None
    """The scheduler that a client without an address connects to, as tcp://host:port."""
    shared_memory_directory: Path = field(default_factory=_default_shared_memory_directory)
    """Where values are kept as files, best in memory."""
    scheduler_port: int = 8770
    """The port on which a scheduler listens; 0 takes any free one."""
    heartbeat_interval_seconds: float = 1.0
    """How often a worker tells the scheduler that it is alive."""
    worker_timeout_seconds: float = 10.0
    """A worker silent for so long is taken for dead."""
    client_grace_seconds: float = 60.0
    """What a client wanted is released when the client has been gone for so long."""
    drain_seconds: float = 30.0
    """How long a worker that was asked to end lets its running tasks run on."""
    lead_seconds: float = 0.010
    """How much measured work a slot is granted ahead."""
    lineage_bytes: int = 1_000_000_000
    """How many bytes of arguments are kept for each client, to compute lost values again."""
    lineage_rows: int = 1_000_000
    """How many finished tasks are kept for each client, to compute lost values again."""

    def __post_init__(self) -> None:
        if not 0 <= self.scheduler_port <= 65535:
            raise SettingError(f"scheduler_port must be 0 to 65535, not {self.scheduler_port}")
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name.endswith("_seconds") and not (math.isfinite(value) and value >= 0):
                raise SettingError(f"{one.name} must be a number of seconds of at least 0, not {value}")
            if one.name.startswith("lineage_") and value < 0:
                raise SettingError(f"{one.name} must be at least 0, not {value}")
        if self.worker_timeout_seconds <= self.heartbeat_interval_seconds:
            raise SettingError(
                f"worker_timeout_seconds ({self.worker_timeout_seconds}) must be longer than "
                f"heartbeat_interval_seconds ({self.heartbeat_interval_seconds}), or every worker is taken for dead"
            )


_FIELDS: Final = {one.name: one for one in fields(Settings)}


def load(**overrides: Any) -> Settings:
    """Return the settings in force: an argument goes before the environment, then the user's file, then the default.

    An override of None counts as not given. Raises SettingError for a name that is no setting (it names the nearest)
    and for a value that has no sense, saying where it stands.
    """
    found: dict[str, Any] = {}
    given = {name: value for name, value in overrides.items() if value is not None}
    from_environment = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): text
        for name, text in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    _take(found, from_environment, "the environment", ENVIRONMENT_PREFIX, upper=True)
    _take(found, given, "an argument")
    directory = found.get("directory") or _default_directory()
    file = directory / SETTINGS_FILE
    from_file: dict[str, Any] = {}
    _take(from_file, _read(file), str(file))
    if "directory" in from_file:
        raise SettingError(
            f"{file} sets directory, but this file is found through it; "
            f"set {ENVIRONMENT_PREFIX}DIRECTORY in the environment or pass it as an argument"
        )
    return Settings(**{**from_file, **found})


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the settings file {file} cannot be read: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"the settings file {file} is not valid TOML: {error}") from error


def _take(
    found: dict[str, Any], values: Mapping[str, Any], source: str, prefix: str = "", *, upper: bool = False
) -> None:
    for name, value in values.items():
        written = prefix + (name.upper() if upper else name)
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, 1, 0.5)
            hint = f"did you mean {prefix + (near[0].upper() if upper else near[0])}?" if near else "see cluster.config"
            raise SettingError(f"{source} has {written}, which is no setting; {hint}")
        try:
            found[name] = _convert(name, value)
        except (TypeError, ValueError, OverflowError) as error:
            kind = _FIELDS[name].type
            raise SettingError(f"{source} sets {written} to {value!r}, which is no {kind}: {error}") from error


def _convert(name: str, value: Any) -> Any:
    # The annotations are text (`from __future__ import annotations`), so they can be compared as written.
    kind = _FIELDS[name].type
    if kind == "Path":
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise TypeError("a path is text")
        return Path(value).expanduser().absolute()
    if kind == "str | None":
        if not isinstance(value, str):
            raise TypeError("it is not text")
        return value or None
    if isinstance(value, bool):
        raise TypeError("it is a truth value")
    if name.endswith("_bytes"):
        return parse_bytes(value)
    if kind == "int":
        if isinstance(value, float) and not value.is_integer():
            raise ValueError("it is not a whole number")
        return int(value)
    return float(value)
