"""A task's exception reaches its caller as its own class where it can, and readable where it cannot."""

from __future__ import annotations

import copyreg
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from cluster.errors import RemoteError, StoreFull, TaskDied
from cluster.wire.exceptions import TEXT_LIMIT_BYTES, dump_exception, load_exception
from cluster.wire.payload import loads


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def there_and_back(error: BaseException) -> BaseException:
    return load_exception(*dump_exception(raised(error)))


class NeedsTwo(Exception):
    def __init__(self, code: int, place: str) -> None:
        super().__init__(f"code {code} at {place}")
        self.code = code
        self.place = place


class RewritesItsText(Exception):
    def __init__(self, code: object) -> None:
        super().__init__(f"failed with {code}")


class Unreadable(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__("ascii", data, 1, 2, "no letter")


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class SpeaksOfItsLock(HoldsALock):
    def __str__(self) -> str:
        return f"{self.args[0]}: {'locked' if self.lock.locked() else 'unlocked'}"


class HoldsItsData(Exception):
    def __init__(self, data: Any, text: str) -> None:
        super().__init__(text)
        self.data = data


class TextFails(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class NoAttributes(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        KeyError("key"),
        OSError(2, "No such file", "path"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        SystemExit(3),
        KeyboardInterrupt(),
        StopIteration(5),
        NeedsTwo(3, "here"),
        RewritesItsText(7),
        TaskDied("died", signal=11, attempts=3, last_lines=("a", "b")),
        StoreFull("full"),
        ImportError("no module", name="missing"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_as_its_own_class(error: BaseException) -> None:
    back = there_and_back(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    own = {name: value for name, value in vars(back).items() if name != "__notes__"}
    assert own == {name: value for name, value in vars(error).items() if name != "__notes__"}


def test_a_class_whose_init_needs_other_arguments_keeps_its_attributes() -> None:
    back = there_and_back(NeedsTwo(3, "here"))
    assert isinstance(back, NeedsTwo)
    assert (back.code, back.place) == (3, "here")


def test_a_class_whose_text_is_made_of_more_than_its_arguments_keeps_it() -> None:
    # What stands there is kept by the built-in class beside `args`, and set by its `__init__` alone.
    error = there_and_back(Unreadable(b"a\xe9"))
    assert type(error) is Unreadable
    assert str(error) == "'ascii' codec can't decode byte 0xe9 in position 1: no letter"


def test_a_class_that_exists_only_here_travels_by_value() -> None:
    class Local(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one}+{two}")
            self.one = one

    back = there_and_back(Local(1, 2))
    assert type(back).__name__ == "Local"
    assert str(back) == "1+2"
    assert back.one == 1  # type: ignore[attr-defined]


def test_notes_and_the_remote_traceback_are_notes() -> None:
    error = ValueError("x")
    error.add_note("the user's own note")
    back = there_and_back(error)
    assert back.__notes__[0] == "the user's own note"
    assert back.__notes__[1].startswith("Remote traceback:\nTraceback (most recent call last)")
    assert "test_payload_exceptions.py" in back.__notes__[1]


def test_what_an_exception_was_raised_from_comes_along() -> None:
    try:
        try:
            try:
                raise KeyError("deepest")
            except KeyError:
                raise NeedsTwo(1, "context")  # noqa: B904
        except NeedsTwo as error:
            raise ValueError("outer") from error
    except ValueError as error:
        data, details = dump_exception(error)
    back = load_exception(data, details)
    assert isinstance(back.__cause__, NeedsTwo)
    assert isinstance(back.__cause__.__context__, KeyError)
    assert details["cause"].endswith("NeedsTwo: code 1 at context")
    for text in ("deepest", "direct cause", "During handling"):
        assert text in details["traceback"]


def test_a_cause_that_cannot_travel_is_there_by_its_text() -> None:
    try:
        try:
            raise SpeaksOfItsLock("inner")
        except SpeaksOfItsLock as error:
            raise ValueError("outer") from error
    except ValueError as error:
        back = load_exception(*dump_exception(error))
    assert type(back) is ValueError
    assert isinstance(back.__cause__, RemoteError)
    assert back.__cause__.text == "inner: unlocked"
    assert "inner" in back.__notes__[0]


def test_exceptions_that_caused_each_other_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert str(load_exception(*dump_exception(one))) == "one"


def test_a_group_comes_back_with_its_members() -> None:
    group = ExceptionGroup("several", [ValueError("a"), NeedsTwo(1, "b"), HoldsALock("c")])
    back = there_and_back(ExceptionGroup("outer", [group]))
    assert isinstance(back, ExceptionGroup)
    assert isinstance(back.exceptions[0], ExceptionGroup)
    one, two, three = back.exceptions[0].exceptions
    assert isinstance(two, NeedsTwo)
    assert [str(one), str(two)] == ["a", "code 1 at b"]
    assert isinstance(three, HoldsALock)
    assert str(three) == "c"


@pytest.mark.parametrize(
    ("error", "left_out"),
    [
        (HoldsALock("has a lock"), ".lock (lock)"),
        (HoldsItsData(np.zeros(1_000_000), "beside it"), ".data (ndarray)"),
        (ValueError(np.zeros(1_000_000)), "args[0] (ndarray)"),
        (ValueError(b"x" * (2 << 20)), "args[0] (bytes)"),
        (KeyError("k" * (2 << 20)), "args[0] (str)"),
        (LookupError(np.zeros(1_000_000), 5, threading.Lock), "args[0] (ndarray)"),
        (RuntimeError(threading.Lock()), "args[0] (lock)"),
    ],
)
def test_what_is_large_or_cannot_be_pickled_is_left_out_and_the_class_stays(error: Exception, left_out: str) -> None:
    data, details = dump_exception(raised(error))
    assert 0 < len(data) < 20_000
    back = load_exception(data, details)
    assert type(back) is type(error)
    assert str(back)[:300] == str(error)[:300]
    assert f"left out on its way here: {left_out}" in back.__notes__
    assert "Traceback" in back.__notes__[-1]
    assert load_exception(*dump_exception(back)).__notes__[0] == back.__notes__[0]


def test_a_group_with_a_large_member_comes_back_with_it() -> None:
    back = there_and_back(ExceptionGroup("g", [HoldsItsData(np.zeros(1_000_000), "large"), TypeError("small")]))
    assert isinstance(back, ExceptionGroup)
    assert [type(each) for each in back.exceptions] == [HoldsItsData, TypeError]


@pytest.mark.parametrize("error", [SpeaksOfItsLock("it is"), ValueError("a", b"x" * (2 << 20))], ids=["lock", "huge"])
def test_what_cannot_travel_comes_back_readable(error: Exception) -> None:
    data, details = dump_exception(raised(error))
    assert data == b""
    assert len(details["message"]) <= 8192
    back = load_exception(data, details)
    assert isinstance(back, RemoteError)
    assert back.type_name.endswith(type(error).__name__)
    assert type(error).__name__ in str(back)
    assert "Traceback" in back.traceback_text
    assert "Traceback" in back.__notes__[0]


def test_an_exception_whose_text_fails_is_reported_all_the_same() -> None:
    _, details = dump_exception(raised(TextFails()))
    assert "ValueError" in details["message"]
    assert "TextFails" in details["traceback"]


def test_an_exception_that_takes_no_notes_comes_back_readable() -> None:
    data, details = dump_exception(raised(NoAttributes("stubborn")))
    back = load_exception(data, details)
    assert isinstance(back, (NoAttributes, RemoteError))
    assert "stubborn" in str(back)


def test_a_class_that_is_missing_here_comes_back_readable(tmp_path: Any) -> None:
    (tmp_path / "only_there.py").write_text("class Theirs(Exception):\n    pass\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import only_there\n"
        "from cluster.wire.exceptions import dump_exception\n"
        "try:\n    raise only_there.Theirs('from there')\n"
        "except Exception as error:\n    data, details = dump_exception(error)\n"
        "sys.stdout.write(repr((data, details)))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    data, details = eval(output)
    assert data
    back = load_exception(data, details)
    assert isinstance(back, RemoteError)
    assert back.type_name == "only_there.Theirs"
    assert back.text == "from there"


def test_bytes_that_are_no_exception_come_back_readable() -> None:
    details = {"type": "ValueError", "message": "m", "traceback": "t"}
    for data in (b"garbage", b"\x80\x05N.", b"\x80\x05]."):
        assert isinstance(load_exception(data, details), RemoteError)


class _Fails:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_our_own_frames_are_left_out_and_the_users_come_first() -> None:
    from cluster.wire.payload import dumps

    data = dumps(_Fails()).to_bytes()
    try:
        loads(data)
    except ValueError as error:
        _, details = dump_exception(error)
        _, unhidden = dump_exception(error, hide_frames_of=())
    assert "payload.py" not in details["traceback"].replace("test_payload", "")
    assert "cluster/wire/payload.py" in unhidden["traceback"]


def test_a_stack_of_only_our_own_frames_is_shown() -> None:
    namespace: dict[str, Any] = {"__name__": "cluster.inside"}
    exec(compile("def fail():\n    raise ValueError('ours')\n", "cluster/inside.py", "exec"), namespace)
    try:
        namespace["fail"]()
    except ValueError as error:
        assert error.__traceback__ is not None
        error = error.with_traceback(error.__traceback__.tb_next)
        _, details = dump_exception(error)
    assert "cluster/inside.py" in details["traceback"]


def test_a_huge_text_is_bounded_and_keeps_both_ends() -> None:
    _, details = dump_exception(raised(ValueError("begin" + "é" * 200_000 + "end")))
    assert len(details["traceback"].encode()) <= TEXT_LIMIT_BYTES
    assert "begin" in details["traceback"]
    assert details["traceback"].endswith("end")


def test_a_deep_recursion_is_short_text() -> None:
    def deeper(level: int) -> int:
        return deeper(level + 1)

    try:
        deeper(0)
    except RecursionError as error:
        data, details = dump_exception(error)
    assert type(load_exception(data, details)) is RecursionError
    assert "Previous line repeated" in details["traceback"]


def test_a_surrogate_in_the_text_can_be_sent() -> None:
    _, details = dump_exception(raised(ValueError("\udcff")))
    details["message"].encode()
    details["traceback"].encode()


def test_what_came_through_many_tasks_says_each_of_their_tracebacks_once() -> None:
    error: BaseException = ValueError("deep")
    for level in range(300):
        error = load_exception(*dump_exception(raised(error)))
        error.add_note(f"task number {level}")
    assert type(error) is ValueError
    notes = "\n".join(error.__notes__)
    assert len([note for note in error.__notes__ if note.startswith("Remote traceback:")]) == 1
    assert all(f"task number {level}" in notes for level in range(300))
    assert len(notes) < 2 * TEXT_LIMIT_BYTES


def test_what_a_library_makes_pickle_take_along_with_an_exception_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def reduce(error: KeyError) -> tuple[Any, ...]:
        taken.append((error.__traceback__, error.__cause__))  # as tblib does, which comes with Dask
        return KeyError, error.args

    monkeypatch.setitem(copyreg.dispatch_table, KeyError, reduce)
    try:
        raise KeyError("here") from ValueError("before")
    except KeyError as error:
        data, details = dump_exception(error)
        assert error.__traceback__ is not None
        assert isinstance(error.__cause__, ValueError)
    assert set(taken) == {(None, None)}
    loaded = load_exception(data, details)
    assert isinstance(loaded.__cause__, ValueError)
