"""Whole numbers and durations in what clients and environments send."""

import re

MAX_DIGITS = 19  # of an integer of 64 bits; int() of thousands of digits takes long, or refuses


def parse_number(text: str, low: int, high: int) -> int | None:
    """Return the whole number that decimal digits spell; None if it is not one from `low` to `high`."""
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        return None
    number = int(text)
    return number if low <= number <= high else None


_DURATION = re.compile(r"([0-9]{1,12})([smhd]?)")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration_s(text: str) -> int | None:
    """Parse a duration (`90`, `90s`, `5m`, `2h`, `7d`) into seconds; None for any other text."""
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _UNITS_S[found[2]] if found else None
