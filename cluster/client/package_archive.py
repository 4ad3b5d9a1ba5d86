"""A package of the user's as one file that can be sent around."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from types import ModuleType

__all__ = ["archive_of"]


def archive_of(package: ModuleType | str | Path) -> tuple[str, bytes]:
    """A package, the imported one or its folder, as the name and the bytes of an archive."""
    if isinstance(package, ModuleType):
        if not hasattr(package, "__path__"):
            raise TypeError(f"{package.__name__} is a module and no package: upload_file({package.__file__!r}) does it")
        folder = Path(next(iter(package.__path__)))
    else:
        folder = Path(package).absolute()
    if not (folder / "__init__.py").is_file():
        raise ValueError(f"{folder} is no package: it has no __init__.py")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(folder.parent).as_posix())
    return f"{folder.name}.zip", buffer.getvalue()
