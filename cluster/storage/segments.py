"""Values as files in shared memory (or on disk): one locked directory for each process that makes them.

    <parent>/cluster-<uid>/                mode 0700, checked
        <name>-<random>/                   one for each agent or client, mode 0700
            lock                           held by `lockf` as long as the owner lives
            s1, s2, …                      segments, mode 0600
            free-3, free-7, …              segments without a value, kept to be used again

A directory whose lock can be taken belongs to nobody any more: any process of the user removes it (`sweep`). `lockf`
locks belong to a process and not to a descriptor, so forked children hold nothing back; for the same reason a process
must never open a lock of its own a second time, since closing that would release it.

Space is reserved before a byte is written, since a write through a map of a full tmpfs ends the process (SIGBUS); a
full store is a `StoreFull`. A tmpfs is often as large as the machine's memory: a reservation that the memory cannot
hold is refused too, before it makes the kernel kill processes. Nothing here follows a symbolic link below the parent.

Others may remove what lies there: whoever cleans up temporary files, or systemd, which empties /dev/shm when its user
logs out. The values are lost then, but the directory is made again: by `keep`, and when a segment is to be made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import threading
import time
from importlib import import_module
from itertools import count
from pathlib import Path
from types import TracebackType

from cluster.errors import SettingError, StoreFull
from cluster.storage.maps import KEPT_FROM_BYTES
from cluster.storage.openings import is_open_elsewhere, locks_tell, open_segment
from cluster.units import format_bytes
from cluster.wire.encoded import Encoded

RESERVE_STEP_BYTES = 64 << 20
WRITE_STEP_BYTES = 1 << 20
"""What is copied at once: between two such steps others have their turn."""
ROOM_CHECKED_BYTES = 1 << 20
"""For smaller segments the reservation itself tells soon enough."""
MEMORY_LEFT_BYTES = 64 << 20
"""What a reservation leaves of the memory that is available."""
UNLOCKED_GRACE_SECONDS = 60.0
"""A directory without a lock file is being made, or was left by a process that died making it; by then the latter."""
PARTS_A_WRITE = 512

_LOCK = "lock"
_MODULES = "modules"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_own_directories: set[Path] = set()

logger = logging.getLogger(__name__)


class SegmentDirectory:
    """The segments of one process; only that process creates and removes them, others open them by path."""

    def __init__(self, parent: Path, name: str, *, fast_paths: bool = True) -> None:
        """Make a directory for `name` under `parent` (the shared memory directory of the settings), and lock it.

        `fast_paths`: whether room is reserved by `posix_fallocate`, where there is one, and not by writing zeros.
        """
        self._reserve = _reserve_at_once if fast_paths and hasattr(os, "posix_fallocate") else _reserve_by_writing
        self._lock_descriptor = -1
        self._descriptor = -1
        self._process_id = os.getpid()
        self._numbers = count(1)
        self._making_again = threading.Lock()
        base, base_descriptor = _open_base(parent)
        self._in_memory = lies_in_memory(parent)
        try:
            while self._lock_descriptor < 0:
                self.path = base / f"{name}-{os.urandom(8).hex()}"
                self._descriptor, self._lock_descriptor = _try_make(self.path.name, base_descriptor)
        finally:
            os.close(base_descriptor)
        _own_directories.add(self.path)

    def keep(self) -> None:
        """Make the directory and its lock again if somebody has removed them, and say by the lock's time that they are
        in use: programs that clean up go by that. To be called now and then; StoreFull if it cannot be."""
        if self._is_whole():
            os.utime(self._lock_descriptor)
        else:
            self._make_again()

    def _is_whole(self) -> bool:
        try:
            lock = os.stat(_LOCK, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(lock, os.fstat(self._lock_descriptor))

    def _has_its_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _make_again(self) -> None:
        with self._making_again:
            if self._is_whole():
                return  # another thread was faster
            logger.warning("%s was removed while it was in use: it is made again, and values in it are lost", self.path)
            try:
                _, base_descriptor = _open_base(self.path.parent.parent)
            except SettingError as error:
                raise StoreFull(str(error)) from error
            try:
                if self._has_its_place():
                    lock = _try_lock(self._descriptor)
                else:
                    directory, lock = _try_make(self.path.name, base_descriptor)
                    if lock >= 0:
                        # In the place of the old one, which other threads may be using.
                        os.dup2(directory, self._descriptor, inheritable=False)
                        os.close(directory)
            except OSError as error:
                raise StoreFull(f"{self.path} was removed, and cannot be made again: {error.strerror}") from error
            finally:
                os.close(base_descriptor)
            if lock < 0:
                raise StoreFull(f"{self.path} was removed, and is being removed again")
            os.close(self._lock_descriptor)
            self._lock_descriptor = lock

    def create(self, nbytes: int) -> str:
        """Make a segment with room for so many bytes and give its path; `StoreFull` if there is no room."""
        path, segment = self.create_open(nbytes)
        os.close(segment)
        return path

    def create_open(self, nbytes: int) -> tuple[str, int]:
        """The same, and the opening, which is the caller's to close."""
        name = f"s{next(self._numbers)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                segment = os.open(name, flags, 0o600, dir_fd=self._descriptor)
            except FileNotFoundError:
                self._make_again()
                segment = os.open(name, flags, 0o600, dir_fd=self._descriptor)
        except StoreFull:
            raise
        except OSError as error:
            raise self._store_error(error, nbytes) from error
        try:
            if nbytes >= ROOM_CHECKED_BYTES and nbytes > self.free_bytes():
                # A reservation that must fail would fill the memory before it does.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._reserve(segment, nbytes)
        except OSError as error:
            os.unlink(name, dir_fd=self._descriptor)
            os.close(segment)
            raise self._store_error(error, nbytes) from error
        return f"{self.path}/{name}", segment

    def link(self, source: str, nbytes: int) -> str:
        """Make a segment of what another process's segment holds, and give its path; OSError if that cannot be."""
        name = f"s{next(self._numbers)}"
        try:
            os.link(source, name, dst_dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            if self._is_whole():
                raise  # it is the source that is not there
            self._make_again()
            os.link(source, name, dst_dir_fd=self._descriptor, follow_symlinks=False)
        facts = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_size < nbytes:
            os.unlink(name, dir_fd=self._descriptor)
            raise OSError(errno.EINVAL, f"it is no file of this user's with {nbytes} bytes")
        return f"{self.path}/{name}"

    def extend(self, segment: int, start: int, nbytes: int) -> None:
        """Reserve more room in a segment of so many bytes, by its opening; `StoreFull` if there is none."""
        try:
            if nbytes > self.free_bytes():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.posix_fallocate(segment, start, nbytes)
        except OSError as error:
            raise self._store_error(error, nbytes) from error

    def rename(self, path: str, *, is_free: bool) -> str:
        """Give a segment a name that nobody knows, as if it were removed and a new one made; its new path.

        `is_free`: it holds no value now.
        """
        name = f"{'free-' if is_free else 's'}{next(self._numbers)}"
        os.rename(self._name_of(path), name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        return f"{self.path}/{name}"

    def _store_error(self, error: OSError, nbytes: int) -> StoreFull:
        if error.errno not in _FULL:
            return StoreFull(f"{self.path} does not take a value of {format_bytes(nbytes)}: {error.strerror}")
        return StoreFull(
            f"no room for a value of {format_bytes(nbytes)} in {self.path}: {format_bytes(self.free_bytes())} free. "
            "Release values that are no longer needed, or give shared_memory_directory a place with more room."
        )

    @property
    def modules_path(self) -> Path:
        """A folder in the directory for modules that users uploaded; it goes with the directory."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(_MODULES, 0o700, dir_fd=self._descriptor)
        return self.path / _MODULES

    def file_system(self) -> os.statvfs_result:
        """The figures of the file system."""
        return os.fstatvfs(self._descriptor)

    def free_bytes(self) -> int:
        """How much room is there: in the file system and, if that lies in memory, in what the machine can spare?"""
        figures = self.file_system()
        room = figures.f_bavail * figures.f_frsize
        if not self._in_memory:
            return room
        return max(0, min(room, _available_memory_bytes() - MEMORY_LEFT_BYTES))

    def remove(self, path: str) -> None:
        """Remove a segment; who looks at it keeps its bytes. Removing it again does nothing."""
        with contextlib.suppress(FileNotFoundError):
            _remove_file(self._name_of(path), self._descriptor)

    def _name_of(self, path: str) -> str:
        parent, _, name = path.rpartition("/")
        if parent != str(self.path) or name == _LOCK:
            raise ValueError(f"{path} is no segment of {self.path}")
        return name

    def can_recycle(self) -> bool:
        """Whether segments lie in memory here, and the kernel can say that nobody has one open."""
        return self._in_memory and locks_tell(self._descriptor)

    def close(self) -> None:
        """Remove the directory with all segments in it. In a forked child this only forgets it."""
        if self._lock_descriptor < 0:
            return
        if os.getpid() == self._process_id:
            _remove_files(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(self.path)
            _own_directories.discard(self.path)
        os.close(self._lock_descriptor)
        os.close(self._descriptor)
        self._lock_descriptor = self._descriptor = -1

    def __enter__(self) -> SegmentDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _try_make(name: str, base_descriptor: int) -> tuple[int, int]:
    """Make a directory and its lock; the descriptors of both, or -1 twice if a sweep came in between."""
    os.mkdir(name, 0o700, dir_fd=base_descriptor)
    directory = os.open(name, _OPEN_DIRECTORY, dir_fd=base_descriptor)
    lock = _try_lock(directory)
    if lock < 0:
        os.close(directory)
        return -1, -1
    return directory, lock


def _try_lock(directory: int) -> int:
    """Make the lock of a directory that has none; its descriptor, or -1 if a sweep came in between."""
    lock = -1
    try:
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(_LOCK, dir_fd=directory, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        if lock >= 0:
            os.close(lock)
        return -1
    return lock


def _reserve_at_once(segment: int, nbytes: int) -> None:
    for start in range(0, nbytes, RESERVE_STEP_BYTES):
        os.posix_fallocate(segment, start, min(RESERVE_STEP_BYTES, nbytes - start))


def _reserve_by_writing(segment: int, nbytes: int) -> None:
    zeros = memoryview(bytes(min(nbytes, WRITE_STEP_BYTES)))
    start = 0
    while start < nbytes:  # by places: who writes through this opening afterwards begins at the file's beginning
        start += os.pwrite(segment, zeros[: nbytes - start], start)


# --------------------------------------------------------------------------- what others left behind


def sweep(parent: Path) -> list[Path]:
    """Remove the directories under `parent` whose owners are dead, and list them."""
    if not (parent / _base_name()).exists():
        return []
    base, descriptor = _open_base(parent)
    os.close(descriptor)
    return [path for path in sorted(base.iterdir()) if remove_if_dead(path)]


def abandoned_bytes(parent: Path) -> int:
    """How many bytes lie under `parent` in directories whose owners are dead; the next `sweep` removes them."""
    base = parent / _base_name()
    try:
        folders = [path for path in base.iterdir() if path not in _own_directories]
    except FileNotFoundError:
        return 0
    return sum(_abandoned_bytes(path) for path in folders)


def _abandoned_bytes(path: Path) -> int:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # being made, being removed, or not made by this program
        return 0
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return sum(file.lstat().st_size for file in path.iterdir())
    except (BlockingIOError, FileNotFoundError):  # its owner lives, or it is being removed
        return 0
    finally:
        os.close(lock)


def remove_if_dead(path: Path) -> bool:
    """Remove one segment directory if its owner is dead; false if the owner lives, or somebody else removes it."""
    if path in _own_directories:
        return False
    try:
        directory = os.open(path, _OPEN_DIRECTORY)
    except OSError:  # gone meanwhile, or no directory: nothing that is ours to remove
        return False
    try:
        if not _is_dead(directory):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)
        return True
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            return False
        raise
    finally:
        os.close(directory)


def _is_dead(directory: int) -> bool:
    """Take the lock of a directory and empty it; false if somebody holds the lock."""
    try:
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return time.time() - os.fstat(directory).st_mtime > UNLOCKED_GRACE_SECONDS
    except OSError:  # a link or no file: not made by this program
        return False
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_files(directory)
    except (BlockingIOError, PermissionError, IsADirectoryError):
        return False  # locked, or with something in it that this program never made
    finally:
        os.close(lock)
    return True


def _remove_files(directory: int) -> None:
    """Remove all files of a directory, its lock last: until then nobody takes it for one that is being made."""
    for name in sorted(os.listdir(directory), key=lambda name: (name == _LOCK, name)):
        with contextlib.suppress(FileNotFoundError):
            if name == _MODULES:
                # Loaded here, with three libraries to compress, since few workers are sent any.
                import_module("shutil").rmtree(name, dir_fd=directory)
            else:
                _remove_file(name, directory)


def _remove_file(name: str, directory: int) -> None:
    """Remove a file, and give its pages back although somebody keeps a map of it for a value that may come."""
    facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if facts.st_size < KEPT_FROM_BYTES or facts.st_nlink > 1 or not stat.S_ISREG(facts.st_mode):
        os.unlink(name, dir_fd=directory)
        return
    os.chmod(name, 0o600, dir_fd=directory)  # what was shown to others nobody may write to
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.unlink(name, dir_fd=directory)
        # Without a name nobody comes to open it any more.
        if os.fstat(descriptor).st_nlink == 0 and not is_open_elsewhere(descriptor):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _base_name() -> str:
    return f"cluster-{os.getuid()}"


def _open_base(parent: Path) -> tuple[Path, int]:
    """Make the user's directory under `parent` if need be, and make sure that it is the user's own."""
    base = parent / _base_name()
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(base, 0o700)
    except OSError as error:
        raise _unsafe(base, f"it cannot be made ({error.strerror})") from error
    try:
        descriptor = os.open(base, _OPEN_DIRECTORY)
    except OSError as error:
        raise _unsafe(base, f"it cannot be opened as a directory ({error.strerror})") from error
    facts = os.fstat(descriptor)
    if facts.st_uid == os.getuid() and not stat.S_IMODE(facts.st_mode) & 0o077:
        return base, descriptor
    os.close(descriptor)
    if facts.st_uid != os.getuid():
        raise _unsafe(base, f"it belongs to user {facts.st_uid}")
    raise _unsafe(base, f"others may enter it (mode {stat.S_IMODE(facts.st_mode):o}); `chmod 700` it or remove it")


def lies_in_memory(path: Path) -> bool:
    """Is this a file system whose files are memory? Unknown counts as no: the file system's own limit then holds."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no such file outside Linux
        return False
    return any(
        line.split()[2] == number and line.rpartition(" - ")[2].split()[0] in ("tmpfs", "ramfs") for line in mounts
    )


def _available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(errno.ENOTSUP, "/proc/meminfo names no MemAvailable")


def _unsafe(base: Path, reason: str) -> SettingError:
    return SettingError(
        f"values cannot be kept in {base}: {reason}. Set shared_memory_directory, or for those that go to disk "
        "spill_directory, to another place."
    )


# --------------------------------------------------------------------------- bytes in and out


def write_encoded(path: str, encoded: Encoded) -> None:
    """Write a value into the segment that was created for it."""
    segment = open_segment(path, os.O_WRONLY)
    try:
        write_parts(segment, encoded)
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(f"no room left while writing {format_bytes(encoded.nbytes)} to {path}") from error
        raise
    finally:
        os.close(segment)


def write_into_map(mapped: memoryview, encoded: Encoded) -> None:
    """Copy a value into a segment by a map of it."""
    end = 0
    for part in encoded.parts:
        view = memoryview(part)
        for start in range(0, len(view), WRITE_STEP_BYTES):
            piece = view[start : start + WRITE_STEP_BYTES]
            mapped[end : end + len(piece)] = piece
            end += len(piece)


def write_parts(descriptor: int, encoded: Encoded) -> None:
    """Write a value to an open file or blocking socket, without joining its parts."""
    views = [memoryview(part) for part in encoded.parts if len(part)]
    views.reverse()
    while views:
        written = os.writev(descriptor, views[: -PARTS_A_WRITE - 1 : -1])
        while views and written >= len(views[-1]):
            written -= len(views.pop())
        if written:
            views[-1] = views[-1][written:]
