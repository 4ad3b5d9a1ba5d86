"""What locks say of who has a segment open: recycling rests on it."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import textwrap
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.errors import ValueLost
from cluster.storage.maps import map_segment, map_to_write
from cluster.storage.openings import is_open_elsewhere, locks_tell, open_segment

BYTES = 64 * 1024


@pytest.fixture
def path(own_shared_memory: Path) -> Path:
    return own_shared_memory / "segment"


@pytest.fixture
def owner(path: Path) -> Iterator[int]:
    """An owner's opening of a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(descriptor, BYTES)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def own_shared_memory(surroundings: object) -> Iterator[Path]:
    directory = Path(os.environ["CLUSTER__SHARED_MEMORY_DIRECTORY"])
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    tells = locks_tell(descriptor)
    os.close(descriptor)
    if not tells:
        pytest.skip("no such locks here, so nothing is recycled")
    yield directory
    (directory / "segment").unlink(missing_ok=True)


def test_the_probe_leaves_nothing(own_shared_memory: Path) -> None:
    assert list(own_shared_memory.iterdir()) == []


def test_any_other_opening_is_seen(owner: int, path: Path) -> None:
    assert not is_open_elsewhere(owner)
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        other = open_segment(str(path), flags)
        assert is_open_elsewhere(owner)
        os.close(other)
        assert not is_open_elsewhere(owner)


def test_a_private_map_is_seen_until_its_last_view_dies(owner: int, path: Path) -> None:
    view = map_segment(str(path), BYTES)  # which closes its descriptor
    assert is_open_elsewhere(owner)
    part = view[100:200]
    del view
    assert is_open_elsewhere(owner)
    del part
    assert not is_open_elsewhere(owner)


def test_a_map_of_the_first_bytes_is_seen(owner: int, path: Path) -> None:
    view = map_segment(str(path), 10)
    assert is_open_elsewhere(owner)
    del view


def test_a_map_is_seen_after_the_file_was_renamed_and_removed(owner: int, path: Path) -> None:
    view = map_segment(str(path), BYTES)
    renamed = path.with_name("renamed")
    path.rename(renamed)
    assert is_open_elsewhere(owner)
    renamed.unlink()
    assert is_open_elsewhere(owner)
    del view
    assert not is_open_elsewhere(owner)


def test_a_map_that_only_a_forked_child_still_has_is_seen(owner: int, path: Path) -> None:
    view = map_segment(str(path), BYTES)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # returns when the parent closes its end
        os._exit(0)
    os.close(read)
    del view
    assert is_open_elsewhere(owner)
    os.close(write)
    os.waitpid(child, 0)
    assert not is_open_elsewhere(owner)


def test_the_owners_opening_and_all_that_is_made_of_it_do_not_count(owner: int) -> None:
    duplicate = os.dup(owner)
    mapped = map_to_write(owner, BYTES)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    assert not is_open_elsewhere(owner)
    os.close(duplicate)
    os.close(read)
    os.close(write)
    os.waitpid(child, 0)
    mapped[0] = 1
    assert os.pread(owner, 1, 0) == b"\1"


def test_a_descriptor_that_was_passed_to_another_process_and_mapped_there_does_not_count(owner: int) -> None:
    ours, theirs = socket.socketpair()
    program = textwrap.dedent(f"""
        import mmap, os, socket, sys
        from cluster.storage.maps import map_to_write
        connected = socket.socket(fileno=int(sys.argv[1]))
        _, [descriptor], _, _ = socket.recv_fds(connected, 1, 1)
        mapped = map_to_write(descriptor, 2 * {BYTES})
        os.close(descriptor)
        mapped[5] = 17
        connected.send(b".")
        connected.recv(1)
        mapped[6] = 18
        connected.send(b".")
    """)
    command = [sys.executable, "-c", program, str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process, ours, theirs:
        socket.send_fds(ours, [b"."], [owner])
        assert not is_open_elsewhere(owner), "while it travels"
        assert ours.recv(1) == b"."
        assert not is_open_elsewhere(owner)
        assert os.pread(owner, 1, 5) == bytes([17])
        # The owner can give the pages back, and reserve others, under the other's map.
        os.ftruncate(owner, 0)
        os.posix_fallocate(owner, 0, BYTES)
        ours.send(b".")
        assert ours.recv(1) == b"."
        assert os.pread(owner, 7, 0) == bytes([0] * 6 + [18])
        assert process.wait(10) == 0


def test_a_child_does_not_have_what_is_mapped_to_write(owner: int) -> None:
    mapped = map_to_write(owner, BYTES)
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        mapped[0] = 9  # ends it
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert mapped[0] == 0


def test_a_reader_waits_for_an_owner_who_is_just_asking(owner: int, path: Path) -> None:
    """Both have what they want, however often they meet."""
    program = textwrap.dedent(f"""
        import os
        from cluster.storage.openings import open_segment
        print(flush=True)
        for _ in range(20_000):
            os.close(open_segment({str(path)!r}))
    """)
    seen = {True: 0, False: 0}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as opener:
        assert opener.stdout is not None
        opener.stdout.readline()
        while opener.poll() is None:
            seen[is_open_elsewhere(owner)] += 1
        assert opener.returncode == 0
    assert seen[True]
    assert seen[False]
    assert not is_open_elsewhere(owner)


def test_pages_that_sendfile_has_queued_are_no_map_and_change_with_the_file(owner: int, path: Path) -> None:
    """Why a segment that was served by `sendfile` is never used again."""
    os.pwrite(owner, b"a" * BYTES, 0)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            reader = open_segment(str(path))
            sent = os.sendfile(sender.fileno(), reader, 0, BYTES)
            os.close(reader)
            assert not is_open_elsewhere(owner)
            os.pwrite(owner, b"b" * BYTES, 0)
            got = receiver.recv(sent, socket.MSG_WAITALL)
    assert b"b" in got


def test_whoever_opened_it_before_it_was_renamed_is_seen_and_who_opens_it_later_fails(owner: int, path: Path) -> None:
    """Readers race with an owner who renames and then asks: never may both think that they have it."""
    names = [str(path), f"{path}-free"]
    program = textwrap.dedent(f"""
        import sys
        from cluster.errors import ValueLost
        from cluster.storage.maps import map_segment
        mapped = lost = 0
        print(flush=True)
        while mapped + lost < 20_000:
            try:
                view = map_segment({names[0]!r}, 8)
            except ValueLost:
                lost += 1
                continue
            # While the reader has it mapped, the owner must not write.
            first = bytes(view)
            for _ in range(10):
                assert bytes(view) == first
            mapped += 1
            del view
        print(mapped, lost, flush=True)
    """)
    written = 0
    mapped = map_to_write(owner, BYTES)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        while reader.poll() is None:
            os.rename(names[0], names[1])
            if not is_open_elsewhere(owner):
                written += 1
                mapped[:8] = array("Q", [written]).tobytes()
            os.rename(names[1], names[0])
        assert reader.returncode == 0
        counts = reader.stdout.read().split()
    assert written > 100
    assert all(int(count) > 100 for count in counts)


def without_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def test_where_there_are_no_locks_files_can_be_opened_and_the_probe_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        monkeypatch.setattr("cluster.storage.openings.fcntl.flock", without_locks)
        assert not locks_tell(descriptor)
        assert bytes(map_segment(str(tmp_path / "file"), 5)) == b"12345"
        (tmp_path / "file").unlink()
        assert list(tmp_path.iterdir()) == []
    finally:
        os.close(descriptor)


def test_a_kernel_that_does_not_see_maps_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for blind in (lambda _: False, lambda _: True):
            monkeypatch.setattr("cluster.storage.openings.is_open_elsewhere", blind)
            assert not locks_tell(descriptor)
    finally:
        os.close(descriptor)


def test_a_reader_that_has_opened_a_segment_looks_whether_it_still_has_its_name(
    owner: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader finds a file by its name before it has locked it; the owner may come in between."""

    def open_late(name: str, flags: int) -> int:
        descriptor = os.open(name, flags)
        path.rename(path.with_name("free"))
        return descriptor

    with monkeypatch.context() as patched, pytest.raises(ValueLost, match="is gone"):
        patched.setattr("cluster.storage.openings.os", SimpleNamespace(**{**vars(os), "open": open_late}))
        map_segment(str(path), BYTES)
    path.with_name("free").rename(path)
    assert not is_open_elsewhere(owner)
