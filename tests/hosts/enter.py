"""`enter.py PROCESS COMMAND…`: become that command, on the host whose namespaces that process holds.

It runs alone, without the rest of this package. The command is killed when whoever started it has ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

DIE_WITH_PARENT = 1


def main(holder: str, *command: str) -> None:
    """Enter the namespaces and become the command."""
    library = ctypes.CDLL(None, use_errno=True)
    parent, folder = os.getppid(), os.getcwd()
    if library.prctl(DIE_WITH_PARENT, signal.SIGKILL) or parent == 1:
        sys.exit("the process would outlive whoever started it")
    namespaces = [os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "mnt")]
    for namespace in namespaces:
        if library.setns(namespace, 0):
            sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
    os.chdir(folder)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
