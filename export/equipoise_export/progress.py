"""Progress of an export on a terminal: it takes up to minutes.

Every stage logs what it begins (INFO, logger `equipoise_export`); a status line shows the latest message.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

LOGGER = logging.getLogger("equipoise_export")


class _Shown(logging.Handler):
    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self.status = status

    def emit(self, record: logging.LogRecord) -> None:
        self.status.update(f"{record.getMessage()} …")


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Shows the stages as they begin, while the context lasts; nothing without a terminal."""
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
