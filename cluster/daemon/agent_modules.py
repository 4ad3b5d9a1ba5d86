"""Modules that users uploaded, as files: one module as it is, an archive unpacked. Nothing of them is run here."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["store_module"]

_ARCHIVES: Final = (".zip", ".egg", ".whl")
_UNPACKED_LIMIT_BYTES: Final = 256 << 20


def store_module(folder: Path, name: str, data: bytes) -> str:
    """Store a file in the folder that slots import from; what is wrong with it, or nothing."""
    if PurePosixPath(name).name != name or not name or name.startswith("."):
        return f"{name!r} is no plain file name"
    try:
        if name.endswith(_ARCHIVES):
            _unpack(folder, data)
        else:
            _replace(folder / name, data)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        return f"{name} cannot be stored in {folder}: {error}"
    return ""


def _unpack(folder: Path, data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        total = sum(member.file_size for member in members)
        if total > _UNPACKED_LIMIT_BYTES:
            raise ValueError(f"it unpacks to {total} bytes, more than {_UNPACKED_LIMIT_BYTES}")
        for member in members:
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"it has a member outside of itself, {member.filename!r}")
            target = folder.joinpath(*path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, archive.read(member))


def _replace(path: Path, data: bytes) -> None:
    # In one step: a slot that imports it at this moment finds the old one or the new one.
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    os.replace(beside, path)
