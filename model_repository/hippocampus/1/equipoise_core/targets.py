"""What a regression answers: numbers with names and units, and how its network states the variance of its noise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_ .-]{0,63}")


class Noise(str, Enum):
    """What a network states beside each number, about the noise of the data (Kendall & Gal 2017)."""

    NONE = "none"
    VARIANCE = "variance"
    LOG_VARIANCE = "log_variance"


@dataclass(frozen=True)
class Target:
    """One number that a regression answers.

    Attributes:
        name: letters, digits, `_`, `.`, `-` and blanks, a letter or `_` first.
        unit: of the number and of its standard deviation, in UCUM's spelling (`mo`, `%`, `mm`; `1`: no unit).
    """

    name: str
    unit: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"a target named {self.name!r}: expected letters, digits, _ . - and blanks, a letter first"
            )
        if not self.unit or not self.unit.isprintable() or set(self.unit) & set(' ,:;"'):
            raise ValueError(
                f"target {self.name} has the unit {self.unit!r}; state it in UCUM's spelling, such as {self.name}:mo, "
                f"or {self.name}:1 for a number without unit"
            )

    def __str__(self) -> str:
        return f"{self.name}:{self.unit}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """`age:mo`. Raises ValueError that says what is missing."""
        name, _, unit = text.partition(":")
        return cls(name.strip(), unit.strip())

    def said(self, number: float) -> str:
        """`132 mo`; without a unit the number alone."""
        return f"{number:.4g}" if self.unit == "1" else f"{number:.4g} {self.unit}"
