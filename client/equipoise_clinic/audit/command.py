"""`equipoise audit`: verify, anchor, append and redact the log."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .anchor import parse_anchor
from .chain import append, entries, head, redact, verify
from .closing import open_again
from .entry import AuditError, Kind, Verdict
from .monitor import monitor
from .page import write_page
from .status import LIMIT

EPILOG = """[bold]Examples[/]

equipoise predict hippocampus brain.nii.gz --json | equipoise audit append decisions.jsonl

equipoise audit head decisions.jsonl --key audit.key > anchor.txt   [dim]# print it, or send it away[/]

equipoise audit verify decisions.jsonl --anchor anchor.txt --key audit.key

equipoise audit verdict decisions.jsonl --sequence 12 --by dr.who --verdict correct

equipoise audit redact decisions.jsonl --before 2025-01-01 --reason retention

equipoise audit monitor decisions.jsonl --report monitors.html   [dim]# does each policy keep its promises?[/]

equipoise audit open decisions.jsonl --model nuclei --by dr.who --reason "scanner repaired"   [dim]# after an alarm[/]

Exit code of verify: 0 whole, 1 something is wrong. Of monitor: 0 no alarm, 1 alarm."""


class Action(str, Enum):
    """What to do with the log."""

    VERIFY = "verify"
    HEAD = "head"
    APPEND = "append"
    VERDICT = "verdict"
    REDACT = "redact"
    MONITOR = "monitor"
    OPEN = "open"


def audit(
    action: Annotated[Action, typer.Argument(help="What to do.")],
    log: Annotated[Path, typer.Argument(help="The JSONL file; the log's first, where it has several.")],
    anchor: Annotated[Path | None, typer.Option(help="verify: what `head` printed earlier.")] = None,
    key: Annotated[Path | None, typer.Option(help="File with the key that signs anchors.")] = None,
    sequence: Annotated[int | None, typer.Option(min=1, help="verdict: of which decision.")] = None,
    by: Annotated[str | None, typer.Option(help="verdict, open: who, as authenticated where it came in.")] = None,
    verdict: Annotated[Verdict | None, typer.Option(help="verdict: what they say.")] = None,
    before: Annotated[str | None, typer.Option(help="redact: delete contents older than this (2025-01-31).")] = None,
    reason: Annotated[str | None, typer.Option(help="redact, open: why.")] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(help="verdict: the true volume in mL that the expert measured, as CLASS=mL or total=mL; repeat."),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(help="verdict: the true number of a regression, as TARGET=NUMBER in its unit; repeat."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="open: the model whose accept an alarm has closed.")] = None,
    report: Annotated[Path | None, typer.Option(help="monitor: also write a page with plots (HTML).")] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0.0001, max=0.5, help="monitor: instead of the policies' own.")
    ] = None,
    every: Annotated[
        float, typer.Option(min=10, help="monitor: cases between false warnings, on average at least.")
    ] = 1000.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verifies the audit log, anchors its head, appends to it, and watches whether each policy keeps its promises.

    `append` reads what `equipoise predict --json` prints. `monitor` looks at errors among accepted cases, intervals,
    calibration, referrals and drift; after an alarm that closed accept, `open` opens it again.
    """
    secret = key.read_bytes().strip() if key else None
    if secret == b"":
        raise AuditError(f"{key} is empty; expected a key that signs anchors")
    if action is Action.VERIFY:
        _verify(log, anchor, secret, as_json)
    elif action is Action.HEAD:
        typer.echo(head(log, secret).text())
    elif action is Action.APPEND:
        _append(log, sys.stdin.read())
    elif action is Action.VERDICT:
        if sequence is None or by is None or verdict is None:
            raise typer.BadParameter("verdict needs --sequence, --by and --verdict")
        named = next((entry for entry in entries(log) if entry.sequence == sequence), None)
        if named is None or named.kind is not Kind.DECISION or named.body is None:
            raise AuditError(f"line {sequence} of {log.name} holds no decision; `sequence` in the log says which do")
        found = {
            "volume_ml": _stated("--volume", volume or (), named.body.get("volume_ml"), "mL", 0.0),
            "values": _stated("--value", value or (), named.body.get("values"), "NUMBER", -math.inf),
        }
        body = {"decision": sequence, "by": by, "verdict": verdict.value}
        append(log, Kind.VERDICT, body | {name: numbers for name, numbers in found.items() if numbers})
    elif action is Action.MONITOR:
        _monitor(log, every, alpha, report, as_json)
    elif action is Action.OPEN:
        if model is None or by is None or reason is None:
            raise typer.BadParameter("open needs --model, --by and --reason")
        typer.echo(f"{open_again(log, model, by, reason).model}: accept is open again; the monitors begin anew")
    else:
        if before is None or reason is None:
            raise typer.BadParameter("redact needs --before and --reason")
        done = redact(log, _date(before), reason)
        count = len(done.body["sequences"]) if done and done.body else 0
        typer.echo(f"{count} contents deleted")


def _verify(log: Path, anchor: Path | None, key: bytes | None, as_json: bool) -> None:
    expected = parse_anchor(anchor.read_text(encoding="utf-8", errors="replace"), key) if anchor else None
    faults = list(verify(log, expected))
    if as_json:
        listed = [{"line": fault.line, "what": fault.what} for fault in faults]
        typer.echo(json.dumps({"whole": not faults, "anchored": expected is not None, "findings": listed}))
    else:
        for fault in faults:
            typer.echo(fault.text(log))
        if not faults:
            Console().print(f"[green]whole[/]: {log.name}, {head(log).entries} lines")
            if expected is None:
                typer.echo("without --anchor a cut-off end cannot be seen: keep what `equipoise audit head` prints")
    if faults:
        raise typer.Exit(1)


def _monitor(log: Path, every: float, alpha: float | None, report: Path | None, as_json: bool) -> None:
    statuses = monitor(log, every, alpha) if report is None else write_page(report, log, every, alpha)
    if not statuses and not as_json:
        typer.echo(f"{log.name} holds no decision under a policy yet: nothing is watched")
    if as_json:
        typer.echo(json.dumps([each.document() for each in statuses]))
    for each in () if as_json else statuses:
        promised = "accepts nothing" if each.alpha is None else f"α = {each.alpha:g}"
        typer.echo(
            f"{each.model}, policy {each.policy[:12]}: {each.accepted} accepted, {each.marked} marked for an audit, "
            f"{each.waiting} of them without a verdict; {each.wrong} of {each.judged} wrong, {promised}"
        )
        for one in each.monitors:
            rate = "" if one.rate is None else f", {one.events} events where at most {one.rate:.1%} are expected"
            typer.echo(f"  {one.watched.value:12} {one.cases} cases{rate}; e-value {one.e_value:.3g} of {LIMIT:.0f}")
            if one.warning is not None:
                typer.echo(f"  WARNING since line {one.warning}: {one.watched.words}, by the evidence of late")
        if each.alarm is not None:
            typer.echo(
                f"ALARM at line {each.alarm}: {each.why}. Where no alarm closes accept (close_on_alarm of the gateway, "
                "`equipoise serve --close-on-alarm`), stop accepting: `equipoise rollback`, or promote it "
                "--without-policy. Find the cause, calibrate anew; `equipoise audit open` accepts again."
            )
    if any(each.alarm is not None for each in statuses):
        raise typer.Exit(1)


def _stated(
    option: str, stated: Iterable[str], decided: Mapping[str, Any] | None, unit: str, least: float
) -> dict[str, float]:
    """`total=3.4` → number by name. Raises BadParameter for a name that the decision does not have, or no number."""
    known = sorted(decided or {})
    found: dict[str, float] = {}
    for each in stated:
        name, _, number = each.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if name not in known or not (math.isfinite(found[name]) and found[name] >= least):
            raise typer.BadParameter(f"{option} {each}: expected NAME={unit} with one of {', '.join(known) or 'none'}")
    return found


def _append(log: Path, text: str) -> None:
    """Logs every decision, and says which answers are none: one that failed must not take the others with it."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AuditError("standard input is no JSON; expected what `equipoise predict --json` prints") from error
    answers = document if isinstance(document, list) else [document]
    without = []
    for index, answer in enumerate(answers):
        record = answer.get("record", answer) if isinstance(answer, dict) else None
        if not isinstance(record, dict) or "format" not in record:
            file = answer.get("file") if isinstance(answer, dict) else None
            without.append(f"entry {index}" + (f" ({file})" if file else ""))
            continue
        if record is not answer:  # the final route: the client may have held back what the server accepted
            record = {**record, "routed": {"route": answer.get("route"), "reason": answer.get("reason")}}
        append(log, Kind.DECISION, record)
    if without or not answers:
        raise AuditError(
            f"{', '.join(without) or 'standard input'} holds no record: only decisions are logged; "
            f"{len(answers) - len(without)} of {len(answers)} answers were"
        )


def _date(text: str) -> datetime:
    try:
        stated = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}; expected a date such as 2025-01-31") from error
    return stated if stated.tzinfo else stated.replace(tzinfo=timezone.utc)
