"""Amounts as people write and read them: bytes and seconds."""

from __future__ import annotations

import math
import re
from typing import Final

from cluster.errors import SettingError

__all__ = ["format_bytes", "format_seconds", "parse_bytes"]

_PREFIXES: Final = "kmgtpe"
_AMOUNT: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def _byte_units() -> dict[str, int]:
    factors = {"": 1, "b": 1}
    for power, prefix in enumerate(_PREFIXES, 1):
        factors[prefix] = factors[prefix + "b"] = 1000**power
        factors[prefix + "i"] = factors[prefix + "ib"] = 1024**power
    return factors


_FACTORS: Final = _byte_units()


def parse_bytes(amount: str | int) -> int:
    """Return a number of bytes from "8GB" (powers of 1000), "8GiB" (powers of 1024), "8e9" or a plain number.

    Case and blanks do not matter, and "G" means "GB". Raises SettingError for anything else, and below zero.

    >>> parse_bytes("8GB"), parse_bytes("1.5 MiB"), parse_bytes(64)
    (8000000000, 1572864, 64)
    """
    if isinstance(amount, int) and not isinstance(amount, bool):
        if amount < 0:
            raise SettingError(f"{amount} is no amount of bytes: it is below zero")
        return amount
    text = str(amount)
    match = _AMOUNT.fullmatch(text)
    if match and match[2].lower() in _FACTORS:
        whole, _, part = match[1].partition(".")
        factor = _FACTORS[match[2].lower()]
        # In integers, since a float has no room for 2**60 + 1.
        return int(whole or 0) * factor + (int(part) * factor // 10 ** len(part) if part else 0)
    try:
        plain = float(text)
    except ValueError:
        plain = math.nan
    if not math.isfinite(plain) or plain < 0:
        raise SettingError(f'{text!r} is no amount of bytes; write a number and a unit, as in "8GB" or "512MiB"')
    return int(plain)


def format_bytes(nbytes: int) -> str:
    """Return an amount of bytes for people, in powers of 1024.

    >>> format_bytes(512), format_bytes(64 * 1024), format_bytes(8_000_000_000)
    ('512 B', '64.0 KiB', '7.45 GiB')
    """
    if abs(nbytes) < 1024:
        return f"{nbytes} B"
    scaled = float(nbytes)
    for prefix in "KMGTPE":
        scaled /= 1024
        # Not 1024: what would be shown as "1024 KiB" is "1.00 MiB".
        if abs(scaled) < 1023.5 or prefix == "E":
            break
    return f"{_three_digits(scaled)} {prefix}iB"


def _three_digits(number: float) -> str:
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}"


def format_seconds(seconds: float) -> str:
    """Return a duration for people: about three digits, or the two largest units.

    >>> format_seconds(0.000012), format_seconds(0.25), format_seconds(3.5), format_seconds(3725)
    ('12.0 µs', '250 ms', '3.50 s', '1 h 2 min')
    """
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 0:
        return "-" + format_seconds(-seconds)
    if seconds == 0:
        return "0 s"
    for factor, name in ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms")):
        if seconds < 999.5 * factor:
            return f"{_three_digits(seconds / factor)} {name}"
    if seconds < 59.95:
        return f"{_three_digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return _two_units(whole, 60, "min", 1, "s")
    return _two_units(whole, 3600, "h", 60, "min") if whole < 86400 else _two_units(whole, 86400, "d", 3600, "h")


def _two_units(seconds: int, upper: int, upper_name: str, lower: int, lower_name: str) -> str:
    many, left = divmod(seconds, upper)
    return f"{many} {upper_name} {left // lower} {lower_name}" if left // lower else f"{many} {upper_name}"
