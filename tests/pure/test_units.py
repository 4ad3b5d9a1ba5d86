"""Amounts as people write and read them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import SettingError
from cluster.units import format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("amount", "nbytes"),
    [
        (0, 0),
        (2**70, 2**70),
        ("123", 123),
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("8G", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("8Gi", 8 * 2**30),
        (" 1.5 MiB ", 3 * 2**19),
        (".5kB", 500),
        ("64 B", 64),
        ("2TB", 2 * 10**12),
        ("1PiB", 2**50),
        ("4503599627370497KiB", 4503599627370497 * 1024),
        ("8e9", 8 * 10**9),
        ("1E3", 1000),
    ],
)
def test_an_amount_of_bytes_is_read_as_people_write_it(amount: Any, nbytes: int) -> None:
    assert parse_bytes(amount) == nbytes


@pytest.mark.parametrize(
    "amount", ["", "GB", "8 XB", "-1", -1, "8GBs", "nan", "inf", "1..5GB", "8 GB extra", True, None]
)
def test_what_is_no_amount_of_bytes_is_refused_with_an_example(amount: Any) -> None:
    with pytest.raises(SettingError, match=r"no amount of bytes"):
        parse_bytes(amount)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (64 * 1024, "64.0 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (8 * 10**9, "7.45 GiB"),
        (999 * 2**40, "999 TiB"),
        (5 * 2**70, "5120 EiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_are_shown_in_three_digits(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@given(st.integers(0, 2**62))
def test_what_is_shown_reads_back_as_about_the_same(nbytes: int) -> None:
    assert parse_bytes(format_bytes(nbytes)) == pytest.approx(nbytes, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-8, "25.0 ns"),
        (12e-6, "12.0 µs"),
        (0.25, "250 ms"),
        (0.9996, "1.00 s"),
        (3.5, "3.50 s"),
        (59.9, "59.9 s"),
        (59.99, "1 min"),
        (125, "2 min 5 s"),
        (3599.8, "1 h"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
        (-4, "-4.00 s"),
        (float("inf"), "inf"),
    ],
)
def test_a_duration_is_shown_as_people_say_it(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
