"""A conversation with the scheduler in which no message may be overheard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pure.dialogue import Dialogue


@pytest.fixture
def dialogue() -> Iterator[Dialogue]:
    """A fresh scheduler; at the end every peer must have read all that it was told."""
    talk = Dialogue()
    yield talk
    talk.everybody_heard_everything()
