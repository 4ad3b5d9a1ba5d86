"""The secret that makes processes one cluster: 256 bits in a file that only its user can read."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from cluster.errors import SettingError

__all__ = ["SECRET_FILE", "load_or_create_secret"]

SECRET_FILE: Final = "secret"
_SECRET_BYTES: Final = 32
# Where the platform lacks them (Windows) a file belongs to its user by other means.
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_CLOSE_ON_EXEC: Final = getattr(os, "O_CLOEXEC", 0)


def load_or_create_secret(directory: Path) -> bytes:
    """Return the 32 bytes of the file `secret` in that directory, making both if they are missing.

    Raises SettingError when somebody else owns the directory or the file, could read or write them, or when the file
    does not hold a secret. Processes that start at the same moment end with the same secret.
    """
    file = directory / SECRET_FILE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_directory(directory)
        text = _read(file)
        if text is None:
            _create(file)
            text = _read(file)
    except OSError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"the secret {file} cannot be read or made: {error}") from error
    try:
        secret = bytes.fromhex(text or "")
    except ValueError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        raise SettingError(
            f"{file} does not hold a secret ({2 * _SECRET_BYTES} hexadecimal digits); "
            "copy it again from the other machine, or remove it to have a new one made"
        )
    return secret


def _check_directory(directory: Path) -> None:
    status = os.stat(directory)
    _check_owner(directory, status)
    if os.name == "posix" and status.st_mode & 0o022:
        raise SettingError(f"others may write in {directory}, which holds the secret; run: chmod 700 {directory}")


def _check_owner(path: Path, status: os.stat_result) -> None:
    if os.name == "posix" and status.st_uid != os.geteuid():
        raise SettingError(
            f"{path} belongs to user {status.st_uid}, but this process runs as user {os.geteuid()}; "
            "set CLUSTER__DIRECTORY to a directory of your own"
        )


def _read(file: Path) -> str | None:
    """Return the file's text; None if there is no file."""
    try:
        # Non-blocking, so that a pipe of that name cannot hold the process up.
        descriptor = os.open(file, os.O_RDONLY | _NO_FOLLOW | _CLOSE_ON_EXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        if file.is_symlink():
            raise SettingError(f"{file} is a symbolic link; put the secret itself there") from error
        raise
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SettingError(f"{file} is no regular file; remove it to have a secret made")
        _check_owner(file, status)
        if os.name == "posix" and status.st_mode & 0o077:
            raise SettingError(f"others may read {file}; run: chmod 600 {file}")
        return opened.read(4096).decode("ascii", errors="replace").strip()


def _create(file: Path) -> None:
    """Make the file in one step with its content, unless another process has just done so."""
    draft = file.with_name(f"{SECRET_FILE}.{os.urandom(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _CLOSE_ON_EXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(os.urandom(_SECRET_BYTES).hex().encode() + b"\n")
            opened.flush()
            os.fsync(descriptor)
        # A link, not a rename: it never replaces a secret that is there already.
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        os.unlink(draft)
