"""Several hosts on one machine: each has a network of its own on a bridge, an address, and shared memory of its own.

    with Network(3) as network:
        subprocess.run(network[1].command("cluster-worker", f"tls://{network[0].address}:8770"))
        network.cut(1)

Nothing of it is seen outside, and all of it ends with the process that made it, however that ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from tests.hosts.switch import addresses_of

__all__ = ["Host", "Network", "why_not"]

_ROOT: Final = Path(__file__).parents[2]
_ENTER: Final = Path(__file__).with_name("enter.py")


@cache
def why_not() -> str:
    """Why this machine has no such hosts; empty if it has."""
    if not hasattr(os, "pidfd_open"):
        return "network namespaces are of Linux"
    if os.geteuid():
        return "network namespaces are made by root only"
    try:
        with Network(2):
            return ""
    except OSError as error:
        return f"network namespaces cannot be made here: {error}"


class Host:
    """One of the hosts: start processes there."""

    def __init__(self, number: int, holder: int) -> None:
        self.number = number
        self.address, self.address_ipv6 = addresses_of(number)
        self._holder = holder

    def command(self, *command: str) -> list[str]:
        """The command that runs this command on this host, for whatever starts processes.

        It is one process, and it is killed when its parent has ended.
        """
        return [sys.executable, "-I", "-S", str(_ENTER), str(self._holder), *command]


class Network:
    """Hosts on one bridge. Raises OSError if the machine has no such thing."""

    def __init__(self, count: int) -> None:
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "tests.hosts.switch", str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        self._hosts: dict[int, Host] = {}
        while len(self._hosts) < count:
            said = self._read()
            if not said.replace(" ", "").isdigit():
                self.close()
                raise OSError(said or "the process that makes them has ended")
            number, holder = map(int, said.split())
            self._hosts[number] = Host(number, holder)

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def cut(self, number: int) -> None:
        """Nothing reaches or leaves that host any more, and nobody is told: its link stays up."""
        self._order(f"cut {number}")

    def join(self, number: int) -> None:
        """Undo `cut`."""
        self._order(f"join {number}")

    def impair(self, number: int, *how: str) -> None:
        """Have the kernel treat what reaches that host so, in the words of `tc`'s netem; OSError if it cannot."""
        self._order(f"impair {number} {' '.join(how)}")

    def _order(self, line: str) -> None:
        _pipe(self._switch.stdin).write(line + "\n")
        _pipe(self._switch.stdin).flush()
        if (said := self._read()) != line:
            raise OSError(f"the switch did not {line}: {said}")

    def _read(self) -> str:
        return _pipe(self._switch.stdout).readline().strip()

    def close(self) -> None:
        """End it all; processes that were started there should have ended."""
        _pipe(self._switch.stdin).close()
        self._switch.wait()
        _pipe(self._switch.stdout).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
