"""The `equipoise` command: a list of verbs, each loaded only when it is called."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..errors import EquipoiseError
from ..extras import needs
from .verbs import Verb, registered


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Exit codes: 0 done, 1 failed, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # neither file names nor terminals need be UTF-8
    words = list(sys.argv[1:] if arguments is None else arguments)
    called = next((word for word in words if not word.startswith("-")), "")
    verbs = registered()
    verb = verbs.get(called)
    try:
        with needs(verb.extra if verb else "client", f"equipoise {called}".strip()):
            _application(verbs, called)(args=words, prog_name="equipoise")
    except (EquipoiseError, OSError) as error:
        # A file that is not there or may not be read, and whatever a verb explains itself.
        file = getattr(error, "filename", None)
        said = f"{file}: {error.strerror}" if isinstance(error, OSError) and file is not None else str(error)
        Console(stderr=True).print(f"[bold red]error:[/] {escape(said)}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error


def _application(verbs: Mapping[str, Verb], called: str) -> typer.Typer:
    """All verbs by name, but only the called one with its code."""
    # A traceback with local variables could show a patient's data.
    application = typer.Typer(
        no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
    )

    @application.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
        ] = False,
    ) -> None:
        """Serves networks trained with dropout; every answer has its uncertainty and a route."""

    for name, verb in verbs.items():
        if name == called:
            function, epilog = verb.load()
            application.command(name, epilog=epilog)(function)
        else:
            application.command(name, help=verb.help, rich_help_panel=verb.package.capitalize())(_unloaded)
    return application


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"equipoise {__version__}")
        raise typer.Exit


def _unloaded() -> None:
    """Stands for a verb that was not called; never runs."""


if __name__ == "__main__":
    main()
