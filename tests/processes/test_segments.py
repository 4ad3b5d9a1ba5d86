"""Segments are files of a locked directory: nobody else enters it, and nobody's death leaves it behind."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import SettingError, StoreFull, ValueLost
from cluster.storage import segments
from cluster.storage.maps import map_segment
from cluster.storage.segments import SegmentDirectory, remove_if_dead, sweep, write_encoded
from cluster.wire.payload import dumps, loads

HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from cluster.storage.segments import SegmentDirectory
    directory = SegmentDirectory(Path(sys.argv[1]), "other")
    directory.create(100_000)
    print(directory.path, flush=True)
    sys.stdin.read()
    """
)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path


def base_of(parent: Path) -> Path:
    return parent / f"cluster-{os.getuid()}"


class OtherProcess:
    """A process that holds a segment directory until it is killed."""

    def __init__(self, parent: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.path = Path(self.process.stdout.readline().strip())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=10)


def stored(directory: SegmentDirectory, value: Any) -> tuple[str, int]:
    encoded = dumps(value)
    path = directory.create(encoded.nbytes)
    write_encoded(path, encoded)
    return path, encoded.nbytes


def test_a_value_written_and_mapped_comes_back_and_is_the_readers_own(parent: Path) -> None:
    with SegmentDirectory(parent, "agent") as directory:
        path, nbytes = stored(directory, {"array": np.arange(100_000), "text": "x"})
        first, second = loads(map_segment(path, nbytes)), loads(map_segment(path, nbytes))
        first["array"][0] = -1
        assert second["array"][0] == 0
        assert loads(map_segment(path, nbytes))["array"][0] == 0
        assert os.stat(path).st_size == nbytes


def test_a_value_of_very_many_parts_is_written_whole(parent: Path) -> None:
    with SegmentDirectory(parent, "agent") as directory:
        value = [np.full(600, index, dtype="f8") for index in range(2_000)]
        path, nbytes = stored(directory, value)
        back = loads(map_segment(path, nbytes))
        assert all((one == other).all() for one, other in zip(back, value, strict=True))


def maps_of_this_process() -> str:
    return Path("/proc/self/maps").read_text()


def test_a_mapped_value_outlives_its_file_and_is_unmapped_with_its_last_view(parent: Path) -> None:
    with SegmentDirectory(parent, "agent") as directory:
        path, nbytes = stored(directory, np.arange(100_000))
        array = loads(map_segment(path, nbytes))
        assert path in maps_of_this_process()
        directory.remove(path)
        assert not os.path.exists(path)
        part = array[5:10]
        del array
        gc.collect()
        assert part.tolist() == [5, 6, 7, 8, 9]
        assert path in maps_of_this_process()
        del part
        gc.collect()
        assert path not in maps_of_this_process()


def test_mapping_thousands_takes_no_descriptors(parent: Path) -> None:
    with SegmentDirectory(parent, "agent") as directory:
        path, nbytes = stored(directory, np.arange(10_000))
        before = len(os.listdir("/proc/self/fd"))
        maps = [map_segment(path, nbytes) for _ in range(2_000)]
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(maps) == 2_000


def test_a_map_that_lives_until_the_process_exits_does_no_harm(parent: Path) -> None:
    code = textwrap.dedent(
        """
        import sys, atexit
        import numpy as np
        from pathlib import Path
        from cluster.storage.maps import map_segment
        from cluster.storage.segments import SegmentDirectory, write_encoded
        from cluster.wire.payload import dumps, loads
        directory = SegmentDirectory(Path(sys.argv[1]), "agent")
        encoded = dumps(np.arange(100_000))
        path = directory.create(encoded.nbytes)
        write_encoded(path, encoded)
        kept = loads(map_segment(path, encoded.nbytes))
        directory.close()
        atexit.register(lambda: print(kept.sum()))
        """
    )
    done = subprocess.run([sys.executable, "-c", code, str(parent)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, str(sum(range(100_000)))), done.stderr


def test_a_segment_of_no_bytes(parent: Path) -> None:
    with SegmentDirectory(parent, "agent") as directory:
        path = directory.create(0)
        assert len(map_segment(path, 0)) == 0


def test_a_segment_that_is_gone_or_too_short_is_an_error_and_no_crash(parent: Path) -> None:
    with SegmentDirectory(parent, "agent") as directory:
        path = directory.create(1_000)
        with pytest.raises(ValueLost, match="1000 bytes instead of 5000"):
            map_segment(path, 5_000)
        directory.remove(path)
        directory.remove(path)
        with pytest.raises(ValueLost, match="is gone"):
            map_segment(path, 1_000)


def test_only_segments_of_its_own_can_be_removed(parent: Path) -> None:
    outside = parent / "precious"
    outside.write_text("x")
    with SegmentDirectory(parent, "agent") as directory:
        for path in (str(outside), f"{directory.path}/lock", f"{directory.path}/../{directory.path.name}/s1"):
            with pytest.raises(ValueError, match="is no segment of"):
                directory.remove(path)
    assert outside.exists()


def test_nobody_else_may_enter(parent: Path) -> None:
    before = os.umask(0)
    try:
        with SegmentDirectory(parent, "agent") as directory:
            path = directory.create(10)
            assert stat.S_IMODE(os.stat(base_of(parent)).st_mode) == 0o700
            assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_directory_that_others_may_enter_is_refused(parent: Path) -> None:
    base_of(parent).mkdir()
    base_of(parent).chmod(0o755)
    with pytest.raises(SettingError, match="mode 755"):
        SegmentDirectory(parent, "agent")
    with pytest.raises(SettingError, match="mode 755"):
        sweep(parent)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory somebody else's")
def test_a_directory_of_somebody_else_is_refused(parent: Path) -> None:
    base_of(parent).mkdir(mode=0o700)
    os.chown(base_of(parent), 12345, 12345)
    with pytest.raises(SettingError, match="belongs to user 12345"):
        SegmentDirectory(parent, "agent")


def test_links_are_not_followed(parent: Path) -> None:
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "precious").write_text("x")
    base_of(parent).symlink_to(elsewhere)
    with pytest.raises(SettingError, match="cannot be opened as a directory"):
        SegmentDirectory(parent, "agent")
    base_of(parent).unlink()
    with SegmentDirectory(parent, "agent") as directory:
        (base_of(parent) / "trap").symlink_to(elsewhere)
        segment = Path(directory.create(10))
        segment.unlink()
        segment.symlink_to(elsewhere / "precious")
        with pytest.raises(OSError, match="symbolic links"):
            map_segment(str(segment), 1)
        with pytest.raises(OSError, match="symbolic links"):
            write_encoded(str(segment), dumps(1))
        assert sweep(parent) == []
    assert (elsewhere / "precious").read_text() == "x"


def test_closing_removes_the_directory_and_closing_again_does_nothing(parent: Path) -> None:
    directory = SegmentDirectory(parent, "agent")
    stored(directory, np.arange(10_000))
    directory.close()
    directory.close()
    assert list(base_of(parent).iterdir()) == []


def test_a_sweep_leaves_the_living_alone_and_removes_what_the_dead_left(parent: Path) -> None:
    living, dying = OtherProcess(parent), OtherProcess(parent)
    try:
        with SegmentDirectory(parent, "agent") as own:
            own_segment = own.create(10)
            assert sweep(parent) == []
            dying.kill()
            assert sweep(parent) == [dying.path]
            assert os.path.exists(own_segment)
            assert sorted(os.listdir(living.path)) == ["lock", "s1"]
            assert sweep(parent) == []
    finally:
        living.kill()
        dying.kill()
    assert remove_if_dead(living.path)
    assert not remove_if_dead(living.path)
    assert list(base_of(parent).iterdir()) == []


def test_a_sweep_in_the_owners_process_does_not_release_its_lock(parent: Path) -> None:
    code = "import sys, pathlib, cluster.storage.segments as it; print(it.sweep(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(parent)]
    with SegmentDirectory(parent, "agent"), SegmentDirectory(parent, "client"):
        assert sweep(parent) == []
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout.strip() == "[]"


def test_a_forked_child_neither_holds_the_lock_nor_removes_anything(parent: Path) -> None:
    directory = SegmentDirectory(parent, "agent")
    segment = directory.create(10)
    child = os.fork()
    if child == 0:
        directory.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.exists(segment)
    directory.close()


def test_the_death_of_the_owner_frees_the_lock_though_a_forked_child_lives(parent: Path) -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from cluster.storage.segments import SegmentDirectory
        directory = SegmentDirectory(Path(sys.argv[1]), "agent")
        child = os.fork()
        if child == 0:
            signal.pause()
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code, str(parent)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.wait(timeout=10)
        try:
            os.kill(child, 0)
            assert len(sweep(parent)) == 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_directory_that_is_being_made_is_left_and_one_that_was_never_finished_is_removed(parent: Path) -> None:
    SegmentDirectory(parent, "agent").close()
    unfinished = base_of(parent) / "agent-unfinished"
    unfinished.mkdir(mode=0o700)
    assert sweep(parent) == []
    long_ago = time.time() - 2 * segments.UNLOCKED_GRACE_SECONDS
    os.utime(unfinished, (long_ago, long_ago))
    assert sweep(parent) == [unfinished]


def test_sweeps_and_starts_at_the_same_time_do_not_hurt_each_other(parent: Path) -> None:
    sweeper = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from cluster.storage.segments import sweep
        print("ready", flush=True)
        while not Path(sys.argv[1], "stop").exists():
            sweep(Path(sys.argv[1]))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", sweeper, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        for _ in range(300):
            with SegmentDirectory(parent, "agent") as directory:
                assert os.path.exists(directory.create(100))
    finally:
        (parent / "stop").touch()
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output


@pytest.mark.parametrize("nbytes", [0, 1, 100_000, segments.WRITE_STEP_BYTES, 2 * segments.WRITE_STEP_BYTES + 1])
@pytest.mark.parametrize("here", [True, False])
def test_room_is_reserved_by_writing_where_there_is_nothing_better(
    parent: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int, here: bool
) -> None:
    if here:
        monkeypatch.setattr(os, "posix_fallocate", refuse_to_reserve)
    else:
        monkeypatch.delattr(os, "posix_fallocate")
    with SegmentDirectory(parent, "agent", fast_paths=not here) as directory:
        facts = os.stat(directory.create(nbytes))
        assert facts.st_size == nbytes
        assert facts.st_blocks * 512 >= nbytes


def refuse_to_reserve(*_: object) -> None:
    raise AssertionError("not by this: what cannot fit is refused by its size alone, before it fills the memory")


def test_what_cannot_fit_is_refused_before_any_memory_is_taken(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse_to_reserve)
    monkeypatch.setattr(os, "write", refuse_to_reserve)
    with SegmentDirectory(parent, "agent") as directory, pytest.raises(StoreFull, match="no room for a value of"):
        directory.create(1 << 60)
    assert list(base_of(parent).iterdir()) == []


def test_a_store_in_memory_has_no_more_room_than_the_memory(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "lies_in_memory", lambda path: True)
    monkeypatch.setattr(segments, "_available_memory_bytes", lambda: segments.MEMORY_LEFT_BYTES + (2 << 20))
    with SegmentDirectory(parent, "agent") as directory:
        assert directory.free_bytes() == 2 << 20
        directory.create(1 << 20)
        monkeypatch.setattr(os, "posix_fallocate", refuse_to_reserve)
        with pytest.raises(StoreFull):
            directory.create(3 << 20)


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="there is no shared memory file system here")
def test_a_file_system_in_memory_is_known_as_one() -> None:
    assert segments.lies_in_memory(Path("/dev/shm"))
    assert not segments.lies_in_memory(Path("/proc"))


FULL_TMPFS = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from cluster.errors import StoreFull
    from cluster.storage.maps import map_segment
    from cluster.storage.segments import SegmentDirectory, write_encoded
    from cluster.wire.payload import dumps, loads

    with SegmentDirectory(Path(sys.argv[1]), "agent", fast_paths=sys.argv[2] == "True") as directory:
        kept = dumps(bytes(range(256)) * 1000)
        paths = []
        while True:
            try:
                paths.append(directory.create(kept.nbytes))
            except StoreFull as error:
                assert str(directory.path) in str(error), error
                break
        assert len(paths) > 10
        for path in paths:
            write_encoded(path, kept)
            assert loads(map_segment(path, kept.nbytes)) == bytes(range(256)) * 1000
        assert len(os.listdir(directory.path)) == len(paths) + 1, "the one that failed left nothing"
        directory.remove(paths[0])
        write_encoded(directory.create(kept.nbytes), kept)
    print("passed")
    """
)


@pytest.mark.parametrize("fast_paths", [True, False])
def test_a_full_store_is_an_ordinary_answer_and_what_is_in_it_stays_whole(parent: Path, fast_paths: bool) -> None:
    tiny = parent / "tiny"
    tiny.mkdir()
    program = f'exec {sys.executable} -c "$PROGRAM" {tiny} {fast_paths}'
    mount = f"mount -t tmpfs -o size=4m tmpfs {tiny} || exit 77; {program}"
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount],
            env={**os.environ, "PROGRAM": FULL_TMPFS},
            capture_output=True,
            text=True,
            timeout=60,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here to mount a small tmpfs with")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    assert done.stdout.strip() == "passed", done.stderr


def test_importing_it_imports_no_pickler() -> None:
    code = (
        "import sys, cluster.storage.segments;"
        "sys.exit(bool({'pickle', 'cloudpickle', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
