"""What an export or a calibration is doing, and how long each part of it took.

`phase` says on a terminal what begins (INFO, logger `equipoise_export`; a status line shows the latest message), and
notes its time in the phase around it. The outermost one is a table, `--timings`.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

LOGGER = logging.getLogger("equipoise_export")


@dataclass
class Phase:
    """A part of a run, and the parts that it consists of.

    Attributes:
        seconds: of the clock, ≥ 0.
        processor: seconds that the process and those it started have computed, on all cores, ≥ 0.
        peak: bytes of memory that the process held at most until the end of this phase.
    """

    name: str
    seconds: float = 0.0
    processor: float = 0.0
    peak: int = 0
    phases: list[Phase] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        found: dict[str, Any] = {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "processor_seconds": round(self.processor, 3),
            "peak_bytes": self.peak,
        }
        return {**found, "phases": [each.document() for each in self.phases]} if self.phases else found

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        table = Table("phase", "s", "share", "processor s", title=f"{self.name}: {self.seconds:.1f} s")
        for column in table.columns[1:]:
            column.justify = "right"
        for depth, each in self._below():
            share = each.seconds / max(self.seconds, 1e-9)
            table.add_row(f"{'  ' * depth}{each.name}", f"{each.seconds:.2f}", f"{share:.0%}", f"{each.processor:.2f}")
        yield table
        yield f"processor {self.processor:.1f} s; memory at most {self.peak / 2**20:.0f} MiB"

    def _below(self, depth: int = 0) -> Iterator[tuple[int, Phase]]:
        """All that lies inside, as it ran, and how deep."""
        for each in self.phases:
            yield depth, each
            yield from each._below(depth + 1)


_around: ContextVar[tuple[Phase, ...]] = ContextVar("phases", default=())
"""The phases that are running, outermost first: of this thread, or task."""


@contextmanager
def phase(name: str) -> Iterator[Phase]:
    """A part of the work, as a context or around a function: logged as it begins, timed as it ends or fails."""
    outer = _around.get()
    inner = Phase(name)
    if outer:
        outer[-1].phases.append(inner)
    LOGGER.info(", ".join(each.name for each in (*outer, inner)))
    token = _around.set((*outer, inner))
    began, worked = time.perf_counter(), _processor()
    try:
        yield inner
    finally:
        _around.reset(token)
        inner.seconds, inner.processor = time.perf_counter() - began, _processor() - worked
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        inner.peak = largest if sys.platform == "darwin" else largest * 1024  # bytes there, KiB on Linux


def running() -> Phase:
    """The innermost phase that is running; its times follow when it ends."""
    return _around.get()[-1]


def _processor() -> float:
    return sum(os.times()[:4])


class _Shown(logging.Handler):
    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self.status = status

    def emit(self, record: logging.LogRecord) -> None:
        self.status.update(f"{record.getMessage()} …")


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Shows the phases as they begin, while the context lasts; nothing without a terminal."""
    if not console.is_terminal:
        yield
        return
    level = LOGGER.level
    with console.status("starting …") as status:
        handler = _Shown(status)
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        try:
            yield
        finally:
            LOGGER.setLevel(level)
            LOGGER.removeHandler(handler)
