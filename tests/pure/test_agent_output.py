"""What an agent keeps and sends on of what its tasks write: within bounds, in order, and before the task's end."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.wire import messages
from cluster.wire.task_output import CUT, LOG, RAW, STDERR, STDOUT, Piece
from cluster.worker import events, output
from tests.pure.agent_model import EPOCH, AgentModel, grant


def wrote(model: AgentModel, *pieces: Piece, slot: int = 0) -> None:
    model.feed(events.SlotWrote(slot, list(pieces), 50.0))


def logs(model: AgentModel, attempt: int, row: int, request: int = 1) -> tuple[list[Any], bool]:
    model.tell(messages.Order(request, "logs", [attempt, row]))
    answer = model.expect(messages.Ordered)
    assert (answer.request, answer.error) == (request, "")
    return answer.result[0], answer.result[1]


def running(attempt: int = 1, shown: bool = True) -> AgentModel:
    """An agent whose slot 0 runs row 0 of that attempt."""
    model = AgentModel(slots=1)
    model.tell(grant(attempt, 1, shown=shown))
    model.slots[0].claim()
    return model


def test_lines_are_gathered_and_leave_within_a_tenth_of_a_second() -> None:
    model = running()
    wrote(model, Piece(STDOUT, 1, 0, b"one\n"))
    wrote(model, Piece(STDERR, 1, 0, b"two\n"))
    assert model.silent
    model.wait(0.11)
    sent = model.expect(messages.Output)
    assert sent == (EPOCH, [[1, 0, [[STDOUT, 50.0, b"one\n"], [STDERR, 50.0, b"two\n"]]]])
    assert model.silent


def test_what_a_task_wrote_leaves_before_its_end() -> None:
    model = running()
    wrote(model, Piece(STDOUT, 1, 0, b"one\n"))
    model.finish(0)
    assert isinstance(model.expect(messages.Output), messages.Output)
    assert isinstance(model.expect(messages.Done), messages.Done)


def test_bytes_that_nothing_names_are_the_running_tasks() -> None:
    model = running()
    wrote(model, Piece(RAW, 0, 0, b"raw\n"))
    assert logs(model, 1, 0)[0] == [[RAW, 50.0, b"raw\n"]]
    idle = AgentModel(slots=1)
    wrote(idle, Piece(RAW, 0, 0, b"nobody's\n"))
    idle.wait(0.2)
    assert idle.silent


def test_a_client_that_does_not_look_costs_one_short_message() -> None:
    model = running(shown=False)
    for _ in range(100):
        wrote(model, Piece(STDOUT, 1, 0, b"line\n"))
    model.wait(1.0)
    assert model.expect(messages.Output).tasks == [[1, 0, []]]
    assert model.silent
    assert b"".join(data for _, _, data in logs(model, 1, 0)[0]) == b"line\n" * 100


def test_a_flood_keeps_both_ends_and_sends_on_as_much() -> None:
    model = running()
    chunk = b"0123456789abcde\n" * 4096  # 64 KiB
    sent = b""
    for number in range(200):
        wrote(model, Piece(STDOUT, 1, 0, b"%05d" % number + chunk[5:]))
    model.wait(0.2)
    while not model.silent:
        message = model.sent.popleft()
        if isinstance(message, messages.Output):
            sent += b"".join(data for _, _, data in message.tasks[0][2])
    half = output.RUN_LIMIT_BYTES // 2
    assert half - 2000 < len(sent) <= half
    model.finish(0)
    rest = model.expect(messages.Output).tasks[0][2]
    model.expect(messages.Done)
    kind, _, cut = rest[0]
    assert kind == CUT
    shown = len(sent) + sum(len(data) for kind, _, data in rest if kind != CUT)
    assert shown + int(cut) == 200 * len(chunk)
    kept, forgotten = logs(model, 1, 0)
    assert not forgotten
    assert sum(len(data) for _, _, data in kept) <= output.RUN_LIMIT_BYTES + 100
    assert kept[0][2].startswith(b"00000")
    assert kept[-1][2].endswith(chunk[-100:])


def test_no_character_is_cut_at_the_end_of_the_beginning() -> None:
    run = output.RunOutput(1, 0, True)
    [shown] = run.add(STDOUT, 1.0, "ü".encode() * 400_000)
    shown[2].decode()


def test_a_record_is_kept_whole_or_not_at_all() -> None:
    run = output.RunOutput(1, 0, True)
    for number in range(40):
        run.add(LOG, float(number), bytes([number]) * 60_000)
    kept = [*run.beginning, *run.rest()]
    assert {len(data) for kind, _, data in kept if kind == LOG} == {60_000}
    assert (kept[0][1], kept[-1][1]) == (0.0, 39.0)


def test_all_runs_together_are_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "TOTAL_LIMIT_BYTES", 100_000)
    model = AgentModel(slots=1)
    model.tell(grant(1, 20))
    for row in range(20):
        wrote(model, Piece(STDOUT, 1, row, b"x" * 10_000))
    while model.sent:
        model.sent.popleft()
    assert logs(model, 1, 0) == ([], True)
    assert logs(model, 1, 19, request=2)[0] != []
    assert model.agent.outputs._nbytes <= 100_000


def test_freed_values_take_their_lines_with_them() -> None:
    model = running()
    wrote(model, Piece(STDOUT, 1, 0, b"line\n"))
    model.finish(0)
    model.expect(messages.Output)
    model.expect(messages.Done)
    model.tell(messages.Free([1, 0, 1]))
    assert logs(model, 1, 0) == ([], False)
    assert model.agent.outputs._nbytes == 0


def test_the_dead_tasks_own_lines_come_along() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1))
    model.slots[0].claim()
    wrote(model, Piece(STDOUT, 1, 0, b"innocent\n"))
    model.finish(0)
    model.tell(grant(2, 1))
    model.slots[0].claim()
    wrote(model, Piece(STDERR, 2, 0, b"guilty\n"))
    del model.slots[0]
    model.feed(events.SlotExited(0, [], -1, 9, "", 5000, out_of_memory=True))
    failed = next(message for message in model.sent if isinstance(message, messages.RunFailed))
    assert failed.details["lines"] == "guilty\n"
    assert failed.details["out_of_memory_by"] == "kernel"
    assert failed.details["peak_memory_bytes"] == 5000
    assert "memory had run out" in failed.details["message"]
    kinds = [type(message) for message in model.sent]
    assert kinds.index(messages.RunFailed) > max(at for at, kind in enumerate(kinds) if kind is messages.Output)


def test_of_progress_the_latest_counts() -> None:
    model = running()
    for fraction in (0.1, 0.2, 0.3):
        model.feed(events.ProgressMade(1, 0, fraction, "on"))
    model.wait(0.2)
    assert model.expect(messages.Progress) == (EPOCH, 1, 0, 0.3, "on")
    assert model.silent
