"""Which small values the agent's machine sends to disk, how they come back, and what becomes of their packs."""

from __future__ import annotations

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import OWN_ADDRESS, AgentModel, grant
from tests.pure.test_agent_memory import heartbeat

KIB = 1 << 10
LIMIT = 1 << 20
SIZE = 10 * KIB


def value(attempt: int, row: int) -> bytes:
    return (b"%d %d " % (attempt, row)).ljust(SIZE, b".")


def make(model: AgentModel, attempt: int, rows: int, first_row: int = 0) -> None:
    """Tasks of one grant make small values."""
    model.tell(grant(attempt, rows, first_row=first_row))
    while model.slots[0].pipe:
        sequence = model.slots[0].claim()
        give, index = model.slots[0].tasks[sequence]
        row = give.context[1] + index
        model.report(0, [0.00001, value(attempt, row)])


def use(model: AgentModel, attempt: int, made: int, *rows: int) -> None:
    """A task that takes small values is granted."""
    values = [[row, made, SIZE, [OWN_ADDRESS]] for row in rows]
    model.tell(grant(attempt, 1, first_row=1000, values=values, needs=[list(range(len(rows)))]))


def full_model(**options: int | str) -> AgentModel:
    """A worker of 1 MiB with 90 values of 10 KiB, all of one grant: the first of them are being written."""
    model = AgentModel(slots=1, limit_bytes=LIMIT, **options)  # type: ignore[arg-type]
    make(model, 1, 90)
    assert len(model.pack_writes) == 1
    return model


def packed_model(**options: int | str) -> AgentModel:
    model = full_model(**options)
    model.write_pack()
    assert not model.pack_writes
    return model


def packed_rows(model: AgentModel, attempt: int = 1) -> list[int]:
    """The rows of an attempt that are only on disk."""
    values = model.agent.supply.values
    return [row for row in range(100) if values.is_packed(attempt << 32 | row)]


def figures(model: AgentModel) -> tuple[int, int, int, int]:
    found = heartbeat(model)
    return found["small_bytes"], found["disk_bytes"], found["spilled_bytes"], found["spilling_bytes"]


# --------------------------------------------------------------------------- to disk


def test_the_oldest_small_values_are_written_together_and_leave_memory_when_they_are() -> None:
    model = full_model()
    (write,) = model.pack_writes
    assert isinstance(write, events.WritePack)
    count = len(write.values)
    assert 5 <= count <= 20 and write.values == [value(1, row) for row in range(count)]
    before, on_disk, stored, leaving = figures(model)
    assert (before % SIZE, on_disk, stored, leaving) == (0, 0, 0, count * SIZE)
    model.write_pack()
    assert figures(model) == (before - count * SIZE, count * SIZE, count * SIZE, 0)
    assert packed_rows(model) == list(range(count))
    assert heartbeat(model)["values"] == 90, "they are held as before"


def test_few_small_values_are_not_worth_a_file() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT)
    make(model, 1, 1)
    model.feed(events.Measured({"slot_bytes": LIMIT}, {}))
    assert not model.pack_writes


def test_a_value_that_was_used_goes_after_those_that_were_not() -> None:
    model = packed_model()
    first = packed_rows(model)[-1] + 1
    use(model, 5, 1, first)
    model.finish(0)
    make(model, 6, 20)
    write = model.write_pack()
    assert isinstance(write, events.WritePack)
    assert value(1, first + 1) in write.values
    assert value(1, first) not in write.values


def test_what_a_granted_task_needs_stays_in_memory() -> None:
    model = full_model()
    use(model, 5, 1, 0, 1)
    model.slots[0].claim()
    model.write_pack()
    assert packed_rows(model)[0] == 2
    assert model.slots[0].inputs() == [value(1, 0), value(1, 1)]
    model.finish(0)
    make(model, 7, 10)
    model.wait(1.0)
    assert packed_rows(model)[0] == 0, "its copy on disk is what is left"


def test_a_value_that_is_freed_while_it_is_written_is_gone() -> None:
    model = full_model()
    model.tell(messages.Free([1, 0, 3]))
    model.write_pack()
    assert packed_rows(model)[0] == 3
    model.tell(messages.Free([1, 3, 97]))
    assert not model.packs
    assert figures(model) == (0, 0, 0, 0)


def test_while_more_is_made_than_the_disk_takes_one_task_runs_at_a_time() -> None:
    model = full_model()
    make(model, 2, 20)
    assert model.agent.memory.fullness > 1.0
    model.tell(grant(3, 20))
    assert len(model.slots[0].pipe) == 1
    while model.pack_writes:
        model.write_pack()
    assert len(model.slots[0].pipe) > 1
    assert not heartbeat(model)["intake_paused"], "nobody has to be told of that"


# --------------------------------------------------------------------------- from disk


def test_a_task_gets_its_small_inputs_when_they_have_been_read_all_at_once() -> None:
    model = packed_model()
    use(model, 5, 1, 4, 2, 80)
    assert not model.slots[0].pipe
    (read,) = model.pack_reads
    assert (read.starts, read.sizes) == ([2 * SIZE, 4 * SIZE], [SIZE, SIZE])
    model.read_pack()
    model.slots[0].claim()
    assert model.slots[0].inputs() == [value(1, 4), value(1, 2), value(1, 80)]
    assert 2 not in packed_rows(model) and 4 not in packed_rows(model)
    use(model, 6, 1, 2)
    assert not model.pack_reads, "it is in memory"


def test_a_peer_gets_its_answers_in_order_and_what_is_read_for_it_does_not_stay() -> None:
    model = packed_model()
    before = figures(model)
    model.feed(events.FromPeer(1, messages.GetValues(1, [0, 1, 80, 1, 3, 1])))
    model.feed(events.FromPeer(1, messages.GetValues(2, [81, 1])))
    assert not model.to_peers
    model.read_pack()
    answers = [answer.message for answer in model.to_peers]
    assert [(answer.request, answer.row) for answer in answers] == [(1, 0), (1, 80), (1, 3), (2, 81)]
    assert [answer.data for answer in answers] == [value(1, row) for row in (0, 80, 3, 81)]
    assert figures(model) == before


def test_a_peer_is_read_more_when_it_has_taken_what_it_was_given() -> None:
    model = AgentModel(slots=1, limit_bytes=8 * LIMIT)
    for attempt in range(1, 8):
        make(model, attempt, 90)
    model.feed(events.Measured({"slot_bytes": 8 * LIMIT}, {}))
    while model.pack_writes:
        model.write_pack()
        model.wait(0.1)
    names = [name for attempt in range(1, 8) for row in packed_rows(model, attempt) for name in (row, attempt)]
    assert len(names) // 2 * SIZE > 5 << 20
    model.feed(events.FromPeer(1, messages.GetValues(1, names)))
    rounds = 0
    while model.pack_reads:
        assert sum(sum(read.sizes) for read in model.pack_reads) <= (2 << 20) + SIZE
        while model.pack_reads:
            model.read_pack()
        if model.asked_if_sent:
            assert model.asked_if_sent == [1]
            model.asked_if_sent.clear()
            model.feed(events.PeerSent(1, gone=False))
        rounds += 1
    assert rounds >= 3
    given = [name for answer in model.to_peers for name in (answer.message.row, answer.message.attempt)]
    assert given == names


def test_a_long_answer_is_given_in_steps_that_the_peer_takes() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(1, 1200))
    model.work()
    model.feed(events.FromPeer(1, messages.GetValues(1, [name for row in range(1200) for name in (row, 1)])))
    model.feed(events.FromPeer(2, messages.GetValues(1, [7, 1])))
    steps = []
    while model.asked_if_sent:
        assert model.asked_if_sent.pop() == 1
        steps.append(len(model.to_peers))
        model.feed(events.PeerSent(1, gone=False))
    assert len(steps) == 2 and steps[0] < 600 < steps[1]
    assert [answer.message.row for answer in model.to_peers if answer.peer == 1] == list(range(1200))


def test_nothing_is_read_for_a_peer_that_has_gone() -> None:
    model = packed_model()
    for _ in range(2):
        model.feed(events.FromPeer(1, messages.GetValues(1, [0, 1])))
    model.feed(events.PeerSent(1, gone=True))
    model.read_pack()
    assert not model.to_peers and not model.pack_reads


def test_a_damaged_small_value_is_a_lost_one() -> None:
    model = packed_model()
    model.sent.clear()
    use(model, 5, 1, 3)
    model.read_pack(damaged=True)
    lost = model.expect(messages.FetchFailed)
    assert (lost.row, lost.attempt, lost.address) == (3, 1, OWN_ADDRESS)
    failed = model.expect(messages.RunFailed)
    assert failed.kind == "missing"
    assert (failed.details["row"], failed.details["attempt"]) == (3, 1)
    assert "damaged" in model.said[0]
    model.feed(events.FromPeer(1, messages.GetValues(1, [3, 1])))
    assert isinstance(model.to_peers[-1].message, messages.ValueMissing)


def test_a_small_value_that_is_freed_while_it_is_read_is_missing() -> None:
    model = packed_model()
    use(model, 5, 1, 3)
    model.sent.clear()
    model.tell(messages.Free([1, 3, 1]))
    assert model.expect(messages.RunFailed).kind == "missing"
    model.read_pack()
    assert model.silent and 3 not in packed_rows(model)


# --------------------------------------------------------------------------- packs that have served


def test_a_pack_goes_with_its_last_value() -> None:
    model = packed_model()
    rows = packed_rows(model)
    model.tell(messages.Free([1, 0, len(rows) - 1]))
    assert model.packs
    model.tell(messages.Free([1, len(rows) - 1, 1]))
    assert not model.packs
    assert figures(model)[1:] == (0, 0, 0)


def mostly_gone(quota_bytes: int) -> tuple[AgentModel, list[int]]:
    """Two packs of which four values in five were freed, and the quota is near; the rows that are left."""
    model = packed_model(quota_bytes=quota_bytes)
    make(model, 1, 10, first_row=90)  # the same attempt again: it is ignored
    make(model, 2, 20)
    model.write_pack()
    rows = packed_rows(model)
    left = rows[::5]
    for row in rows:
        if row not in left:
            model.tell(messages.Free([1, row, 1]))
    model.wait(1.0)
    return model, left


def test_what_is_left_of_packs_is_written_into_one_when_the_quota_is_near() -> None:
    model, left = mostly_gone(quota_bytes=1 << 20)
    former = set(model.packs)
    assert len(former) == 2
    rewrite = model.pack_writes[0]
    assert isinstance(rewrite, events.RewritePacks)
    use(model, 5, 1, left[0])  # which is read from where it still is
    model.tell(messages.Free([1, left[1], 1]))
    model.write_pack()
    assert not former & set(model.packs)
    assert packed_rows(model) == [left[0], *left[2:]]
    stored = len(left) * SIZE
    assert figures(model)[1:3] == (stored - SIZE, stored)
    read = model.pack_reads.pop(0)
    model.feed(events.PackRead(read.request, [None], "it is gone"))
    model.read_pack()
    model.slots[0].claim()
    assert model.slots[0].inputs() == [value(1, left[0])]


def test_packs_stay_as_they_are_while_there_is_room() -> None:
    model, _ = mostly_gone(quota_bytes=0)
    assert not model.pack_writes


def test_packs_that_are_damaged_are_not_written_anew_for_ever() -> None:
    model, left = mostly_gone(quota_bytes=1 << 20)
    rewrite = model.pack_writes.pop(0)
    model.feed(events.PackFailed(rewrite.pack, "/disk", 0, "its checksum differs", damaged=True))
    model.wait(5.0)
    assert not model.pack_writes and packed_rows(model) == left
    assert not model.agent.spilling.problem


# --------------------------------------------------------------------------- the disk is full


def test_when_the_disk_takes_no_pack_values_stay_and_it_is_tried_again() -> None:
    model = full_model()
    make(model, 2, 20)
    while model.pack_writes:
        model.feed(events.PackFailed(model.pack_writes.pop(0).pack, "/disk", 5 << 20, "5 MiB are left"))
    assert "/disk has no room for spilled values (5.00 MiB free)" in model.said[0]
    found = heartbeat(model)
    assert found["intake_paused"] and "/disk" in found["spill_problem"]
    assert (found["small_bytes"], found["spilling_bytes"]) == (110 * SIZE, 0)
    model.wait(3.0)
    while model.pack_writes:
        model.write_pack()
    assert not heartbeat(model)["intake_paused"]
    assert packed_rows(model)


def test_a_quota_is_kept_by_packs_too() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT, quota_bytes=12 * SIZE)
    make(model, 1, 100)
    while model.pack_writes:
        model.write_pack()
    assert 0 < heartbeat(model)["spilled_bytes"] <= 12 * SIZE
    assert "quota" in model.said[0]


def test_a_smaller_pack_is_written_when_the_quota_has_no_room_for_all_that_should_go() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT, quota_bytes=12 * SIZE)
    make(model, 1, 50)
    assert not model.pack_writes
    model.feed(events.Measured({"slot_bytes": LIMIT}, {}))
    (write,) = model.pack_writes
    assert isinstance(write, events.WritePack) and len(write.values) == 12
    assert not model.said, "nothing has failed"
    model.write_pack()
    assert packed_rows(model) == list(range(12))
    model.wait(0.1)
    assert not model.pack_writes
    assert "quota" in model.said[0]


def test_what_is_left_of_the_quota_is_no_pack_if_that_would_free_next_to_nothing() -> None:
    model = AgentModel(slots=1, limit_bytes=LIMIT, quota_bytes=SIZE)
    make(model, 1, 50)
    model.feed(events.Measured({"slot_bytes": LIMIT}, {}))
    assert not model.pack_writes
    assert "quota" in model.said[0]
