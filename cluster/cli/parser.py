"""Reading a command's arguments: whatever is wrong with them is said in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

__all__ = ["CommandParser", "port_number"]


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; the usage is in `--help`, where it does not hide them."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def port_number(text: str) -> int:
    """A port as an argument gives it."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)
