"""The verb `equipoise certs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .certs import CLIENT_DAYS, Made, make_certificates
from .errors import DeployError

EPILOG = """[bold]Examples[/]

equipoise certs --into certs --host localhost --host 127.0.0.1 --client gateway --client radiology

equipoise certs --into certs --client cardiology   [dim]# one more client of the same authority[/]

EQUIPOISE_CERTIFICATE=certs/server.bundle.pem EQUIPOISE_CLIENT_CA=certs/ca.pem haproxy -f deploy/haproxy/haproxy.cfg

equipoise predict nuclei cells.png --url localhost:8443 --tls-root certs/ca.pem --tls-cert certs/clients/gateway.pem \
--tls-key certs/clients/gateway.key"""


def certs_command(
    into: Annotated[Path, typer.Option(help="Folder; the authority that lies there is used again.")] = Path("certs"),
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address by which clients reach the front; the first names it.")
    ] = None,
    client: Annotated[list[str] | None, typer.Option(help="A client's name, as the audit log will show it.")] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="Lifetime of server and clients.")] = CLIENT_DAYS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make certificates to try mutual TLS with: FOR TESTS AND TRIALS, the authority's key lies unencrypted beside them.

    Nothing is overwritten. In production the hospital's own authority issues certificates, and withdraws them.
    """
    out, err = Console(), Console(stderr=True)
    try:
        made = make_certificates(into, host or (), client or (), days)
    except DeployError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps({"for_tests_only": True, "made": [_document(each) for each in made]}, indent=1))
        return
    table = Table(
        "role", "name", "certificate", "key", "until", title="For tests and trials only", title_justify="left"
    )
    for each in made:
        table.add_row(each.role, each.name, str(each.certificate), str(each.key), f"{each.expires:%Y-%m-%d}")
    out.print(table)


def _document(made: Made) -> dict[str, str]:
    return {
        "role": made.role,
        "name": made.name,
        "certificate": str(made.certificate),
        "key": str(made.key),
        "expires": made.expires.isoformat(),
    }
