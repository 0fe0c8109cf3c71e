"""A log as it grows: a running service reads what is new, and never the whole log again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .chain import settle
from .entry import START, AuditError, Entry, Link, parse, what_is_wrong
from .segments import log_of, numbers, segment


@dataclass(frozen=True)
class _Finished:
    """A file that was read to its end, and is not written to any more.

    Attributes:
        start, end: the lines before its first and at its end.
        state: of the file then, by which a later change is noticed without reading it.
    """

    start: Link
    end: Link
    state: tuple[int, int, int]


class Follower:
    """Yields every line once, checked against the line before it.

    Reads from where it stopped. A file that has changed since is read again, because a line was added to it, or because
    `redact` or somebody else changed what was read already; then it has to hold the same chain as before.
    """

    def __init__(self, path: Path) -> None:
        self._log = log_of(path)
        self._finished: dict[int, _Finished] = {}
        self._number = 1  # of the file that is being written
        self._start = self._link = START  # before its first line, and at the last line that was read
        self._offset = 0  # place after that line
        self._seen: tuple[int, int, int] | None = None  # state of that file when it was read

    def new(self) -> Iterator[Entry]:
        """The lines since the last time; what the caller does not take comes again.

        Raises AuditError where the log is damaged, and again each time until it is whole.
        """
        there = numbers(self._log)
        if not there and self._link == START:
            return
        for number, finished in self._finished.items():
            self._check_finished(number, finished)
        self._find_position()
        while True:
            yield from self._rest_of_file()
            if self._number >= max(there):
                return
            self._next_file()

    def _check_finished(self, number: int, finished: _Finished) -> None:
        state = self._state(number)
        if state != finished.state:
            size = self._read_again(number, finished.start, finished.end)
            if size != state[1]:
                raise AuditError(
                    f"{segment(self._log, number).name}: lines were added after line {finished.end.sequence}"
                )
            self._finished[number] = _Finished(finished.start, finished.end, state)

    def _find_position(self) -> None:
        """Where the file that is being written has changed, its earlier lines are the same, maybe at other places."""
        state = self._state(self._number)
        if self._offset and state != self._seen:
            self._offset = self._read_again(self._number, self._start, self._link)
        self._seen = state

    def _rest_of_file(self) -> Iterator[Entry]:
        with segment(self._log, self._number).open("rb") as file:
            file.seek(self._offset)
            while line := file.readline():
                if not line.endswith(b"\n"):  # it is being written, or its end is missing
                    settle(self._log)
                    file.seek(self._offset)
                    line = file.readline()
                    if not line:
                        return
                entry, link = self._checked(line, self._link)
                yield entry
                self._link, self._offset = link, self._offset + len(line)

    def _next_file(self) -> None:
        """The current one is finished. Raises AuditError where the next one is missing."""
        state = self._state(self._number)
        self._state(self._number + 1)
        self._finished[self._number] = _Finished(self._start, self._link, state)
        self._number, self._start, self._offset, self._seen = self._number + 1, self._link, 0, None

    def _read_again(self, number: int, start: Link, end: Link) -> int:
        """Checks that a file still holds the chain between two lines; the place after the latter."""
        link, offset = start, 0
        with segment(self._log, number).open("rb") as file:
            for line in file:
                if link == end:
                    break
                _, link = self._checked(line, link)
                offset += len(line)
        if link != end:
            name = segment(self._log, number).name
            raise AuditError(f"{name}: lines are missing that were there before; the last of them was {end.sequence}")
        return offset

    def _checked(self, line: bytes, before: Link) -> tuple[Entry, Link]:
        try:
            entry, stated = parse(line)
            wrong = what_is_wrong(line, entry, stated, before)
        except AuditError as error:
            wrong = str(error)
        if wrong:
            raise AuditError(f"{self._log.name} line {before.sequence + 1}: {wrong}")
        return entry, stated

    def _state(self, number: int) -> tuple[int, int, int]:
        """Inode, bytes and time of the last change. Raises AuditError where the file is missing."""
        try:
            found = segment(self._log, number).stat()
        except FileNotFoundError:
            raise AuditError(f"{segment(self._log, number).name} is missing") from None
        return found.st_ino, found.st_size, found.st_mtime_ns
