"""The files of a log: `decisions.jsonl`, then `decisions.part-000002.jsonl`, `decisions.part-000003.jsonl`, …

A log is named by its first file. Only the last file is written to; a new one is begun where the next line would make it
larger than `SEGMENT_BYTES`. The first line of a file continues the last line of the file before, so that a file that is
missing, or in another's place, breaks the chain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .entry import AuditError

SEGMENT_BYTES = 4 << 20
"""Some thousand decisions: what a running service reads again when a line was added. A longer line has its own file."""

_OFFSET_BITS = 40
_BLOCK = 1 << 16


def log_of(path: Path) -> Path:
    """The log's first file, whatever links lead there. Raises AuditError for a later file."""
    log = path.resolve()
    later = re.fullmatch(r"(.+)\.part-\d{6}", log.stem)
    if later is not None and (first := log.with_name(later[1] + log.suffix)).exists():
        raise AuditError(f"{log.name} is a part of the log {first.name}: name that one")
    return log


def segment(log: Path, number: int) -> Path:
    """The log's file of a number, from 1 on."""
    return log if number == 1 else log.with_name(f"{log.stem}.part-{number:06d}{log.suffix}")


def numbers(log: Path) -> list[int]:
    """Of the files that are there, ascending; empty where there is no log."""
    name = re.compile(rf"{re.escape(log.stem)}\.part-(\d{{6}}){re.escape(log.suffix)}")
    try:
        found = {int(match[1]) for each in log.parent.iterdir() if (match := name.fullmatch(each.name))}
    except FileNotFoundError:
        found = set()
    return sorted({number for number in found if number > 1} | ({1} if log.exists() else set()))


def missing(log: Path) -> list[int]:
    """Numbers of files that are not there although a later one is."""
    there = numbers(log)
    return sorted(set(range(1, max(there, default=0))) - set(there))


def lines(log: Path, first: int = 1, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Number of the file, and the line with its newline where it has one. Raises AuditError where there is no log.

    Args:
        first: number of the file to begin with; offset: bytes to skip in it.
    """
    there = numbers(log)
    try:
        if not there:
            log.stat()  # says why
        for number in there:
            if number >= first:
                with segment(log, number).open("rb") as file:
                    file.seek(offset if number == first else 0)
                    for line in file:
                        yield number, line
    except OSError as error:
        raise AuditError(f"{error.filename or log}: cannot be read: {error.strerror}") from error


def end(path: Path) -> int:
    """Position after the last line, for `lines_since`: grows with the log; 0 where there is none."""
    log = log_of(path)
    there = numbers(log)
    return ((there[-1] - 1) << _OFFSET_BITS) + segment(log, there[-1]).stat().st_size if there else 0


def lines_since(path: Path, position: int) -> Iterator[bytes]:
    """Lines after a position that `end` gave; all of its file where `redact` has moved its lines since."""
    log = log_of(path)
    if not numbers(log):
        return
    number, offset = (position >> _OFFSET_BITS) + 1, position & ((1 << _OFFSET_BITS) - 1)
    if offset and segment(log, number).exists():
        with segment(log, number).open("rb") as file:
            file.seek(offset - 1)
            offset = offset if file.read(1) == b"\n" else 0
    for _, line in lines(log, number, offset):
        yield line


def last_line(log: Path) -> tuple[int, bytes | None]:
    """Number of the last file, and the log's last line, with its newline where it has one; None for an empty log.

    Reads from the end, since logs grow long. A last file without a line is one that was just begun.
    """
    there = numbers(log)
    for number in reversed(there):
        with segment(log, number).open("rb") as file:
            line = _last_line(file)
        if line is not None:
            return there[-1], line
    return (there[-1] if there else 1), None


def _last_line(file: IO[bytes]) -> bytes | None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return None
    tail = b""
    while end > 0 and b"\n" not in tail[:-1]:
        start = max(0, end - _BLOCK)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
    return tail[tail[:-1].rfind(b"\n") + 1 :]
