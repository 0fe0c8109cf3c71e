"""What is typed on the command line, as values. Raises SpecError for what is not spelled as expected."""

from __future__ import annotations

import json
from typing import Any

from .errors import SpecError


def arguments(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs; values that are not JSON are text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise SpecError(f"--arg {pair}: expected key=value")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def words(text: str) -> list[str]:
    """`background,lesion` → its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(text: str, option: str) -> list[int]:
    """`1,256,256` → positive whole numbers."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SpecError(f"{option} {text}: expected positive whole numbers separated by commas, such as 1,256,256")
    return numbers


def bounds(text: str, option: str = "--spacing") -> tuple[float, float]:
    """`0.8:1.2`, or one number for both ends."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high or low)
    except ValueError as error:
        raise SpecError(f"{option} {text}: expected a number or lowest:highest, such as 0.8:1.2") from error
