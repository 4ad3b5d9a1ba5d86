"""Orders to workers, from the scheduler's side and from the agent's."""

from __future__ import annotations

from typing import Any

from cluster.wire import messages
from cluster.worker.ledger import Ledger
from cluster.worker.orders import Orders
from tests.pure.dialogue import EPOCH, Dialogue


def test_an_order_is_answered_once_by_the_worker_that_got_it() -> None:
    dialogue = Dialogue()
    first, second = dialogue.worker("a"), dialogue.worker("b")
    orders = dialogue.scheduler.orders
    answers: list[tuple[str, Any]] = []
    orders.give(dialogue.scheduler.ledger.workers[0], "sing", {"key": 1}, lambda *answer: answers.append(answer))
    second.say(messages.Ordered(EPOCH, 1, "", "not mine"))
    order = first.hear(messages.Order)
    assert (order.what, order.detail) == ("sing", {"key": 1})
    assert answers == []
    first.say(messages.Ordered(EPOCH, order.request, "", "la"))
    first.say(messages.Ordered(EPOCH, order.request, "", "la"))
    assert answers == [("", "la")]


def test_a_lost_worker_answers_its_orders_with_an_error() -> None:
    dialogue = Dialogue()
    worker = dialogue.worker("a")
    answers: list[tuple[str, Any]] = []
    dialogue.scheduler.orders.give(
        dialogue.scheduler.ledger.workers[0], "sing", None, lambda *answer: answers.append(answer)
    )
    worker.disconnect()
    assert answers == [("worker a was lost before it answered", None)]


def test_an_agent_carries_an_order_out_once_and_refuses_what_it_does_not_know() -> None:
    ledger = Ledger()
    orders = Orders(ledger)
    orders.register("add", lambda request, detail: orders.answer(request, sum(detail)))
    for order in (messages.Order(1, "add", [1, 2]), messages.Order(1, "add", [1, 2]), messages.Order(2, "fly", None)):
        orders.take(order)
    answers = [effect.message for effect in ledger.effects]  # type: ignore[union-attr]
    assert [(answer.request, answer.result) for answer in answers] == [(1, 3), (2, None)]
    assert "fly" in answers[1].error
