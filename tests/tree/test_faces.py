"""Both faces of the client are one implementation, and a type checker sees both as they are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.tree.sources import ROOT, product

USER = """
from __future__ import annotations

from typing import Any

from cluster import AsyncClient, AsyncFuture, AsyncLock, AsyncQueue, Client, Future, as_completed, wait


async def on_asyncio() -> None:
    client = await Client("tcp://127.0.0.1:1", asynchronous=True)
    async with AsyncClient("tcp://127.0.0.1:1") as other:
        reveal_type(client)
        reveal_type(other)
        future = client.submit(abs, -1)
        reveal_type(future)
        reveal_type(client.map(abs, [1])[0])
        reveal_type(client.options(priority=1).submit(abs, 1))
        held: dict[str, list[str]] = await client.who_has(future)
        value: Any = await future
        error: BaseException | None = await future.exception()
        outcome = await wait([future])
        reveal_type(outcome.done)
        async with AsyncLock("x", client) as lock:
            free: bool = not await lock.locked()
            await AsyncQueue("q").put(free)
        async for each in as_completed(client.map(abs, [1])):
            print(each, held, value, error)


def blocking() -> None:
    with Client("tcp://127.0.0.1:1") as client:
        reveal_type(client)
        future: Future = client.submit(abs, -1)
        held: dict[str, list[str]] = client.who_has(future)
        outcome = wait(client.map(abs, [1]))
        reveal_type(outcome.done)
        print(held, [each for each in as_completed([future])])
"""


def test_all_that_waits_is_declared_for_the_asyncio_face_too() -> None:
    waiting, declared = set(), set()
    for module in product():
        if not module.name.startswith("cluster.client."):
            continue
        for node in module.tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            for member in ast.walk(node):
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    if node.name == "AsyncClient":
                        declared.add(member.name)
                    elif node.name == "Client" or "ClientCore" in map(ast.unparse, node.bases):
                        called = {ast.unparse(call.func) for call in ast.walk(member) if isinstance(call, ast.Call)}
                        if called & {"self._complete", "self._complete_for"}:
                            waiting.add(member.name)
    assert {"gather", "scatter", "who_has"} <= waiting
    missing = waiting - declared - {"_begin"}
    assert not missing, f"declare what these give on the asyncio face, in cluster/client/asynchronous.py: {missing}"


def test_all_that_named_objects_wait_for_is_declared_for_the_asyncio_face_too() -> None:
    modules = {module.name: module for module in product()}
    waiting: dict[str, set[str]] = {}
    for node in modules["cluster.client.named"].tree.body:
        if isinstance(node, ast.ClassDef):
            found = waiting[node.name] = set().union(*(waiting.get(ast.unparse(base), set()) for base in node.bases))
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and "self._do(" in ast.unparse(member):
                    found.add(member.name)
    declared = {
        node.name: {
            member.name for member in ast.walk(node) if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for node in modules["cluster.client.named_async"].tree.body
        if isinstance(node, ast.ClassDef)
    }
    assert {"acquire", "release", "locked", "owner"} <= waiting["Lock"]
    missing = {name: waiting[name.removeprefix("Async")] - declared[name] for name in declared}
    assert not any(missing.values()), f"declare these in cluster/client/named_async.py: {missing}"


def test_a_type_checker_sees_what_each_face_gives(tmp_path: Path) -> None:
    program = tmp_path / "user.py"
    program.write_text(USER, encoding="utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(program)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    lines = [line for line in checked.stdout.splitlines() if "Revealed type" in line]
    revealed = [line.split('"')[1].replace("cluster.client.", "").replace("builtins.", "") for line in lines]
    assert revealed == [
        "asynchronous.AsyncClient",
        "asynchronous.AsyncClient",
        "asynchronous.AsyncFuture",
        "asynchronous.AsyncFuture",
        "asynchronous.AsyncFuture",
        "set[asynchronous.AsyncFuture]",
        "client.Client",
        "set[future.Future]",
    ]
