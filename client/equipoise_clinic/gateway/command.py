"""The verb `equipoise gateway`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .settings import EXAMPLE, check_files, load_settings

EPILOG = """[bold]Examples[/]

equipoise gateway --example > gateway.toml   [dim]# every key, explained[/]

equipoise gateway gateway.toml --check   [dim]# is the configuration right?[/]

equipoise gateway gateway.toml

equipoise gateway gateway.toml --status   [dim]# how many studies and results, in which state[/]

equipoise gateway gateway.toml --conformance   [dim]# the DICOM Conformance Statement[/]

equipoise gateway gateway.toml --retry-dead   [dim]# send and analyse again what was given up[/]

SIGTERM ends it after the step it is at. Killed, it goes on where it was at the next start; nothing is lost or doubled.
Exit code: 0 stopped, 1 it failed, 2 wrong usage."""


def gateway(
    configuration: Annotated[Path | None, typer.Argument(help="TOML file; see --example.", show_default=False)] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a commented configuration and end.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read configuration, rules, certificates and passwords, and end.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Print counts by state as JSON, and end.")] = False,
    conformance: Annotated[
        bool, typer.Option("--conformance", help="Print this site's DICOM Conformance Statement, and end.")
    ] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="Try dead letters and given-up studies again, and end.")
    ] = False,
) -> None:
    """Take DICOM studies in, ask Triton, and send standard results back."""
    if example:
        typer.echo(EXAMPLE.read_text(encoding="utf-8"), nl=False)
        return
    if configuration is None:
        raise typer.BadParameter("name a configuration, as in `equipoise gateway gateway.toml`; see --example")
    from ..dicom.rules import Rules
    from .service import Gateway, until_signalled
    from .store import Store

    settings = load_settings(configuration)
    if check:
        Rules.load(settings.rules)
        check_files(settings)
        typer.echo("the configuration can be used")
        return
    if conformance:
        from .conformance import statement

        typer.echo(statement(settings), nl=False)
        return
    if status or retry_dead:
        store = Store(settings.directory / "gateway.db")
        typer.echo(f"{store.revive()} tried again" if retry_dead else json.dumps(store.counts()))
        store.close()
        return
    service = Gateway(settings)
    until_signalled(service)
    service.run()
