"""The repository's own files, read and parsed once for the tests that hold its rules."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cluster"
CODE_FOLDERS = ("cluster", "tests", "notebooks", "benchmarks")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".ipynb", ".txt", ".cfg", ".yml", ".yaml", ""}
MADE_BY_TOOLS = {"__pycache__", "build", "dist", "demo-output", "shared"}


class Module(NamedTuple):
    """One Python file: its path from the root, its dotted name, its text and its syntax tree."""

    path: str
    name: str
    text: str
    tree: ast.Module


class Import(NamedTuple):
    """One import: the module's full dotted name as written, the line, and whether it stands inside a function."""

    module: str
    names: tuple[str, ...]
    line: int
    in_function: bool
    for_types_only: bool


@functools.cache
def modules(*folders: str) -> tuple[Module, ...]:
    """Every Python file below these folders of the root, in order of path."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if MADE_BY_TOOLS.isdisjoint(relative.parts):
                text = path.read_text(encoding="utf-8")
                name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
                found.append(Module(str(relative), name, text, ast.parse(text, filename=str(relative))))
    return tuple(found)


def product() -> tuple[Module, ...]:
    """The modules of the package itself."""
    return modules("cluster")


@functools.cache
def text_files() -> tuple[tuple[str, str], ...]:
    """`(path, text)` of every file that people wrote, tools' folders and environments left out."""
    found = []
    for path in sorted(_walk(ROOT)):
        if path.suffix in TEXT_SUFFIXES:
            found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
    return tuple(found)


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        hidden = path.name.startswith(".") and path.name not in {".ci", ".gitignore"}
        if hidden or path.name in MADE_BY_TOOLS or path.is_symlink():
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def imports(module: Module) -> list[Import]:
    """All imports of a module, with what they stand in."""
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool, for_types_only: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(alias.name, (), node.lineno, in_function, for_types_only))
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            source = "." * node.level + (node.module or "")
            found.append(Import(source, names, node.lineno, in_function, for_types_only))
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types = isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for child in ast.iter_child_nodes(node):
            visit(child, in_function, for_types_only or types)

    visit(module.tree, False, False)
    return found


def imported_modules(module: Module, *, types_too: bool = True) -> set[str]:
    """The package's own modules that this one imports, `from package import module` resolved to the module."""
    known = {other.name for other in product()}
    found = set()
    for statement in imports(module):
        if statement.for_types_only and not types_too:
            continue
        if statement.module == "cluster" or statement.module.startswith("cluster."):
            found.add(statement.module)
            found.update(name for name in (f"{statement.module}.{part}" for part in statement.names) if name in known)
    return found
