"""The secret that makes processes one cluster: 256 bits in a file that only its user can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cluster.errors import SettingError
from cluster.private_files import create_private_file, make_private_directory, read_private_file

__all__ = ["SECRET_FILE", "load_or_create_secret"]

SECRET_FILE: Final = "secret"
_SECRET_BYTES: Final = 32


def load_or_create_secret(directory: Path) -> bytes:
    """Return the 32 bytes of the file `secret` in that directory, making both if they are missing.

    Raises SettingError when somebody else owns the directory or the file, could read or write them, or when the file
    does not hold a secret. Processes that start at the same moment end with the same secret.
    """
    file = directory / SECRET_FILE
    try:
        make_private_directory(directory)
        text = read_private_file(file, "secret")
        if text is None:
            create_private_file(file, os.urandom(_SECRET_BYTES).hex().encode() + b"\n")
            text = read_private_file(file, "secret")
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
