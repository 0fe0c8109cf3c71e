"""The verb `equipoise load`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_client.cli.options import Encrypt, Json, TlsCert, TlsKey, TlsRoot, Url, encryption
from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import InvalidInput, ServerUnavailable
from equipoise_client.transport import Retry
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .analyzer import write_analyzer
from .arrivals import Arrivals
from .capacity import Capacity, find_capacity
from .engine import Plan, run
from .mix import Payload, Wish, build_mix
from .report import comparison, tables, verdicts, write_page
from .scrape import Account, between, scrape
from .slo import Objective, complete, parse_slo
from .tally import Tally, report_of

FORMAT = "equipoise-load/1"
MISSED = 3
"""Exit code where an objective was missed."""

SETTLING = 3.0
"""Seconds after the last answer within which a server has counted it."""

EPILOG = """[bold]Examples[/]

equipoise load pneumonia --rate 50 --duration 60 --image xray.dcm --slo p99=250ms,errors=0.1%

equipoise load hippocampus=1 pneumonia=4 --rate 20 --urgent 0.1 --out run.json --html run.html

equipoise load pneumonia --arrivals closed --concurrency 8 --samples 5 --samples 20

equipoise load pneumonia --arrivals closed --images-per-request 8

equipoise load pneumonia --find-capacity --slo p99=250ms,errors=0%,achieved=95% --duration 10

equipoise load --compare before.json after.json

Exit code: 0 done and every objective met, 1 failed, 2 wrong usage, 3 an objective was missed."""


def load(
    models: Annotated[
        list[str] | None, typer.Argument(help="Public models; NAME=WEIGHT for a mix.", show_default=False)
    ] = None,
    url: Url = "localhost:8001",
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second, all models together.")] = 10.0,
    duration: Annotated[float, typer.Option(min=0.1, help="Measured time in seconds.")] = 30.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before that, sent but not counted.")] = 3.0,
    arrivals: Annotated[
        Arrivals, typer.Option(help="Open loop (poisson, constant), or closed: the next one after an answer.")
    ] = Arrivals.POISSON,
    concurrency: Annotated[int, typer.Option(min=1, help="Closed loop: requests in flight.")] = 1,
    image: Annotated[list[Path] | None, typer.Option(help="Image files to send; default: a synthetic one.")] = None,
    samples: Annotated[list[int] | None, typer.Option(min=1, help="T; several: a mix. Default: the policy's.")] = None,
    per_request: Annotated[int, typer.Option("--images-per-request", min=1, help="Sampled together.")] = 1,
    urgent: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of urgent requests.")] = 0.0,
    output: Annotated[list[str] | None, typer.Option(help="Arrays to ask for, as mean; default: none.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one request, all tries included.")] = 10.0,
    tries: Annotated[int, typer.Option(min=1, help="How often to send a request if the server is too busy.")] = 1,
    connections: Annotated[int, typer.Option(min=1, help="TCP connections.")] = 4,
    seed: Annotated[int, typer.Option(help="Random seed of arrivals and mix.")] = 0,
    slo: Annotated[
        str | None,
        typer.Option(help="Objectives, as p99=250ms,errors=0.1%,achieved=95%; a time alone implies errors=1%."),
    ] = None,
    capacity: Annotated[
        bool, typer.Option("--find-capacity", help="Search for the highest rate that meets --slo, starting at --rate.")
    ] = False,
    metrics: Annotated[
        str | None, typer.Option(help="Triton's metrics; default http://HOST:8002/metrics, if that answers.")
    ] = None,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the report as JSON; for --compare.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report with plots here.")] = None,
    analyzer: Annotated[
        Path | None, typer.Option("--perf-analyzer", help="Write the same load for perf_analyzer into this folder.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two reports (JSON) to put side by side; sends nothing.")
    ] = None,
    tls: Encrypt = False,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Load-test a server, with latencies counted from when each request was due."""
    console = Console(stderr=as_json)
    if compare is not None:
        first, second = compare
        console.print(comparison(read_report(first), read_report(second), (first.name, second.name)))
        return
    if not models:
        raise typer.BadParameter("name at least one public model, as in `equipoise load pneumonia`")
    try:
        objectives = complete(parse_slo(slo or ""))
        encrypted = encryption(tls, tls_root, tls_cert, tls_key)
        plan = Plan(
            url,
            arrivals,
            rate,
            concurrency,
            warmup,
            duration,
            timeout,
            Retry(tries),
            connections,
            seed=seed,
            tls=encrypted,
        )
        wish = Wish(
            weights(models), tuple(image or ()), tuple(samples or ()), urgent, tuple(output or ()), timeout, per_request
        )
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from error
    if capacity and (not objectives or arrivals is Arrivals.CLOSED):
        raise typer.BadParameter("--find-capacity needs --slo and an open loop (--arrivals poisson or constant)")
    with UncertaintyClient(url, timeout=timeout, tls=encrypted) as client:
        payloads = build_mix(client, wish)
    if analyzer is not None:
        console.print("for perf_analyzer:", " ".join(write_analyzer(plan, payloads, analyzer)), soft_wrap=True)
    source = metrics or f"http://{url.rpartition(':')[0]}:8002/metrics"

    def trial(at: float) -> tuple[bool, dict[str, Any]]:
        report = measure(replace(plan, rate=at), payloads, objectives, source, metrics is not None)
        return all(objective.met(report) for objective in objectives), report

    if capacity:
        found = find_capacity(trial, rate)
        _show_capacity(found, console)
        report = {**found.report, "capacity_per_second": found.rate, "trials": [t[:2] for t in found.trials]}
        kept = found.rate > 0.0
    else:
        kept, report = trial(rate)
        console.print(tables(report))
    if objectives:
        console.print(verdicts(objectives, report))
    if html is not None:
        write_page(report, html)
    text = json.dumps(report, indent=1, allow_nan=False)
    if out is not None:
        out.write_text(f"{text}\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    if not kept:
        raise typer.Exit(MISSED)


def weights(models: Sequence[str]) -> dict[str, float]:
    """`NAME` or `NAME=WEIGHT` → name → weight. Raises InvalidInput."""
    found = {}
    for model in models:
        name, _, weight = model.partition("=")
        try:
            found[name] = float(weight or 1.0)
        except ValueError as error:
            raise InvalidInput(f"{model}: expected NAME or NAME=WEIGHT, as in pneumonia=4") from error
        if not 0.0 < found[name] < float("inf"):
            raise InvalidInput(f"{model}: a weight is a number above 0")
    return found


def read_report(path: Path) -> dict[str, Any]:
    """Raises InvalidInput where the file holds no report."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON: {type(error).__name__}") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise InvalidInput(f"{path} is not a report of `equipoise load --out` (format {FORMAT})")
    return report


def measure(
    plan: Plan, payloads: Sequence[Payload], objectives: Sequence[Objective], metrics: str, wanted: bool
) -> dict[str, Any]:
    """One run and its report.

    Args:
        wanted: the caller named the metrics' address, so their absence is an error.
    """
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = _account(metrics, wanted)
    tally = _watched(plan, payloads)
    after = None if before is None else _settled(metrics, before, payloads, tally.answered)
    open_loop = plan.arrivals is not Arrivals.CLOSED
    report = report_of(tally, [p.label for p in payloads], [p.weight for p in payloads], open_loop)
    return {
        "format": FORMAT,
        "begun": begun,
        "url": plan.url,
        "models": sorted({payload.model for payload in payloads}),
        "arrivals": plan.arrivals.value,
        "rate": plan.rate if open_loop else None,
        "concurrency": None if open_loop else plan.concurrency,
        "warmup": plan.warmup,
        "duration": plan.duration,
        "connections": plan.connections,
        "timeout": plan.timeout,
        "attempts": plan.retry.attempts,
        "seed": plan.seed,
        **report,
        "server": None if before is None or after is None else between(before, after),
        "objectives": [
            {"promise": str(each), "measured": each.measured(report), "kept": each.met(report)} for each in objectives
        ],
    }


def _settled(metrics: str, before: Account, payloads: Sequence[Payload], answered: int) -> Account | None:
    """The counters once the last answers are among them: Triton counts a request after it has answered it.

    None where the server died under the load. Behind a proxy one replica never counts them all: no more than
    `SETTLING` seconds are waited for.
    """
    models = {payload.model for payload in payloads}
    until = time.monotonic() + SETTLING
    while True:
        after = _account(metrics, wanted=False)
        counts = {} if after is None else between(before, after)
        counted = sum(counts[model]["requests"] for model in models & counts.keys())
        if after is None or counted >= answered or time.monotonic() > until:
            return after
        time.sleep(0.05)


def _account(metrics: str, wanted: bool) -> Account | None:
    try:
        return scrape(metrics)
    except ServerUnavailable:
        if wanted:
            raise
        return None


def _watched(plan: Plan, payloads: Sequence[Payload]) -> Tally:
    """The run, with a progress line on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        return run(plan, payloads)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        whole = plan.warmup + plan.duration
        task = progress.add_task("warming up", total=whole)

        def show(elapsed: float, tally: Tally, in_flight: int) -> None:
            p99 = tally.latency.get_value_at_percentile(99.0) / 1e3
            failed = tally.total - tally.answered
            words = f"{tally.answered} answered, {failed} failed, {in_flight} in flight, p99 {p99:.4g} ms"
            progress.update(task, completed=min(elapsed, whole), description=words if tally.total else "warming up")

        return run(plan, payloads, show)


def _show_capacity(found: Capacity, console: Console) -> None:
    table = Table("requests per second", "p99 ms", "errors", "met", title="search for capacity")
    for rate, held, report in found.trials:
        p99 = report["latency_ms"].get("p99")
        shown = ("–" if p99 is None else f"{p99:.4g}", f"{report['requests']['error_share']:.2%}")
        table.add_row(f"{rate:.4g}", *shown, "[green]yes[/]" if held else "[red]no[/]")
    console.print(table)
    console.print(f"capacity: {found.rate:.4g} requests per second" if found.rate else "no rate met the objectives")
