"""`memory=` of `client.options`: amounts as people write them, and clear errors."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.client.options import checked_options


@pytest.mark.parametrize(("memory", "nbytes"), [("2GB", 2_000_000_000), ("1 MiB", 1 << 20), (5, 5)])
def test_an_amount_is_bytes(memory: Any, nbytes: int) -> None:
    assert checked_options(memory=memory) == {"memory_bytes": nbytes}


@pytest.mark.parametrize(
    ("memory", "kind", "text"),
    [
        ("much", ValueError, "memory: 'much' is no amount of bytes"),
        (0, ValueError, "memory must be above 0"),
        (-1, ValueError, "below zero"),
        (1 << 60, ValueError, "memory must be above 0 and at most"),
        (1.5, TypeError, "memory must be an amount of bytes"),
        (True, TypeError, "memory must be an amount of bytes"),
    ],
)
def test_what_is_none_is_refused(memory: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        checked_options(memory=memory)
