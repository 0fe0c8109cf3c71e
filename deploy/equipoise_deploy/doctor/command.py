"""The verb `equipoise doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..ports import USUAL_PORTS, Ports
from .checks import MACHINE_CHECKS, PROOF_CHECKS, SERVER_CHECKS
from .results import CheckResult, Status, Subject, as_document, examine

EPILOG = """[bold]Examples[/]

equipoise doctor --repository /srv/equipoise/current --trust release.pub   [dim]# before going live[/]

equipoise doctor --repository /srv/equipoise/current --user equipoise --tls-cert proxy.pem --tls-key proxy.key

equipoise doctor --url localhost:8001 --record-baseline baseline.json   [dim]# in good health[/]

equipoise doctor --url localhost:8001 --http localhost:8000 --metrics localhost:8002 --baseline baseline.json --json

equipoise doctor --repository /srv/equipoise/current --url localhost:8001 --prove   [dim]# before the first patient[/]

Exit code: 0 no failure (a person judges warnings), 1 a failure, or with --strict a warning, 2 wrong usage.
It contacts Triton on the server's machine and nothing else."""

_COLOUR = {Status.OK: "green", Status.SKIPPED: "dim", Status.WARNING: "yellow", Status.FAILURE: "bold red"}


def doctor(
    repository: Annotated[Path, typer.Option(help="What is or will be served.")] = Path("model_repository"),
    url: Annotated[
        str | None, typer.Option(help="host:port of a running server's gRPC service: examine it too.")
    ] = None,
    http: Annotated[str | None, typer.Option(help="Its HTTP service, host:port.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Its metrics, host:port.")] = None,
    pid: Annotated[int | None, typer.Option(help="Its process, where its ports do not show it.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Compare latency and variance with this file.")
    ] = None,
    record_baseline: Annotated[Path | None, typer.Option(dir_okay=False, help="Write such a file.")] = None,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Repeat the export's proof: each sampler must answer as the network did."),
    ] = False,
    trust: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Public key (PEM) that releases must be signed with."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The proxy's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    user: Annotated[str | None, typer.Option(help="User that the service runs as.")] = None,
    audit_log: Annotated[Path | None, typer.Option(help="Where decisions are recorded.")] = None,
    triton_release: Annotated[
        str | None, typer.Option(metavar="YY.MM", help="The container's release, where it is not visible from here.")
    ] = None,
    grpc_port: Annotated[int, typer.Option(help="That the server will listen on.")] = USUAL_PORTS.grpc,
    http_port: Annotated[int, typer.Option(help="That the server will listen on.")] = USUAL_PORTS.http,
    metrics_port: Annotated[int, typer.Option(help="That the server will listen on.")] = USUAL_PORTS.metrics,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failures.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine a machine before it goes live, and a server while it runs."""
    addresses = {"--url": url, "--http": http, "--metrics": metrics}
    for option, address in addresses.items():
        if address is not None and not address.rpartition(":")[2].isdigit():
            raise typer.BadParameter(f"{option} {address!r}; expected host:port, as in localhost:8001")
    if url is None and any((http, metrics, baseline, record_baseline, prove)):
        raise typer.BadParameter(
            "--http, --metrics, --baseline, --record-baseline and --prove are about a running server: give --url"
        )
    if triton_release is not None and not all(part.isdigit() for part in (*triton_release.split("."), "")[:2]):
        raise typer.BadParameter(f"--triton-release {triton_release!r}; expected year and month, as in 26.07")
    subject = Subject(
        repository, Ports(grpc_port, http_port, metrics_port), trust, tls_cert, tls_key, user, audit_log, url, http,
        metrics, pid, triton_release, baseline, record_baseline,
    )  # fmt: skip
    checks = (*MACHINE_CHECKS, *(SERVER_CHECKS if subject.live else ()), *(PROOF_CHECKS if prove else ()))
    results = list(examine(subject, checks))
    if as_json:
        typer.echo(json.dumps(as_document(results), indent=1))
    else:
        _show(results)
    bad = {Status.FAILURE, Status.WARNING} if strict else {Status.FAILURE}
    if any(result.status in bad for result in results):
        raise typer.Exit(1)


def _show(results: list[CheckResult]) -> None:
    table = Table(title="Examination", title_justify="left")
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", ""))
    for each in results:
        state = f"[{_COLOUR[each.status]}]{each.status.value}[/]"
        table.add_row(each.check, state, escape(each.found), escape(each.remedy))
    counts = as_document(results)["counts"]
    table.caption = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    Console(width=None if Console().is_terminal else 160).print(table)
