"""Identities: random ones for processes, readable ones for tasks."""

from __future__ import annotations

import os

__all__ = ["new_id", "task_key"]


def new_id() -> bytes:
    """128 random bits: a client, a worker's life, a nonce."""
    return os.urandom(16)


def task_key(label: str, client_id: bytes, batch: int, number: int) -> str:
    """The name of a task for people: `label-token` for a batch of one, `label-token[index]` inside a map.

    >>> task_key("inc", bytes.fromhex("3fa2" + "00" * 14), -1, 7)
    'inc-3fa20000-7'
    >>> task_key("inc", bytes.fromhex("3fa2" + "00" * 14), 100, 107)
    'inc-3fa20000-100[7]'
    """
    token = client_id.hex()[:8]
    return f"{label}-{token}-{number}" if batch < 0 else f"{label}-{token}-{batch}[{number - batch}]"
