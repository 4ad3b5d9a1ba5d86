"""Copies of large values: few at a time from each holder, the next from whoever has one by then; and copies that go."""

from __future__ import annotations

from cluster.wire import messages
from cluster.worker import events
from tests.pure.agent_model import AgentModel, grant
from tests.pure.dialogue import EPOCH, ClientSide, Dialogue, WorkerSide

LARGE = 100 << 20
A = "tcp://127.0.0.1:1001"


class Popular:
    """A large value at one of several workers, and its client."""

    def __init__(self, workers: int, nbytes: int = LARGE) -> None:
        self.dialogue = Dialogue()
        self.client = self.dialogue.client()
        self.workers = [self.dialogue.worker(f"w{index}", 1) for index in range(workers)]
        self.number = self.client.submit(function="make")
        [self.maker] = [worker for worker in self.workers if worker.inbox]
        self.others = [worker for worker in self.workers if worker is not self.maker]
        told = self.maker.grant()
        self.row, self.attempt = told.runs[0], told.attempt
        self.maker.done(told, nbytes=nbytes)
        self.client.finished()

    def use_everywhere(self) -> None:
        """One task on each of the others that takes the value."""
        for worker in self.others:
            self.client.submit(function="use", inputs=[[self.number]], workers=[worker.name])

    def held(self, worker: WorkerSide) -> None:
        worker.say(messages.Held(EPOCH, [self.row, self.attempt, LARGE]))

    def named(self, worker: WorkerSide) -> list[str]:
        """From whom the worker's next message says to fetch the value."""
        if isinstance(worker.inbox[0], messages.Fetch):
            [[row, attempt, nbytes, addresses]] = worker.hear(messages.Fetch).values
        else:
            [[row, attempt, nbytes, addresses]] = worker.grant().values
        assert (row, attempt, nbytes) == (self.row, self.attempt, LARGE)
        assert isinstance(addresses, list)
        return addresses

    def replicate(self) -> None:
        detail = {"numbers": [self.number, 1], "count": 0, "workers": []}
        self.client.say(messages.Query(9, "replicate", detail))


def test_two_fetch_a_popular_value_and_the_others_wait_for_their_turn() -> None:
    popular = Popular(6)
    popular.use_everywhere()
    named = [popular.named(worker) for worker in popular.others]
    assert named == [[popular.maker.address]] * 2 + [[]] * 3


def test_whoever_has_it_gives_it_to_the_next() -> None:
    popular = Popular(8)
    popular.use_everywhere()
    for worker in popular.others:
        popular.named(worker)
    first, second, *others = popular.others
    popular.held(first)
    # The maker may give one more, and the new holder two.
    assert [popular.named(worker)[0] for worker in others[:3]] == [first.address, popular.maker.address, first.address]
    popular.held(second)
    # The maker has given another, and the newest holder has given none.
    assert {popular.named(worker)[0] for worker in others[3:]} == {second.address, popular.maker.address}
    for worker in others:
        popular.held(worker)
    assert not popular.dialogue.ledger.spreads


def test_a_fetch_that_fails_makes_room_for_the_next() -> None:
    popular = Popular(4)
    popular.use_everywhere()
    for worker in popular.others:
        popular.named(worker)
    first, _, third = popular.others
    first.say(messages.FetchFailed(EPOCH, popular.row, popular.attempt, popular.maker.address, "no room"))
    assert popular.named(third) == [popular.maker.address]


def test_a_worker_that_is_lost_makes_room_for_the_next() -> None:
    popular = Popular(4)
    popular.use_everywhere()
    for worker in popular.others:
        popular.named(worker)
    popular.others[0].disconnect()
    assert popular.named(popular.others[2]) == [popular.maker.address]


def test_who_waits_for_a_value_that_is_lost_is_told_to_give_up() -> None:
    popular = Popular(4)
    popular.use_everywhere()
    for worker in popular.others:
        popular.named(worker)
    popular.maker.disconnect()
    popular.client.reset(popular.number)
    for worker in popular.others:
        assert (popular.attempt, popular.row) in worker.freed()
    assert not popular.dialogue.ledger.spreads


def test_small_values_are_fetched_by_whoever_likes() -> None:
    popular = Popular(6, 1000)
    for worker in popular.others:
        popular.client.submit(function="use", inputs=[[popular.number]], workers=[worker.name])
    assert [worker.grant().values[0][3] for worker in popular.others] == [[popular.maker.address]] * 5


def test_replicate_goes_as_a_tree() -> None:
    popular = Popular(5)
    popular.replicate()
    assert [popular.named(worker) for worker in popular.others[:2]] == [[popular.maker.address]] * 2
    assert not popular.others[2].inbox and not popular.others[3].inbox
    popular.held(popular.others[0])
    assert [bool(worker.inbox) for worker in popular.others] == [False, False, True, True]
    for worker in popular.others[1:]:
        popular.held(worker)
    assert popular.client.hear(messages.Answer).result == [4, []]


def test_a_value_that_is_released_while_it_is_copied_leaves_nobody_waiting() -> None:
    popular = Popular(5)
    popular.replicate()
    popular.client.release(popular.number)
    answer = popular.client.hear(messages.Answer)
    made, errors = answer.result
    assert made == 4 and len(errors) == 4 and "released" in errors[0]
    assert not popular.dialogue.ledger.copying
    for worker in popular.workers:
        worker.inbox.clear()


# --------------------------------------------------------------------------- a client that broadcasts


def broadcast(workers: int) -> tuple[Dialogue, ClientSide, list[WorkerSide], messages.Push]:
    dialogue = Dialogue()
    client = dialogue.client()
    sides = [dialogue.worker(f"w{index}") for index in range(workers)]
    first = client.offer([LARGE], "broadcast")
    client.say(messages.Query(5, "scattered", [first, 1, []]))
    return dialogue, client, sides, client.hear(messages.Push)


def test_a_broadcast_is_pushed_once_and_spreads_from_there() -> None:
    dialogue, client, sides, push = broadcast(4)
    assert push.address == sides[0].address
    client.hears_nothing()
    value = [push.row, push.attempt, LARGE]
    sides[0].say(messages.Held(EPOCH, value))
    for side in sides[1:3]:
        assert side.hear(messages.Fetch).values == [[*value, [sides[0].address]]]
    client.hears_nothing()
    for side in sides[1:]:
        side.say(messages.Held(EPOCH, value))
    sides[3].inbox.clear()
    assert client.hear(messages.Answer).request == 5
    assert not dialogue.ledger.spreads


def test_a_broadcast_goes_on_with_the_next_worker_when_the_first_is_lost() -> None:
    _, client, sides, push = broadcast(3)
    sides[0].disconnect()
    assert client.hear(messages.Push).address == sides[1].address
    sides[1].say(messages.Held(EPOCH, [push.row, push.attempt, LARGE]))
    assert sides[2].hear(messages.Fetch).values[0][3] == [sides[1].address]


def test_a_task_is_granted_where_a_broadcast_is_on_its_way_and_nothing_is_sent_twice() -> None:
    _, client, sides, push = broadcast(2)
    client.submit(function="use", inputs=[[0]], workers=[sides[1].name])
    assert sides[1].grant().values[0][3] == []
    client.hears_nothing()
    sides[0].say(messages.Held(EPOCH, [push.row, push.attempt, LARGE]))
    assert sides[1].hear(messages.Fetch).values[0][3] == [sides[0].address]


def test_a_copy_is_pushed_by_the_client_when_the_last_holder_has_just_been_lost() -> None:
    dialogue = Dialogue()
    client = dialogue.client()
    sides = [dialogue.worker(f"w{index}") for index in range(2)]
    number = client.offer([LARGE], "workers")
    push = client.hear(messages.Push)
    sides[0].say(messages.Held(EPOCH, [push.row, push.attempt, LARGE]))
    scheduler = dialogue.scheduler
    first, second = dialogue.ledger.workers.values()
    scheduler.losses.gone(first, "it is gone")  # what it held is looked at later
    scheduler.copies.copy(push.row, second, lambda error: None)
    client.say(messages.Query(1, "ping", None))
    assert client.hear(messages.Push) == messages.Push(number, push.row, push.attempt, sides[1].address)
    client.inbox.clear()


# --------------------------------------------------------------------------- copies that go


def test_a_copy_may_go_while_another_is_left() -> None:
    popular = Popular(3)
    popular.replicate()
    for worker in popular.others:
        popular.named(worker)
        popular.held(worker)
    popular.client.hear(messages.Answer)
    names = [popular.row, popular.attempt]
    for worker in popular.workers:
        worker.say(messages.DropReplicas(EPOCH, names))
    answers = [worker.hear(messages.DropAllowed) for worker in popular.workers]
    assert [answer.allowed for answer in answers] == [names, names, []], "the last one stays"
    assert popular.dialogue.ledger.table.holders(popular.row) == [2]


def test_a_copy_that_is_being_given_to_somebody_stays() -> None:
    popular = Popular(3)
    popular.replicate()
    for worker in popular.others:
        popular.named(worker)
    popular.held(popular.others[0])
    popular.maker.say(messages.DropReplicas(EPOCH, [popular.row, popular.attempt]))
    assert popular.maker.hear(messages.DropAllowed).allowed == []


def test_a_copy_stays_when_the_only_other_holder_is_to_go() -> None:
    popular = Popular(2)
    [other] = popular.others
    popular.replicate()
    popular.named(other)
    popular.held(other)
    names = [popular.row, popular.attempt]
    popular.maker.say(messages.Draining(EPOCH))
    other.say(messages.DropReplicas(EPOCH, names))
    assert other.hear(messages.DropAllowed).allowed == [], "it may have been given away because that one goes"
    popular.maker.say(messages.DropReplicas(EPOCH, names))
    assert popular.maker.hear(messages.DropAllowed).allowed == names


def test_what_is_not_a_value_of_that_worker_may_not_be_asked_about() -> None:
    popular = Popular(2)
    [other] = popular.others
    other.say(messages.DropReplicas(EPOCH, [popular.row, popular.attempt, 12345, 1, popular.row, 99]))
    assert other.hear(messages.DropAllowed).allowed == []


def with_copies(*rows: int) -> AgentModel:
    model = AgentModel(slots=1)
    for row in rows:
        model.tell(messages.Fetch([[row, 1, 100, [A]]]))
        model.feed(events.ValueFetched(A, row, 1, 100, b"x" * 100, ""))
        model.expect(messages.Held)
    return model


def short(model: AgentModel, nbytes: int) -> list[int]:
    model.agent.supply.replicas.let_go(nbytes)
    model.feed(events.Tick())
    return model.expect(messages.DropReplicas).values


def test_the_copies_that_were_needed_longest_ago_go_first_and_no_more_than_needed() -> None:
    model = with_copies(1, 2, 3)
    model.tell(grant(2, 1, values=[[1, 1, 100, []]], needs=[[0]]))
    model.work()
    model.wait(0.01)
    model.expect(messages.Done)
    assert short(model, 101) == [2, 1, 3, 1]
    assert short(model, 101) == [1, 1], "what was asked is not asked again"
    model.tell(messages.DropAllowed([2, 1, 3, 1], [2, 1]))
    assert 1 << 32 | 2 not in model.agent.supply.values
    assert 1 << 32 | 3 in model.agent.supply.values
    assert short(model, 1) == [3, 1], "it was answered"


def test_what_a_granted_task_needs_is_not_offered_to_go() -> None:
    model = with_copies(1)
    model.tell(grant(2, 1, values=[[1, 1, 100, []]], needs=[[0]]))
    model.agent.supply.replicas.let_go(1)
    model.feed(events.Tick())
    assert model.silent
    assert model.agent.supply.replicas.droppable_bytes == 0


def test_a_copy_that_a_task_needs_after_all_is_kept_and_said() -> None:
    model = with_copies(1)
    assert short(model, 1) == [1, 1]
    model.tell(grant(2, 1, values=[[1, 1, 100, []]], needs=[[0]]))
    model.tell(messages.DropAllowed([1, 1], [1, 1]))
    assert model.expect(messages.Held).values == [1, 1, 100]
    assert model.work() == 1


def test_copies_that_the_scheduler_wants_kept_hold_up_no_other_remedy() -> None:
    model = AgentModel(slots=1, limit_bytes=LARGE)
    model.feed(events.ValuePut(4, 5, 1, LARGE * 8 // 10, model.new_segment()))
    for _ in range(2):
        model.wait(0.1)
        model.feed(events.Measured({"slot_bytes": LARGE * 3 // 10}, {}))
        if not model.spills:
            asked = [message for message in model.sent if isinstance(message, messages.DropReplicas)]
            model.tell(messages.DropAllowed(asked[-1].values, []))
    assert [spill.key >> 32 for spill in model.spills] == [1]


def test_a_copy_that_is_damaged_on_disk_is_no_copy_any_more() -> None:
    model = AgentModel(slots=1, limit_bytes=LARGE)
    model.feed(events.ValuePut(4, 5, 1, LARGE // 2, model.new_segment()))
    model.feed(events.Measured({"slot_bytes": LARGE}, {}))
    model.tell(messages.DropAllowed([5, 1], []))
    model.wait(0.1)
    model.feed(events.Measured({"slot_bytes": LARGE}, {}))
    model.spill()
    model.feed(events.FromPeer(9, messages.GetPiece(5, 1, 0, 100)))
    (check,) = model.checks
    model.feed(events.SpilledChecked(check.key, check.path, check.path, "its checksum differs"))
    assert len(model.agent.supply.replicas) == 0


def test_what_was_made_here_is_no_copy() -> None:
    model = AgentModel(slots=1)
    model.tell(grant(2, 1))
    model.work()
    assert len(model.agent.supply.replicas) == 0
