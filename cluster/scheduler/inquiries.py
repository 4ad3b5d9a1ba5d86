"""Questions about one task, by its number or its key: "explain", "story" and "logs".

What the scheduler alone does not know (whether a granted task runs, or is queued) is asked of the task's agent, and the
answer waits for that, but not long. A key is looked up without an index: it names the client and the number, or else it
is a user's own and is searched for among the runs, in steps that do not hold the loop up.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.explain import Whereabouts, explain, forgotten, root_of
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.orders import Orders
from cluster.scheduler.output import Output
from cluster.scheduler.questions import Questions
from cluster.scheduler.story import story
from cluster.scheduler.table import FREE, GRANTED

__all__ = ["Inquiries"]

PATIENCE_SECONDS = 2.0  # with an agent that is asked; one that was silent for so long is not asked
TIMES_ASKED = 3  # a task may go from worker to worker meanwhile
RUNS_PER_STEP = 2048
KEY_CHARACTERS_SHOWN = 200

_MADE_KEY = re.compile(r".*-([0-9a-f]{8})-(\d{1,18})(?:\[(\d{1,18})\])?", re.DOTALL)


class Inquiry:
    """One question that is not answered yet."""

    __slots__ = ("asked", "asked_at", "asked_of", "client", "identity", "request", "row", "what")

    def __init__(self, client: ClientRecord, request: int, what: str) -> None:
        self.client = client
        self.request = request
        self.what = what
        self.row = -1
        self.identity = -1
        self.asked = 0
        self.asked_at = 0.0
        self.asked_of = (-1, -1)  # row, attempt


class Search:
    """A user's own key that is looked for."""

    def __init__(self, inquiry: Inquiry, key: str, clients: list[ClientRecord]) -> None:
        self.inquiry = inquiry
        self.key = key
        self.clients = deque(clients)
        self.number = -1  # of the present client, from which on its runs are to be looked at


class Inquiries:
    """Answers questions about single tasks."""

    def __init__(self, ledger: Ledger, questions: Questions, orders: Orders, output: Output) -> None:
        self.ledger = ledger
        self._questions = questions
        self._orders = orders
        self._output = output
        self._waiting: dict[Inquiry, None] = {}  # for an agent's word
        self._searches: deque[Search] = deque()
        questions.register("explain", self._explain)
        questions.register("story", self._story)
        questions.register("logs", self._logs)

    # ------------------------------------------------------------------ which task

    def _explain(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self._asked(Inquiry(client, request, "explain"), detail)

    def _story(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self._asked(Inquiry(client, request, "story"), detail)

    def _logs(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        self._asked(Inquiry(client, request, "logs"), detail)

    def _asked(self, inquiry: Inquiry, detail: Any) -> None:
        if isinstance(detail, int):
            row = inquiry.client.row(detail)
            if row < 0:
                self._answer_forgotten(inquiry, f"number {detail}")
            else:
                self._found(inquiry, row)
        elif isinstance(detail, dict) and isinstance(detail.get("key"), str):
            self._look_up(inquiry, detail["key"])
        else:
            error = f'{inquiry.what} takes a number or {{"key": KEY}}'
            self._questions.answer(inquiry.client, inquiry.request, error=error)

    def _look_up(self, inquiry: Inquiry, key: str) -> None:
        made = _MADE_KEY.fullmatch(key)
        if made is not None:
            token, number = made[1], int(made[2]) + int(made[3] or 0)
            for client in self.ledger.clients.values():
                row = client.row(number) if client.identity.hex().startswith(token) else -1
                if row >= 0 and self.ledger.key(row) == key:
                    self._found(inquiry, row)
                    return
        # The asking client's own come first: two may use the same key.
        others = [client for client in self.ledger.clients.values() if client is not inquiry.client]
        self._searches.append(Search(inquiry, key, [inquiry.client, *others]))
        self.search()

    @property
    def searching(self) -> bool:
        """Whether `search` has something to do."""
        return bool(self._searches)

    def search(self) -> None:
        """Look at some of the runs for users' own keys."""
        search = self._searches[0]
        client = search.clients[0]
        runs = client.runs_from(search.number, RUNS_PER_STEP)
        for run in runs:
            search.number = run.first_number + run.count
            if run.options.get("key") == search.key:
                state = self.ledger.table.state
                row = next(row for row in reversed(range(run.start, run.start + run.count)) if state[row] != FREE)
                self._searches.popleft()
                self._found(search.inquiry, row)
                return
        if len(runs) < RUNS_PER_STEP:
            search.clients.popleft()
            search.number = -1
        if not search.clients:
            self._searches.popleft()
            self._answer_forgotten(search.inquiry, search.key)

    def _answer_forgotten(self, inquiry: Inquiry, key: str) -> None:
        if inquiry.what == "explain":
            self._questions.answer(inquiry.client, inquiry.request, forgotten(key[:KEY_CHARACTERS_SHOWN]).answer())
            return
        if inquiry.what == "logs":
            shown = key[:KEY_CHARACTERS_SHOWN]
            why = "what a task wrote is kept only as long as somebody wants its value"
            error = f"the scheduler does not know the task {shown!r} (any more): {why}; `cluster tasks` lists keys"
            self._questions.answer(inquiry.client, inquiry.request, error=error)
            return
        why = "the scheduler does not know this task (any more), and keeps no story of what it has forgotten"
        self._questions.answer(
            inquiry.client, inquiry.request, {"key": key[:KEY_CHARACTERS_SHOWN], "entries": [], "not_kept": why}
        )

    # ------------------------------------------------------------------ what is to be said of it

    def _found(self, inquiry: Inquiry, row: int) -> None:
        inquiry.row = row
        inquiry.identity = self.ledger.run(row).identity
        if inquiry.what == "logs":
            self._answer_logs(inquiry, self.ledger.key(row))
        else:
            self._proceed(inquiry)

    def _answer_logs(self, inquiry: Inquiry, key: str) -> None:
        def gathered(runs: list[Any]) -> None:
            self._questions.answer(inquiry.client, inquiry.request, {"key": key, "runs": runs})

        self._output.gather(inquiry.row, gathered)

    def _proceed(self, inquiry: Inquiry) -> None:
        """Answer, or ask the agent of the task, or of the one that it waits for in the end."""
        ledger, table, now = self.ledger, self.ledger.table, self.ledger.now
        if self._is_forgotten(inquiry):
            self._answer_forgotten(inquiry, "the task")
            return
        root = root_of(ledger, inquiry.row) if inquiry.what == "explain" else inquiry.row
        if table.state[root] != GRANTED:
            self._answer(inquiry, None)
            return
        worker, attempt = ledger.workers[table.holder[root]], table.attempt[root]
        inquiry.asked_of = (root, attempt)
        inquiry.asked += 1
        inquiry.asked_at = now
        if now - worker.last_seen > PATIENCE_SECONDS:
            self._answer(inquiry, Whereabouts(root, attempt, None))
        elif inquiry.asked > TIMES_ASKED:
            self._answer(inquiry, Whereabouts(root, attempt, {"where": "gone"}))
        else:
            self._waiting[inquiry] = None
            self._orders.give(
                worker, "whereabouts", [attempt, root], lambda error, result: self._told(inquiry, error, result)
            )

    def _told(self, inquiry: Inquiry, error: str, result: Any) -> None:
        """An agent has answered, or is lost."""
        if inquiry not in self._waiting:
            return  # it took too long
        del self._waiting[inquiry]
        table = self.ledger.table
        root, attempt = inquiry.asked_of
        if error or self._is_forgotten(inquiry) or table.state[root] != GRANTED or table.attempt[root] != attempt:
            self._proceed(inquiry)
        else:
            self._answer(inquiry, Whereabouts(root, attempt, dict(result)))

    def watch(self, now: float) -> None:
        """Answer what an agent has been asked about for too long; called about once a second."""
        for inquiry in [known for known in self._waiting if now - known.asked_at > PATIENCE_SECONDS]:
            del self._waiting[inquiry]
            if self._is_forgotten(inquiry):
                self._answer_forgotten(inquiry, "the task")
            else:
                self._answer(inquiry, Whereabouts(*inquiry.asked_of, None))

    def _is_forgotten(self, inquiry: Inquiry) -> bool:
        """Whether the row was freed, perhaps for another task, since it was found."""
        table = self.ledger.table
        run = table.run_of[inquiry.row]
        return run is None or run.identity != inquiry.identity or table.state[inquiry.row] == FREE

    def _answer(self, inquiry: Inquiry, where: Whereabouts | None) -> None:
        ledger = self.ledger
        if inquiry.what == "explain":
            result = explain(ledger, inquiry.row, ledger.now, where).answer()
        else:
            result = story(ledger, inquiry.row, ledger.now, where)
        self._questions.answer(inquiry.client, inquiry.request, result)
