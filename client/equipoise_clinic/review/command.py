"""The verb `equipoise review`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from ..gateway.settings import load_settings

EPILOG = """[bold]Examples[/]

equipoise review gateway.toml --new-reviewer dr.who   [dim]# prints a token, once[/]

equipoise review gateway.toml   [dim]# the worklist of that gateway, on http://127.0.0.1:8044[/]

equipoise review gateway.toml --port 0 --host 127.0.0.1

By default it can be reached from this machine only. For other machines put a proxy with TLS and authentication
in front of it (origin, proxy_header). Verdicts are written to the audit log, see `equipoise audit monitor`."""


def review(
    configuration: Annotated[Path, typer.Argument(help="The gateway's TOML file.", show_default=False)],
    new_reviewer: Annotated[str | None, typer.Option(help="Print a new token for this name, and exit.")] = None,
    host: Annotated[str | None, typer.Option(help="Instead of the configured address.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Instead of the configured port; 0: any free one.")
    ] = None,
) -> None:
    """Show the cases that need an expert, most uncertain first, and record verdicts."""
    from ..gateway.store import Store
    from ..http_server import listen
    from .identity import Doorkeeper, Reviewers
    from .server import address, server
    from .worklist import Worklist

    settings = load_settings(configuration)
    settings.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    reviewers = Reviewers(settings.directory / "reviewers.json")
    if new_reviewer is not None:
        typer.echo(reviewers.add(new_reviewer))
        return
    chosen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    page = replace(settings.review, **chosen)
    settings = replace(settings, review=page)
    store = Store(settings.directory / "gateway.db")
    try:
        with listen("review", page.host, page.port) as listening:
            worklist = server(page, Worklist(settings, store), Doorkeeper(page, reviewers), listening)
            for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn hands a signal on to this handler when it has ended
                signal.signal(name, lambda *_: setattr(worklist, "should_exit", True))
            typer.echo(f"{address(listening)}/")
            worklist.run(sockets=[listening])
    finally:
        store.close()
