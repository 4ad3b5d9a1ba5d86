"""What is decided about large values on their way between agents: pieces, damage, lanes, and what is kept of them."""

from __future__ import annotations

from cluster.wire import messages
from cluster.wire.checksums import NO_CHECKSUM, checksum
from cluster.worker import events
from cluster.worker.pieces import PIECE_BYTES, PIECE_LIMIT_BYTES, PIECES_AHEAD, IncomingValue
from tests.pure.agent_model import AgentModel, grant
from tests.pure.dialogue import EPOCH, Dialogue

A, B = "tcp://127.0.0.1:1001", "tcp://127.0.0.1:1002"
LARGE = 40 << 20


# --------------------------------------------------------------------------- pieces


def answer(request: messages.GetPiece, data: bytes = b"data") -> messages.ValuePiece:
    return messages.ValuePiece(*request, checksum(data))


def test_pieces_cover_the_value_and_are_asked_for_ahead_but_not_all_at_once() -> None:
    incoming = IncomingValue(5, 1, 20 * PIECE_BYTES + 3)
    asked = incoming.requests()
    assert len(asked) == PIECES_AHEAD
    assert not incoming.requests()
    while not incoming.complete:
        piece = answer(asked[incoming.arrived_bytes // PIECE_BYTES])
        assert incoming.is_next(piece)
        assert incoming.came(piece, checksum(b"data"))
        asked += incoming.requests()
    assert [request.offset for request in asked] == list(range(0, incoming.nbytes, PIECE_BYTES))
    assert sum(request.nbytes for request in asked) == incoming.nbytes
    assert asked[-1].nbytes == 3


def test_only_the_piece_that_is_due_is_taken() -> None:
    incoming = IncomingValue(5, 1, 3 * PIECE_BYTES)
    assert not incoming.is_next(messages.ValuePiece(5, 1, 0, PIECE_BYTES, 0)), "nothing was asked for"
    first, second, _ = incoming.requests()
    assert incoming.is_next(answer(first))
    assert not incoming.is_next(answer(second))
    for change in ({"row": 6}, {"attempt": 2}, {"offset": 1}, {"nbytes": 1 << 50}):
        assert not incoming.is_next(answer(first)._replace(**change))
    assert not incoming.is_next(messages.ValueStream(0, 5, 1, PIECE_BYTES))


def test_a_damaged_piece_is_asked_for_again_and_no_other() -> None:
    incoming = IncomingValue(5, 1, 3 * PIECE_BYTES)
    first, second, _ = incoming.requests()
    assert incoming.came(answer(first), checksum(b"data"))
    assert not incoming.came(answer(second), checksum(b"dada"))
    assert incoming.arrived_bytes == PIECE_BYTES
    incoming.begin()
    assert [request.offset for request in incoming.requests()] == [PIECE_BYTES, 2 * PIECE_BYTES]


def test_where_the_connection_protects_it_a_piece_needs_no_checksum() -> None:
    incoming = IncomingValue(5, 1, PIECE_BYTES)
    [request] = incoming.requests()
    assert incoming.came(messages.ValuePiece(*request, NO_CHECKSUM), 0)
    assert incoming.complete


# --------------------------------------------------------------------------- the agent that fetches


def wanting(*addresses: str, nbytes: int = LARGE) -> AgentModel:
    model = AgentModel(slots=1)
    model.tell(grant(2, 1, values=[[5, 1, nbytes, list(addresses)]], needs=[[0]]))
    return model


def damaged(model: AgentModel, address: str) -> None:
    model.feed(events.ValueNotFetched(address, 5, 1, "another checksum", "damaged"))


def test_a_damaged_value_is_fetched_from_another_holder_and_said() -> None:
    model = wanting(A, B)
    damaged(model, A)
    assert [fetch.address for fetch in model.fetches] == [A, B]
    said = model.expect(messages.ValueDamaged)
    assert (said.row, said.attempt, said.address) == (5, 1, A)
    assert A in model.said[0]
    model.feed(events.ValueFetched(B, 5, 1, LARGE, b"", model.new_segment()))
    assert model.work() == 1


def test_the_only_holder_is_asked_again_until_that_was_too_often() -> None:
    model = wanting(A)
    for _ in range(3):
        damaged(model, A)
        model.expect(messages.ValueDamaged)
    assert [fetch.address for fetch in model.fetches] == [A, A, A]
    model.expect(messages.FetchFailed)
    failed = model.expect(messages.RunFailed)
    assert (failed.kind, failed.details["address"]) == ("missing", A)
    assert model.given_up == [events.GiveUpFetch(5, 1)]


def test_no_room_fails_the_task_and_blames_no_holder() -> None:
    model = wanting(A, B)
    model.feed(events.ValueNotFetched(A, 5, 1, "the store is full", "full"))
    assert [fetch.address for fetch in model.fetches] == [A]
    model.expect(messages.FetchFailed)
    failed = model.expect(messages.RunFailed)
    assert (failed.kind, failed.details["address"]) == ("full", "")
    assert "no room for an input of 40.0 MiB" in failed.details["message"]
    assert "the store is full" in failed.details["message"]


def test_a_value_that_is_freed_on_its_way_is_given_up() -> None:
    model = wanting(A)
    model.tell(messages.Free([1, 5, 1]))
    assert model.given_up == [events.GiveUpFetch(5, 1)]
    model.expect(messages.FetchFailed)
    assert model.expect(messages.RunFailed).kind == "missing"


def test_a_value_that_a_client_pushed_meanwhile_is_fetched_no_more() -> None:
    model = wanting(A)
    model.feed(events.ValuePut(4, 5, 1, LARGE, model.new_segment()))
    assert model.given_up == [events.GiveUpFetch(5, 1)]
    assert model.work() == 1


def test_a_value_that_has_come_is_not_given_up() -> None:
    model = wanting(A)
    model.feed(events.ValueFetched(A, 5, 1, LARGE, b"", model.new_segment()))
    model.tell(messages.Free([1, 5, 1]))
    assert not model.given_up


def test_small_values_do_not_wait_behind_a_large_one() -> None:
    model = AgentModel(slots=1)
    values = [[0, 1, 1 << 40, [A]], [1, 1, 1 << 40, [A]], *([row, 1, 100, [A]] for row in range(2, 20))]
    model.tell(grant(2, 20, values=values, needs=[[place] for place in range(20)]))
    asked = [row for fetch in model.fetches for row in fetch.values[::3]]
    assert asked == [0, *range(2, 20)]


# --------------------------------------------------------------------------- the agent that is asked


def holding(nbytes: int = LARGE) -> tuple[AgentModel, str]:
    model = AgentModel()
    path = model.new_segment()
    model.feed(events.ValuePut(4, 5, 1, nbytes, path))
    model.to_peers.clear()
    return model, path


def test_pieces_are_served_from_the_segment() -> None:
    model, path = holding()
    model.feed(events.FromPeer(9, messages.GetPiece(5, 1, 4096, 100)))
    assert model.to_peers == [events.ServePiece(9, 5, 1, 4096, 100, path)]


def test_what_the_value_does_not_have_is_missing() -> None:
    model, _ = holding()
    questions = [
        messages.GetPiece(5, 1, LARGE - 10, 11),
        messages.GetPiece(5, 1, -1, 10),
        messages.GetPiece(5, 1, 0, 0),
        messages.GetPiece(5, 1, 0, -1),
        messages.GetPiece(5, 1, 0, PIECE_LIMIT_BYTES + 1),
        messages.GetPiece(6, 1, 0, 1),
        messages.GetPiece(5, 2, 0, 1),
    ]
    for question in questions:
        model.feed(events.FromPeer(9, question))
        missing = events.ToPeer(9, messages.ValueMissing(0, question.row, question.attempt))
        assert model.to_peers[-1] == missing


def test_a_value_that_was_freed_half_way_is_missing() -> None:
    model, _ = holding()
    model.feed(events.FromPeer(9, messages.GetPiece(5, 1, 0, 100)))
    model.tell(messages.Free([1, 5, 1]))
    model.feed(events.FromPeer(9, messages.GetPiece(5, 1, 100, 100)))
    assert model.to_peers[-1] == events.ToPeer(9, messages.ValueMissing(0, 5, 1))


# --------------------------------------------------------------------------- the scheduler


def test_damage_is_an_event_that_names_both_ends() -> None:
    dialogue = Dialogue()
    client = dialogue.client()
    one, two = dialogue.worker("one"), dialogue.worker("two")
    client.submit(function="make")
    holder, other = (one, two) if one.inbox else (two, one)
    told = holder.grant()
    holder.done(told, nbytes=LARGE)
    client.finished()
    other.say(messages.ValueDamaged(EPOCH, told.runs[0], told.attempt, holder.address))
    other.say(messages.ValueDamaged(EPOCH, 12345, 1, "tcp://127.0.0.1:9"))
    known, unknown = (event for event in dialogue.ledger.events.after(0) if event.kind == "value_damaged")
    assert known.subject == other.name
    assert holder.address in known.text and other.address in known.text and "make" in known.text
    assert "nobody needs" in unknown.text
