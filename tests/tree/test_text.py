"""What people wrote is finished: no notes to come back to, nothing of one machine, every line within the margin."""

from __future__ import annotations

import ast
import re

from tests.tree.sources import CODE_FOLDERS, modules, product, text_files

# Written in pieces, so that this file does not find itself.
NOTES = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK", "W" + "IP"]) + r")\b")
MACHINE_PATHS = re.compile("|".join("/" + folder + "/" for folder in ("home", "root", "Users", "work", "mnt")))
MERGE_MARKS = re.compile("^(" + "|".join([r"<" * 7, r">" * 7]) + ") ", re.MULTILINE)
# What talks to a person on a terminal: the commands, and the two daemons that they become.
MAY_PRINT = ("cluster/cli/", "cluster/daemon/agent.py", "cluster/daemon/scheduler.py")


def found(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for path, text in text_files()
        for match in pattern.finditer(text)
    ]


def test_no_notes_are_left_to_come_back_to() -> None:
    assert not found(NOTES)


def test_no_path_of_one_machine_is_written_down() -> None:
    assert not found(MACHINE_PATHS)


def test_no_merge_marks_are_left() -> None:
    assert not found(MERGE_MARKS)


def test_only_the_command_line_prints() -> None:
    prints = []
    for module in product():
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"print", "breakpoint"}
            ):
                prints.append(f"{module.path}:{node.lineno}")
    assert not [place for place in prints if not place.startswith(MAY_PRINT)]


def test_every_module_postpones_its_annotations() -> None:
    bare = []
    for module in modules(*CODE_FOLDERS):
        imported = [node.names[0].name for node in module.tree.body if isinstance(node, ast.ImportFrom)]
        only_a_docstring = all(isinstance(node, ast.Expr) for node in module.tree.body)
        if "annotations" not in imported and not only_a_docstring:
            bare.append(module.path)
    assert not bare, f"begin these with `from __future__ import annotations`: {bare}"


def test_no_exception_is_swallowed_without_a_word() -> None:
    # `except Exception: pass` hides the next bug; contextlib.suppress names one class, and a comment says why.
    swallowed = []
    for module in product():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
                if broad:
                    swallowed.append(f"{module.path}:{node.lineno}")
    assert not swallowed
