"""Imports go down the floors only, and what must stay pure, light or ignorant of pickles is kept so."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.tree.sources import Module, imported_modules, imports, product

FLOORS = {
    **dict.fromkeys(["errors", "ids", "units", "config", "version", "versions", "installed"], 0),
    **dict.fromkeys(["private_files", "secret", "certificate"], 0),
    "wire": 1,
    "graph": 2,
    **dict.fromkeys(["scheduler", "worker", "session"], 3),
    **dict.fromkeys(["storage", "transport", "simulation"], 4),
    "daemon": 5,
    "client": 6,
    "lazy": 7,
    **dict.fromkeys(["array", "dataframe"], 8),
    **dict.fromkeys(["deploy", "dashboard", "adapters", "doctor"], 9),
    "cli": 10,
}

# Pure floors decide; they are told the time and everything else. A generator or a clock inside would end replay.
PURE = ("cluster.graph", "cluster.scheduler", "cluster.worker", "cluster.session")
IMPURE_MODULES = {
    "asyncio", "concurrent", "datetime", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "psutil",
    "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "uuid", "warnings",
}  # fmt: skip
# Of `sys`, what is the same for the whole life of an interpreter.
CONSTANTS_OF_SYS = {"byteorder", "maxsize"}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "hash", "breakpoint"}
# The wire is sans-I/O: it may keep something per thread and draw a nonce, and opens no socket and reads no clock.
WIRE_FORBIDDEN = {"asyncio", "select", "selectors", "socket", "ssl", "subprocess", "time", "random"}

# To scheduler and agent, functions, arguments and values are opaque bytes: a hostile pickle finds nobody to open it.
NEVER_UNPICKLE = ("cluster.cli.scheduler", "cluster.daemon.scheduler", "cluster.cli.worker", "cluster.daemon.agent")
PICKLES = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "_pickle"}

# The base install runs without these; only the floors that are about them may import them when they are loaded.
HEAVY = {"numpy", "pandas", "pyarrow", "matplotlib"}
ABOUT_HEAVY = ("cluster.array", "cluster.dataframe")

# module -> (what it imports inside a function, why it cannot stand at the top)
IMPORTS_INSIDE_FUNCTIONS: dict[str, dict[str, str]] = {
    "cluster.certificate": dict.fromkeys(
        [
            "cryptography",
            "cryptography.hazmat.primitives",
            "cryptography.hazmat.primitives.asymmetric",
            "cryptography.x509.oid",
        ],
        "10 MB and 0.1 s for what a machine does once a year",
    ),
    "cluster.transport.blocking": dict.fromkeys(
        ["cluster.transport.blocking_encryption", "ssl"],
        "a twentieth of what a client loads, for connections beyond the machine",
    ),
    "cluster.transport.interfaces": {"psutil": "only a scheduler that listens at all addresses needs it"},
}


def floor(name: str) -> int:
    return FLOORS[name.split(".")[1]]


def below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def modules_below(*packages: str) -> list[Module]:
    return [module for module in product() if below(module.name, packages)]


def test_every_module_stands_on_a_known_floor() -> None:
    unknown = [m.path for m in product() if m.name != "cluster" and m.name.split(".")[1] not in FLOORS]
    assert not unknown, f"say in FLOORS where these belong: {unknown}"


def test_imports_go_down_the_floors_only() -> None:
    upward = []
    for module in product():
        if module.name == "cluster":
            continue  # the root gathers the public names, and may name every floor
        for imported in imported_modules(module) - {"cluster"}:
            sibling = imported.split(".")[1] != module.name.split(".")[1]
            same_floor_apart = floor(imported) == floor(module.name) and sibling and floor(module.name) > 0
            if floor(imported) > floor(module.name) or same_floor_apart:
                upward.append(f"{module.name} imports {imported}")
    assert not upward


def test_no_module_imports_in_a_circle() -> None:
    graph = {module.name: imported_modules(module, types_too=False) - {module.name} for module in product()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_nothing_imports_the_root_package() -> None:
    # It would load every floor, and make a circle of the first import.
    rooted = []
    for module in product():
        for statement in imports(module):
            names = {f"cluster.{name}" for name in statement.names}
            if statement.module == "cluster" and not (names and names <= {other.name for other in product()}):
                rooted.append(f"{module.path}:{statement.line}")
            assert not statement.module.startswith("."), f"{module.path}:{statement.line}: write the whole name"
    assert not rooted


def test_imports_stand_at_the_top_of_the_file() -> None:
    hidden = []
    for module in product():
        allowed = IMPORTS_INSIDE_FUNCTIONS.get(module.name, {})
        for statement in imports(module):
            if statement.in_function and statement.module not in allowed:
                hidden.append(f"{module.path}:{statement.line}: {statement.module}")
    assert not hidden, f"move these up, or list them here with the reason: {hidden}"


def test_listed_imports_inside_functions_still_exist() -> None:
    by_name = {module.name: module for module in product()}
    for name, allowed in IMPORTS_INSIDE_FUNCTIONS.items():
        present = {statement.module for statement in imports(by_name[name]) if statement.in_function}
        assert set(allowed) <= present, f"{name} no longer imports {set(allowed) - present} inside a function"


def test_pure_floors_do_not_touch_the_world() -> None:
    touched = []
    for module in modules_below(*PURE):
        for statement in imports(module):
            if statement.module.split(".")[0] in IMPURE_MODULES and not statement.for_types_only:
                touched.append(f"{module.path}:{statement.line}: import {statement.module}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                touched.append(f"{module.path}:{node.lineno}: {node.func.id}()")
            if (
                isinstance(node, ast.Attribute)
                and ast.unparse(node.value) == "sys"
                and node.attr not in CONSTANTS_OF_SYS
            ):
                touched.append(f"{module.path}:{node.lineno}: sys.{node.attr}")
            if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                touched.append(f"{module.path}:{node.lineno}: asynchronous code")
    assert not touched


def test_pure_floors_never_follow_the_order_of_a_set() -> None:
    # A set's order differs from process to process, and a replayed simulation would take another path.
    loops = []
    for module in modules_below(*PURE):
        for node in ast.walk(module.tree):
            looped = node.iter if isinstance(node, ast.For | ast.comprehension) else None
            made_here = isinstance(looped, ast.Set | ast.SetComp) or (
                isinstance(looped, ast.Call)
                and isinstance(looped.func, ast.Name)
                and looped.func.id in {"set", "frozenset"}
            )
            if looped is not None and made_here:
                loops.append(f"{module.path}:{looped.lineno}")
    assert not loops


def test_the_wire_opens_no_socket() -> None:
    opened = [
        f"{module.path}:{statement.line}: import {statement.module}"
        for module in modules_below("cluster.wire")
        for statement in imports(module)
        if statement.module.split(".")[0] in WIRE_FORBIDDEN
    ]
    assert not opened


def test_scheduler_and_agent_load_nothing_that_unpickles() -> None:
    by_name = {module.name: module for module in product()}
    reached = {
        name for name in by_name if below(name, NEVER_UNPICKLE) or below(name, ("cluster.scheduler", "cluster.worker"))
    }
    waiting = list(reached)
    while waiting:
        for imported in imported_modules(by_name[waiting.pop()], types_too=False) - reached - {"cluster"}:
            reached.add(imported)
            waiting.append(imported)
    unpicklers = [
        f"{name} imports {statement.module}"
        for name in sorted(reached)
        for statement in imports(by_name[name])
        if statement.module.split(".")[0] in PICKLES
    ]
    assert not unpicklers


def test_the_base_install_needs_no_array_or_dataframe_package() -> None:
    heavy = [
        f"{module.path}:{statement.line}: {statement.module}"
        for module in product()
        if not below(module.name, ABOUT_HEAVY)
        for statement in imports(module)
        if statement.module.split(".")[0] in HEAVY and not statement.in_function and not statement.for_types_only
    ]
    assert not heavy
