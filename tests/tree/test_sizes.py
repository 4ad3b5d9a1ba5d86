"""Files and functions stay small enough to be read at one sitting, and are named for what they are about."""

from __future__ import annotations

import ast
from pathlib import PurePath

from tests.tree.sources import CODE_FOLDERS, modules

FILE_LINES = 600
FUNCTION_LINES = 80

# "path" or "path:function" -> why it is better long than cut.
LONG_FILES: dict[str, str] = {
    "cluster/wire/messages.py": "the protocol is one list: every message, and behind them the codes",
}
LONG_FUNCTIONS: dict[str, str] = {}

# Such a name says nothing of what is inside, so everything ends up in it.
EMPTY_NAMES = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
EMPTY_CLASS_ENDINGS = ("Helper", "Helpers", "Manager", "Util", "Utils")


def long_files() -> dict[str, int]:
    counts = {module.path: module.text.count("\n") for module in modules(*CODE_FOLDERS)}
    return {path: lines for path, lines in counts.items() if lines > FILE_LINES}


def long_functions() -> dict[str, int]:
    found = {}
    for module in modules(*CODE_FOLDERS):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    found[f"{module.path}:{node.name}"] = lines
    return found


def test_files_are_short_or_listed_with_a_reason() -> None:
    assert {path: n for path, n in long_files().items() if path not in LONG_FILES} == {}


def test_functions_are_short_or_listed_with_a_reason() -> None:
    assert {name: n for name, n in long_functions().items() if name not in LONG_FUNCTIONS} == {}


def test_listed_exceptions_are_still_needed() -> None:
    assert set(LONG_FILES) <= set(long_files())
    assert set(LONG_FUNCTIONS) <= set(long_functions())


def test_modules_and_classes_are_named_for_what_they_are_about() -> None:
    empty = []
    for module in modules(*CODE_FOLDERS):
        empty += [module.path for part in PurePath(module.path).with_suffix("").parts if part in EMPTY_NAMES]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith(EMPTY_CLASS_ENDINGS):
                empty.append(f"{module.path}: {node.name}")
    assert not empty
