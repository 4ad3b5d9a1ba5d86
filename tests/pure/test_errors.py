"""Exceptions travel between processes, so all of them must survive it."""

from __future__ import annotations

import concurrent.futures
import copy
import pickle

import pytest

from cluster import errors


def _example(name: str) -> errors.ClusterError:
    if name == "RemoteError":
        return errors.RemoteError("shop.OutOfStock", "no apples", "Traceback …")
    if name == "TaskDied":
        return errors.TaskDied("task f-1 died", signal=9, attempts=3, last_lines=("one", "two"))
    kind: type[errors.ClusterError] = getattr(errors, name)
    return kind("what happened, why, and what to do")


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_is_the_same_after_pickling(name: str) -> None:
    error = _example(name)
    error.add_note("task f-1 on worker w, attempt 2")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)
        assert twin.__notes__ == error.__notes__


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_can_be_caught_as_a_cluster_error_and_shows_its_message(name: str) -> None:
    error = _example(name)
    assert isinstance(error, errors.ClusterError)
    assert "Errno" not in str(error)
    assert str(error)


def test_errors_are_what_callers_of_the_standard_library_expect() -> None:
    assert issubclass(errors.TaskTimeout, TimeoutError)
    assert issubclass(errors.CancelledError, concurrent.futures.CancelledError)
    assert issubclass(errors.SerializationError, TypeError)
    assert issubclass(errors.StoreFull, OSError)
    assert issubclass(errors.ConnectionLost, ConnectionError)
    assert issubclass(errors.WrongSecret, errors.HandshakeFailed)
    assert issubclass(errors.VersionMismatch, errors.HandshakeFailed)
    assert issubclass(errors.AddressError, ValueError)


def test_the_tree_at_the_top_of_the_module_names_every_error() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert f" {name} " in errors.__doc__ or f"{name} " in errors.__doc__
