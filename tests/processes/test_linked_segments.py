"""Segments to which another agent of the host has a link: they stay as they are until that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes.test_recycling import MIB, Held, held, inode, run

pytestmark = [pytest.mark.fast_path("nothing is used again"), pytest.mark.timeout(60)]


async def linked(one: Held, other: Held) -> tuple[str, str]:
    """A segment of one with a value, and the other's link to it."""
    path = await one.create_with(1)
    link, reason = other.store.take_over(path, MIB)
    assert not reason
    return path, link


def test_what_another_agent_has_a_link_to_keeps_its_bytes_and_is_used_again_afterwards() -> None:
    async def test() -> None:
        async with held() as one, held() as other:
            path, link = await linked(one, other)
            before = inode(path)
            one.store.remove(path)
            assert one.figures() == (0, 0, MIB)
            assert inode(await one.create_with(2)) != before
            assert Path(link).read_bytes() == b"\1" * MIB, "nobody has it open, but it has a name"
            other.store.remove(link)
            again = await one.create_with(3)
            assert inode(again) == before
            assert other.store.take_over(path, MIB)[1], "who was told the old name, and comes late, finds nothing there"

    run(test)


def test_what_another_agent_sent_to_a_third_is_not_used_again() -> None:
    async def test() -> None:
        async with held() as one, held() as other:
            path, link = await linked(one, other)
            before = inode(path)
            other.store.mark_shown(link)
            other.store.remove(link)
            one.store.remove(path)
            assert one.figures() == (0, 0, 0)
            assert inode(await one.create_with(2)) != before

    run(test)


def test_what_is_given_up_while_another_agent_has_a_link_to_it_stays_whole() -> None:
    async def test() -> None:
        async with held() as one, held() as other:
            path, link = await linked(one, other)
            one.store.mark_shown(path)
            one.store.remove(path)
            await one.settle()
            assert Path(link).read_bytes() == b"\1" * MIB

    run(test)
