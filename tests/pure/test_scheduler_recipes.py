"""The query "recipe": what a task was made of."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.scheduler import recipes
from cluster.wire import messages
from tests.pure.dialogue import ClientSide, Dialogue


def ask(client: ClientSide, number: Any) -> messages.Answer:
    client.say(messages.Query(1, "recipe", number))
    return client.hear(messages.Answer)


def test_function_arguments_and_inputs_are_told() -> None:
    dialogue = Dialogue()
    client = dialogue.client()
    first = client.submit(2)
    last = client.submit(function="g", inputs=[[first + 1, first]], argument=b"packed")
    answer = ask(client, last)
    assert answer.error == ""
    assert answer.result == {
        "function": b"code of g",
        "arguments": b"packed",
        "keywords": False,
        "label": "g",
        "inputs": [[client.client_id, first + 1, "f"], [client.client_id, first, "f"]],
    }


def test_shared_inputs_are_told_one_by_one() -> None:
    dialogue = Dialogue()
    client = dialogue.client()
    first = client.submit(5)
    last = client.submit(3, shared=list(range(first, first + 5)))
    told = ask(client, last + 2).result["inputs"]
    assert [number for _, number, _ in told] == list(range(first, first + 5))


def test_anothers_task_is_told_by_the_askers_number() -> None:
    dialogue = Dialogue()
    client, other = dialogue.client("one"), dialogue.client("two")
    number = other.alias(client, client.submit(argument=b"packed"))
    assert ask(other, number).result["arguments"] == b"packed"


def test_what_is_not_there_offered_or_no_number_is_refused() -> None:
    dialogue = Dialogue()
    client = dialogue.client()
    number = client.submit()
    client.release(number)
    assert "any more" in ask(client, number).error
    assert "any more" in ask(client, "x").error
    assert "any more" in ask(client, None).error
    assert "no function" in ask(client, client.offer([8])).error


def test_what_fits_no_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPE_LIMIT_BYTES", 100)
    dialogue = Dialogue()
    client = dialogue.client()
    assert "too large" in ask(client, client.submit(argument=bytes(100))).error
