"""A task's transitions, their reasons and their times, as far as they are known.

What happens to every task is read off the table, with the times that stand there anyway; what happens to few comes from
the history. Nothing is kept for this of a plain task.
"""

from __future__ import annotations

from typing import Any

from cluster.scheduler.explain import Whereabouts
from cluster.scheduler.history import EVENTS_KEPT
from cluster.scheduler.ledger import Ledger
from cluster.scheduler.table import FAILED, FINISHED, GRANTED, READY, RELEASED, WAITING, Run

__all__ = ["story"]

EVENTS_SHOWN = 200


def story(ledger: Ledger, row: int, now: float, where: Whereabouts | None = None) -> dict[str, Any]:
    """The story of a row in use, as it goes to a client: entries with `ago` (seconds; None: not known), what, why."""
    run = ledger.run(row)
    what = "offered" if run.offered else "submitted"
    entries = [_entry(now, run.submitted_at, what, f"by client {run.client.name}")]
    past = ledger.history.of(row, run.identity)
    cut = f" the first {len(past) - EVENTS_SHOWN} of its own are left out." if len(past) > EVENTS_SHOWN else ""
    entries += [_entry(now, event.at, event.what, event.why) for event in past[-EVENTS_SHOWN:]]
    entries += _present(ledger, row, run, now, where)
    lost = "" if ledger.history.is_complete else " Older ones have been forgotten by now."
    not_kept = (
        "not kept: when a run without trouble became ready, started and ended; of losses, repetitions, recalls and "
        f"retries the latest {EVENTS_KEPT:,} of all tasks are kept.{lost}{cut}"
    )
    return {"key": ledger.key(row), "entries": entries, "not_kept": not_kept}


def _present(ledger: Ledger, row: int, run: Run, now: float, told: Whereabouts | None) -> list[dict[str, Any]]:
    table = ledger.table
    state, attempt = table.state[row], table.attempt[row]
    if state == WAITING:
        turn = "for its inputs" if table.waiting[row] else "for its turn at its actor"
        return [_entry(now, None, "waiting", turn)]
    if state == READY:
        return [_entry(now, None, "ready", "all its inputs have values")]
    if state == GRANTED:
        worker = ledger.workers[table.holder[row]]
        grant = worker.grants[attempt]
        why = f"to worker {worker.name} at {worker.address}, as attempt {attempt}"
        entries = [_entry(now, grant.granted_at, "granted", why)]
        where = None if told is None or (told.row, told.attempt) != (row, attempt) else told.found
        if where is not None and where["where"] == "slot" and where["ahead"] == 0:
            entries.append(_entry(now, now - where["seconds"], "started", f"in slot {where['slot']}"))
        return entries
    if state == FAILED:
        failure = ledger.failures[row]
        why = f"{failure.kind}: {failure.details.get('message', '')}"
        if failure.row != row:
            why = f"{failure.details.get('key', 'an input')} failed first: {why}"
        return [_entry(now, failure.at, "failed", why[:500])]
    if run.offered:
        return []
    names = ", ".join(ledger.workers[index].name for index in table.holders(row))
    entries = [_entry(now, None, "finished", f"as attempt {attempt}" + (f"; its value is at {names}" if names else ""))]
    if state == RELEASED:
        return [_entry(now, None, "released", "nobody needs its value; it can be run again")]
    assert state == FINISHED
    return entries


def _entry(now: float, at: float | None, what: str, why: str) -> dict[str, Any]:
    return {"ago": None if at is None else max(0.0, now - at), "what": what, "why": why}
