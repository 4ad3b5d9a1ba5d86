"""Public names are listed, sorted and documented; settings, messages and functions all have somebody who uses them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from cluster import config
from cluster.wire import messages
from tests.tree.sources import CODE_FOLDERS, Module, modules, product, text_files


def public_definitions(module: Module) -> list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in module.tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and "overload" not in map(ast.unparse, node.decorator_list)  # what follows it says it
    ]


def test_every_module_and_public_definition_says_what_it_is_for() -> None:
    silent = [module.path for module in product() if module.tree.body and ast.get_docstring(module.tree) is None]
    for module in product():
        silent += [
            f"{module.path}:{node.lineno}: {node.name}"
            for node in public_definitions(module)
            if ast.get_docstring(node) is None
        ]
    assert not silent


def test_public_names_are_sorted_and_exist() -> None:
    root = importlib.import_module("cluster")
    names = list(root.__all__)
    assert names == sorted(names)
    assert len(names) == len(set(names))
    for name in names:
        assert hasattr(root, name), name


def test_what_the_package_exports_is_documented_method_by_method() -> None:
    root = importlib.import_module("cluster")
    silent = []
    for name in root.__all__:
        exported: Any = getattr(root, name)
        if not callable(exported):
            continue
        if not inspect.getdoc(exported):
            silent.append(name)
        if inspect.isclass(exported) and exported.__module__.startswith("cluster"):
            for member_name, member in vars(exported).items():
                documented = inspect.getdoc(member.fget if isinstance(member, property) else member)
                described = isinstance(member, property) or inspect.isfunction(member)
                if described and not member_name.startswith("_") and not documented:
                    silent.append(f"{name}.{member_name}")
    assert not silent


def test_every_message_class_has_exactly_one_code() -> None:
    tree = next(module.tree for module in product() if module.name == "cluster.wire.messages")
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert sorted(cls.__name__ for cls in messages.CLASSES) == sorted(defined)


@pytest.mark.parametrize("message", messages.CLASSES, ids=lambda message: message.__name__)
def test_every_message_is_named_outside_the_protocol(message: type[Any]) -> None:
    word = re.compile(rf"\b{message.__name__}\b")
    users = [m.path for m in product() if m.name != "cluster.wire.messages" and word.search(m.text)]
    assert users, f"nobody sends or reads {message.__name__}"


def test_every_setting_has_a_user() -> None:
    others = [module for module in product() if module.name != "cluster.config"]
    for name in config.Settings.__dataclass_fields__:
        assert any(re.search(rf"\.{name}\b", module.text) for module in others), f"nothing reads the setting {name}"


def count_words(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text))


def test_every_definition_is_used() -> None:
    # Code that nobody calls is read, kept working and believed in for nothing. Tests alone do not count as a user,
    # except of the simulator, which is there for them.
    code = modules(*CODE_FOLDERS)
    texts = [module.text for module in code if not module.path.startswith("tests/")]
    texts += [text for path, text in text_files() if path == "pyproject.toml" or path.endswith(".ipynb")]
    words = count_words(texts)
    words_with_tests = words + count_words(module.text for module in code if module.path.startswith("tests/"))
    unused = []
    for module in product():
        known = words_with_tests if module.path.startswith("cluster/simulation/") else words
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and known[node.name] < 2:
                called_by_python = node.name.startswith("__") or node.name in CALLED_BY_OTHERS
                if not called_by_python:
                    unused.append(f"{module.path}:{node.lineno}: {node.name}")
    assert not [name for name in unused if not is_public_face(name)]


# What asyncio, notebooks, the pickle module, logging, click, joblib and users of executors ask for by name.
CALLED_BY_OTHERS = {
    "_max_workers", "_repr_svg_", "abort_everything", "buffer_updated", "connection_lost", "connection_made",
    "data_received", "emit", "eof_received", "format_commands", "get_buffer", "get_command", "list_commands",
    "pause_writing", "persistent_id", "reducer_override", "resume_writing", "retrieve_result_callback", "start_call",
    "stop_call",
}  # fmt: skip


def is_public_face(place: str) -> bool:
    """Whether it is something for the user's own program: what the package exports, and its methods."""
    path = place.split(":", 1)[0]
    return path.startswith(("cluster/client/", "cluster/deploy/", "cluster/errors.py"))
