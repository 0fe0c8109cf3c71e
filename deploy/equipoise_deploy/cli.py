"""How the verbs of this package end where something went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from .errors import DeployError, GaveUp

GAVE_UP = 3
"""Exit code of a server that was restarted as often as is allowed: whatever started it decides what then."""


@contextmanager
def exits_on(*errors: type[Exception]) -> Iterator[None]:
    """A DeployError, or one of `errors`, ends the verb with its message on stderr and exit code 1, GaveUp with 3."""
    known: tuple[type[Exception], ...] = (DeployError, *errors)
    try:
        yield
    except known as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(GAVE_UP if isinstance(error, GaveUp) else 1) from error
