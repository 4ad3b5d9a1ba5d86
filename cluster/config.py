"""What can be set, in one place: `load` finds each setting's value and checks it.

The order is: an argument, the environment (`CLUSTER__SCHEDULER_PORT=9000`), the project file (`cluster.toml` with
`scheduler_port = 9000`, or the same below `[tool.cluster]` in `pyproject.toml`, in the working directory or the nearest
folder above that has one), the user's file (`settings.toml` in the settings directory), the default. A name that is no
setting is an error wherever it stands, so a typing mistake is never silently without effect.
"""

from __future__ import annotations

import ast
import inspect
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from cluster.errors import SettingError
from cluster.units import parse_bytes

__all__ = [
    "ENVIRONMENT_PREFIX",
    "PROJECT_FILE",
    "SETTINGS_FILE",
    "SHARED_PROJECT_FILE",
    "SettingReport",
    "Settings",
    "describe",
    "load",
    "project_file",
]

ENVIRONMENT_PREFIX: Final = "CLUSTER__"
SETTINGS_FILE: Final = "settings.toml"
PROJECT_FILE: Final = "cluster.toml"
SHARED_PROJECT_FILE: Final = "pyproject.toml"


def _default_directory() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    # The specification of XDG_CONFIG_HOME says that a relative path there is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "cluster"


def _default_shared_memory_directory() -> Path:
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK | os.X_OK) else _temporary_directory()


def _temporary_directory() -> Path:
    # Loaded here, since few need it: with what it loads in turn it takes a thirtieth of a scheduler's memory.
    return Path(import_module("tempfile").gettempdir())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting that is in force; `load` makes it."""

    directory: Path = field(default_factory=_default_directory)
    """The user's own directory with the secret and settings.toml."""
    address: str | None = None
    """The scheduler that a client without an address connects to, as tcp://host:port."""
    shared_memory_directory: Path = field(default_factory=_default_shared_memory_directory)
    """Where values are kept as files, best in memory."""
    spill_directory: Path | None = None
    """Where values go when memory is full; where temporary files are, if it is not set."""
    spill_quota_bytes: int = 0
    """How much of the disk values may take; 0: as much as is free there, but for a reserve."""
    spill_compression: str | None = None
    """How values on disk are compressed: lz4 or zstd; not at all, if it is not set."""
    fast_paths: bool = True
    """Whether a worker uses what only some systems have; without, it does the same by plain and slower means."""
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
    unmet_request_seconds: float = 60.0
    """After so long a task fails that no connected worker has the resources or the name for; 0: never."""
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
            if one.name.startswith(("lineage_", "spill_quota")) and value < 0:
                raise SettingError(f"{one.name} must be at least 0, not {value}")
        if self.spill_compression not in (None, "lz4", "zstd"):
            raise SettingError(f"spill_compression must be lz4 or zstd, or be left out, not {self.spill_compression}")
        if self.worker_timeout_seconds <= self.heartbeat_interval_seconds:
            raise SettingError(
                f"worker_timeout_seconds ({self.worker_timeout_seconds}) must be longer than "
                f"heartbeat_interval_seconds ({self.heartbeat_interval_seconds}), or every worker is taken for dead"
            )


_TRUTH_VALUES: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_FIELDS: Final = {one.name: one for one in fields(Settings)}


class SettingReport(NamedTuple):
    """One setting for people: what is in force, and why."""

    name: str
    value: Any
    kind: str
    unit: str
    sentence: str
    origin: str
    """"argument", "environment CLUSTER__NAME", a file's path, or "default"."""
    default: Any


def load(**overrides: Any) -> Settings:
    """Return the settings in force: argument, environment, project file, the user's file, default, in this order.

    An override of None counts as not given. Raises SettingError for a name that is no setting (it names the nearest)
    and for a value that has no sense, saying where it stands.
    """
    return _resolve(overrides)[0]


def describe(**overrides: Any) -> list[SettingReport]:
    """Every setting with its value and where that came from; overrides and errors as in `load`.

    >>> [report.value for report in describe(scheduler_port=9000) if report.origin == "argument"]
    [9000]
    """
    settings, origins = _resolve(overrides)
    defaults, sentences = Settings(), _sentences()
    return [
        SettingReport(
            one.name,
            getattr(settings, one.name),
            str(one.type).lower().replace(" | none", " or none"),
            next((unit for unit in ("seconds", "bytes", "rows") if one.name.endswith(f"_{unit}")), ""),
            sentences[one.name],
            origins.get(one.name, "default"),
            getattr(defaults, one.name),
        )
        for one in fields(Settings)
    ]


def project_file() -> Path | None:
    """The project's file of settings: `cluster.toml`, or a `pyproject.toml` with a table `[tool.cluster]`, in the
    working directory or else in the nearest folder above it that has either. SettingError if one folder has both."""
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        return None
    for each in (folder, *folder.parents):
        own, shared = each / PROJECT_FILE, each / SHARED_PROJECT_FILE
        has_table = os.path.isfile(shared) and _project_table(shared) is not None
        if os.path.isfile(own):
            if has_table:
                raise SettingError(f"both {own} and [tool.cluster] in {shared} have settings; keep one of them")
            return own
        if has_table:
            return shared
    return None


def _resolve(overrides: Mapping[str, Any]) -> tuple[Settings, dict[str, str]]:
    """The settings, and where each that is not a default came from."""
    given = {name: value for name, value in overrides.items() if value is not None}
    from_environment = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): text
        for name, text in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def add(found: dict[str, Any], origin: str) -> None:
        for name, value in found.items():
            if name not in values:
                values[name] = value
                origins[name] = origin.replace("*", name.upper())

    found: dict[str, Any] = {}
    _take(found, from_environment, "the environment", ENVIRONMENT_PREFIX, upper=True)
    arguments: dict[str, Any] = {}
    _take(arguments, given, "an argument")
    add(arguments, "argument")
    add(found, f"environment {ENVIRONMENT_PREFIX}*")
    project = project_file()
    if project is not None:
        table = _read(project) if project.name == PROJECT_FILE else _project_table(project) or {}
        add(_take_file(project, table), str(project))
    file = values.get("directory", _default_directory()) / SETTINGS_FILE
    from_file = _take_file(file, _read(file))
    if "directory" in from_file:
        raise SettingError(
            f"{file} sets directory, but this file is found through it; "
            f"set {ENVIRONMENT_PREFIX}DIRECTORY in the environment or pass it as an argument"
        )
    add(from_file, str(file))
    if not values.get("fast_paths", True):
        # Shared memory is one of the fast paths. A directory that somebody names is used all the same.
        values.setdefault("shared_memory_directory", _temporary_directory())
    return Settings(**values), origins


def _take_file(file: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings; a relative path there starts at the file's own folder."""
    found: dict[str, Any] = {}
    _take(found, table, str(file))
    for name, value in found.items():
        if isinstance(value, Path):
            found[name] = file.parent / Path(table[name]).expanduser()
    return found


def _project_table(file: Path) -> dict[str, Any] | None:
    """The table [tool.cluster] of a pyproject.toml; None if it has none."""
    try:
        if b"cluster" not in file.read_bytes():
            return None
    except OSError as error:
        raise SettingError(f"the project file {file} cannot be read: {error}") from error
    tool = _read(file).get("tool", {})
    table = tool.get("cluster") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise SettingError(f"{file} has tool.cluster, which must be a table of settings: [tool.cluster]")
    return table


def _sentences() -> dict[str, str]:
    """What each setting is for: the text below its field above, so that it is written once."""
    tree = ast.parse(inspect.getsource(Settings)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for one, text in pairwise(tree.body):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, ast.Expr):
            found[one.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the settings file {file} cannot be read: {error}") from error
    tomllib = import_module("tomllib")  # loaded here, since most users have no such file
    try:
        table: dict[str, Any] = tomllib.loads(text)
        return table
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"the settings file {file} is not valid TOML: {error}") from error


def _take(
    found: dict[str, Any], values: Mapping[str, Any], source: str, prefix: str = "", *, upper: bool = False
) -> None:
    for name, value in values.items():
        written = prefix + (name.upper() if upper else name)
        if name not in _FIELDS:
            near = import_module("difflib").get_close_matches(name, _FIELDS, 1, 0.5)  # loaded for this alone
            nearest = prefix + (near[0].upper() if upper else near[0]) if near else ""
            hint = f"did you mean {nearest}?" if near else "`cluster config` lists them"
            raise SettingError(f"{source} has {written}, which is no setting; {hint}")
        try:
            found[name] = _convert(name, value)
        except (TypeError, ValueError, OverflowError) as error:
            kind = _FIELDS[name].type
            raise SettingError(f"{source} sets {written} to {value!r}, which is no {kind}: {error}") from error


def _convert(name: str, value: Any) -> Any:
    # The annotations are text (`from __future__ import annotations`), so they can be compared as written.
    kind = _FIELDS[name].type
    if kind in ("Path", "Path | None"):
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise TypeError("a path is text")
        return Path(value).expanduser().absolute()
    if kind == "str | None":
        if not isinstance(value, str):
            raise TypeError("it is not text")
        return value or None
    if kind == "bool":
        truth = value if isinstance(value, bool) else _TRUTH_VALUES.get(str(value).strip().lower())
        if truth is None:
            raise ValueError(f"it is none of {', '.join(_TRUTH_VALUES)}")
        return truth
    if isinstance(value, bool):
        raise TypeError("it is a truth value")
    if name.endswith("_bytes"):
        return parse_bytes(value)
    if kind == "int":
        if isinstance(value, float) and not value.is_integer():
            raise ValueError("it is not a whole number")
        return int(value)
    return float(value)
