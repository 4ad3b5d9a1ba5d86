"""How a process becomes a slot: as a fork of the starter, or as a fresh interpreter that the starter has started."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn

from cluster.daemon.in_slot import ClusterOfSlot
from cluster.daemon.slot import SlotDescriptors, run_slot
from cluster.daemon.slot_output import open_output

__all__ = ["be_slot", "command_of_slot", "environment_of_slot", "main"]

# If memory runs out, the kernel should end a slot and not the agent with everybody's values (-1000 … 1000).
_OOM_SCORE_ADJUSTMENT: Final = 500
_CLUSTER: Final = "CLUSTER_OF_SLOT"


def be_slot(
    threads: Sequence[SlotDescriptors], worker_name: str, cluster: ClusterOfSlot, prepare: Callable[[], None]
) -> NoReturn:
    """Run tasks until the agent has gone, then end the process, whatever it still has: nobody waits for it.

    `threads`: the descriptors of one slot, or of several, each of which is a thread then."""
    status = 1
    try:
        prepare()
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJUSTMENT))
        os.dup2(threads[0].output, 1)
        os.dup2(threads[0].output, 2)
        for descriptor in SlotDescriptors.all_opened(threads):
            os.set_inheritable(descriptor, False)
        sys.stdout, sys.stderr = open_output(1), open_output(2)
        if len(threads) == 1:
            run_slot(threads[0], worker_name, cluster)
        else:
            # Loaded here, since few slots need it.
            import_module("cluster.daemon.slot_threads").run_threads(threads, worker_name, cluster)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def command_of_slot(threads: Sequence[SlotDescriptors], worker_name: str, python_path: str) -> list[str]:
    """What starts a fresh interpreter that is a slot with these descriptors, which it inherits; or several slots."""
    descriptors = [str(descriptor) for thread in threads for descriptor in thread]
    return [sys.executable, "-P", "-m", "cluster.daemon.slot_process", worker_name, python_path, *descriptors]


def main() -> None:
    """Entry of `python -m cluster.daemon.slot_process`; the starter starts it, by `command_of_slot`."""
    worker_name, python_path, *descriptors = sys.argv[1:]
    add_python_path(python_path)
    each = len(SlotDescriptors._fields)
    numbers = list(map(int, descriptors))
    threads = [SlotDescriptors(*numbers[first : first + each]) for first in range(0, len(numbers), each)]
    be_slot(threads, worker_name, _cluster_of_environment(), lambda: None)


def environment_of_slot(cluster: ClusterOfSlot) -> dict[str, str]:
    """What a fresh interpreter is started with: a command line would show everybody the secret."""
    return {**os.environ, _CLUSTER: f"{cluster.secret.hex()} {cluster.scheduler_address}"}


def _cluster_of_environment() -> ClusterOfSlot:
    # Taken out, so that what tasks start does not inherit it.
    secret, _, address = os.environ.pop(_CLUSTER).partition(" ")
    return ClusterOfSlot(address, bytes.fromhex(secret))


def add_python_path(folders: str) -> None:
    """Let imports look into these folders before all others, and then into the current one.

    That one is not looked into before (`-P`): a `random.py` that lies there is for users' code alone.
    """
    sys.path[:0] = [*(entry for entry in folders.split(os.pathsep) if entry), os.getcwd()]


if __name__ == "__main__":
    main()
