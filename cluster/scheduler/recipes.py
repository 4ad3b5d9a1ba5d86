"""What a task was made of, for a client that wants to run it in its own process."""

from __future__ import annotations

from typing import Any

from cluster.scheduler.clients import ClientRecord
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.questions import Questions
from cluster.scheduler.table import NO_RECIPE

__all__ = ["Recipes"]


RECIPE_LIMIT_BYTES = 12 << 20
"""An answer has to fit a frame."""
BYTES_AN_INPUT = 256
"""At most so much is said of one: its client, number and label."""


class Recipes:
    """Answers the query "recipe", whose detail is a number of the asking client.

    The answer names the function's bytes, the packed arguments, whether they have keywords, and for each input the
    client and the number under which it was submitted: the asker takes numbers of its own for them, which holds them,
    and has them computed again where they are gone.
    """

    def __init__(self, ledger: Ledger, questions: Questions) -> None:
        self._ledger = ledger
        self._questions = questions
        questions.register("recipe", self._answer)

    def _answer(self, now: float, client: ClientRecord, request: int, detail: Any) -> None:
        ledger, table = self._ledger, self._ledger.table
        row = client.row(detail) if type(detail) is int else -1
        run = None if row < 0 else table.run_of[row]
        if run is None:
            self._questions.answer(client, request, error="the scheduler does not have this task any more")
            return
        if run.offered or run.function is None:
            self._questions.answer(client, request, error="its value was sent by a client; no function made it")
            return
        if table.flags[row] & NO_RECIPE:
            self._questions.answer(client, request, error="the recipe of an input was given up (lineage bound)")
            return
        place = row - run.start
        blob = run.blob if run.offsets is None else run.blob[run.offsets[place] : run.offsets[place + 1]]
        sources = self._inputs(row)
        if len(run.function.blob) + len(blob) + BYTES_AN_INPUT * len(sources) > RECIPE_LIMIT_BYTES:
            self._questions.answer(client, request, error="its function, arguments and inputs are too large to be told")
            return
        inputs = []
        for source in sources:
            source_run = ledger.run(source)
            inputs.append([source_run.client.identity, ledger.number(source), source_run.label])
        result = {
            "function": run.function.blob,
            "arguments": bytes(blob),
            "keywords": bool(run.arguments),
            "label": run.label,
            "inputs": inputs,
        }
        self._questions.answer(client, request, result)

    def _inputs(self, row: int) -> list[int]:
        table = self._ledger.table
        sources = list(table.inputs_of(row))
        if len(sources) == 1 and self._ledger.run(sources[0]).is_join:
            return list(table.inputs_of(sources[0]))
        return sources
