"""Files that only their user may read or change: checked when they are read, and made in one step."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from cluster.errors import SettingError

__all__ = ["create_private_file", "make_private_directory", "read_private_file"]

# Where the platform lacks them (Windows) a file belongs to its user by other means.
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_CLOSE_ON_EXEC: Final = getattr(os, "O_CLOEXEC", 0)
_LIMIT_BYTES: Final = 16 * 1024


def make_private_directory(directory: Path) -> None:
    """Make the directory if it is missing. SettingError if somebody else owns it or may write in it; OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.stat(directory)
    _check_owner(directory, status)
    if os.name == "posix" and status.st_mode & 0o022:
        raise SettingError(f"others may write in {directory}, which holds the secret; run: chmod 700 {directory}")


def read_private_file(file: Path, what: str) -> str | None:
    """Return the file's text; None if there is no file. SettingError if others could read or change it; OSError."""
    try:
        # Non-blocking, so that a pipe of that name cannot hold the process up.
        descriptor = os.open(file, os.O_RDONLY | _NO_FOLLOW | _CLOSE_ON_EXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        if file.is_symlink():
            raise SettingError(f"{file} is a symbolic link; put the {what} itself there") from error
        raise
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SettingError(f"{file} is no regular file; remove it to have a {what} made")
        _check_owner(file, status)
        if os.name == "posix" and status.st_mode & 0o077:
            raise SettingError(f"others may read {file}; run: chmod 600 {file}")
        return opened.read(_LIMIT_BYTES).decode("ascii", errors="replace").strip()


def create_private_file(file: Path, content: bytes, *, replace: bool = False) -> None:
    """Make the file in one step with its content; one that is there already stays, or else is replaced."""
    draft = file.with_name(f"{file.name}.{os.urandom(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _CLOSE_ON_EXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(descriptor)
        if replace:
            os.replace(draft, file)
            return
        # A link, not a rename: it never replaces what another process has just put there.
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if os.name == "posix" and status.st_uid != os.geteuid():
        raise SettingError(
            f"{path} belongs to user {status.st_uid}, but this process runs as user {os.geteuid()}; "
            "set CLUSTER__DIRECTORY to a directory of your own"
        )
