"""Dates, times and ages as DICOM writes them (PS3.5 6.2), from what scanners and anonymisers write."""

from __future__ import annotations

import re
from datetime import date

_DATE = re.compile(r"(\d{4})([-./]?)(\d{2})\2(\d{2})")
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d+))?)?)?")


def da(text: str) -> str:
    """`YYYYMMDD`; "" where the text is no date."""
    found = _DATE.fullmatch(text.strip())
    if found is None:
        return ""
    year, _, month, day = found.groups()
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return ""
    return year + month + day


def tm(text: str) -> str:
    """`HH`, `HHMM`, `HHMMSS` or `HHMMSS.ffffff`; "" where the text is no time of day."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return ""
    hours, minutes, seconds, fraction = (part or "" for part in found.groups())
    if int(hours) > 23 or int(minutes or 0) > 59 or int(seconds or 0) > 59:
        return ""
    return hours + minutes + seconds + (f".{fraction[:6]}" if fraction else "")


def dt(text: str) -> str:
    """`YYYYMMDD`, with a time of day and an offset from UTC where they are stated; "" where the text is no moment."""
    bare, zone = re.fullmatch(r"(.*?)([+-]\d{4})?", text.strip()).groups()  # type: ignore[union-attr]
    day, clock = da(bare[:8]), tm(bare[8:])
    return f"{day}{clock}{zone or ''}" if day and (clock or not bare[8:]) else ""


def age(text: str) -> str:
    """`045Y`, and D, W or M; "" where the text is no Age String."""
    found = re.fullmatch(r"(\d{1,3})([DWMY])", text.strip().upper())
    return f"{int(found[1]):03}{found[2]}" if found else ""
