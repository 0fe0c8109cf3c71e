"""Dates and times as DICOM writes them (PS3.5 6.2, DA and TM), from what scanners and anonymisers write."""

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
