"""Whole numbers in what clients and environments send."""

MAX_DIGITS = 19  # of an integer of 64 bits; int() of thousands of digits takes long, or refuses


def parse_number(text: str, low: int, high: int) -> int | None:
    """Return the whole number that decimal digits spell; None if it is not one from `low` to `high`."""
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        return None
    number = int(text)
    return number if low <= number <= high else None
