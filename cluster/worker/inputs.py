"""What the tasks that slots have are given: packed for the slot, and known as long as the slot has the tasks."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.worker.queue import Assignment, Stretch
from cluster.worker.values import Segment, Values, value_key

if TYPE_CHECKING:
    from cluster.worker.workforce import Workforce

__all__ = ["GoneInput", "PackedInputs", "keys_in_slots", "keys_taken", "pack_inputs"]


class GoneInput(NamedTuple):
    """The name of an input that is not held any more."""

    row: int
    attempt: int


class PackedInputs(NamedTuple):
    """Inputs as `GiveTasks` names them."""

    starts: bytes
    inputs: bytes
    values: list[Any]


def pack_inputs(
    assignment: Assignment, first: int, count: int, held: Values, used: Callable[[int], None]
) -> PackedInputs | GoneInput:
    """The inputs of some tasks as a table and indices into it; `used` is called with the keys of segments."""
    place: dict[int, int] = {}
    values: list[Any] = []
    starts, inputs = array("I", (0,)), array("I")
    # What all tasks take is listed once.
    for task in range(first, first + count) if assignment.input_starts else (first,):
        for need in assignment.takes(task):
            position = place.get(need)
            if position is None:
                row, attempt = assignment.values[need][:2]
                value = held.get(value_key(attempt, row))
                if value is None:
                    return GoneInput(row, attempt)
                position = place[need] = len(values)
                if isinstance(value, Segment):
                    used(value_key(attempt, row))
                    values.append([value.path, value.nbytes])
                else:
                    if held.keeps_order:
                        held.used_small(value_key(attempt, row))
                    values.append(value)
            inputs.append(position)
        starts.append(len(inputs))
    return PackedInputs(starts.tobytes() if assignment.input_starts else b"", inputs.tobytes(), values)


def keys_in_slots(workforce: Workforce) -> set[int]:
    """The keys of what all tasks take that a process has, or that are to go to one process and no other.

    The files of these values must stay where they are.
    """
    return {key for stretch in _stretches(workforce) for key in keys_taken(*stretch)}


def keys_taken(assignment: Assignment, first: int, count: int) -> Iterator[int]:
    """The keys of what these tasks are given, some of them more than once."""
    for task in range(first, first + count) if assignment.input_starts else (first,):
        for need in assignment.takes(task):
            row, attempt = assignment.values[need][:2]
            yield value_key(attempt, row)


def _stretches(workforce: Workforce) -> Iterator[Stretch]:
    for slot in workforce.processes:
        for piece in slot.pieces:
            yield piece.assignment, piece.index, piece.count
        for frame in slot.stack:
            yield frame.assignment, frame.index, 1
    yield from workforce.actors.calls()
    yield from workforce.coroutines.stretches()
