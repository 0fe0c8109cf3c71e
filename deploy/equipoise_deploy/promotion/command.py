"""The verbs `equipoise promote` and `rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..releases.command import ByOption, JsonOption, StoreOption, TrustOption, carry_out
from ..releases.store import Store
from .promotion import Outcome, PromotionRequest, reload
from .promotion import promote as put_into_service
from .promotion import rollback as put_back
from .shadow import largest_shift

ReloadOption = Annotated[
    str | None,
    typer.Option("--reload", help="Process id or systemd unit of an `equipoise serve` that is to reload."),
]


promote_verb = typer.Typer()


@promote_verb.command(
    epilog="""[bold]Examples[/]

equipoise promote hippocampus --store /srv/equipoise --cases last-week/ --trust release.pub

equipoise promote hippocampus@3 --store /srv/equipoise --cases last-week/ --reload equipoise.service

equipoise promote nuclei --store /srv/equipoise --accept-changes "no cases yet, agreed with Dr. Who"

Exit code: 0 in service, 1 refused or failed, 2 wrong usage."""
)
def promote(
    model: Annotated[str, typer.Argument(help="NAME for its newest release, or NAME@VERSION.", show_default=False)],
    store: StoreOption,
    cases: Annotated[Path | None, typer.Option(help="Folder of recent cases, to compare both versions on.")] = None,
    spacing: Annotated[str | None, typer.Option(help="mm of cases that do not state their own, as in 1,1,1.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Which group the cases are of, where the policy is certified by group.")
    ] = None,
    at_most: Annotated[int, typer.Option(min=0, help="Cases that may go from review to accept.")] = 0,
    accept_changes: Annotated[
        str | None, typer.Option(metavar="REASON", help="Why more may, or why nothing is compared; logged.")
    ] = None,
    without_policy: Annotated[
        bool, typer.Option("--without-policy", help="Promote a model without a policy: everything goes to review.")
    ] = False,
    trust: TrustOption = None,
    by: ByOption = None,
    server: ReloadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a release into service, if its proof, its policy and a comparison on recent cases allow it.

    One rename switches STORE/current, NAME and its samplers together. STORE/log.jsonl has every decision.
    """
    request = PromotionRequest(trust, cases, spacing, at_most, accept_changes, without_policy, by, group)
    carry_out(lambda: _report(put_into_service(Store(store), model, request), server), _show_outcome, as_json)


rollback_verb = typer.Typer()


@rollback_verb.command(
    epilog="""[bold]Example[/]

equipoise rollback hippocampus --store /srv/equipoise --reason "flipped labels in study 7" --reload equipoise.service"""
)
def rollback(
    name: Annotated[str, typer.Argument(help="The public model.", show_default=False)],
    store: StoreOption,
    reason: Annotated[str | None, typer.Option(help="Why; logged.")] = None,
    trust: TrustOption = None,
    by: ByOption = None,
    server: ReloadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the version back that was in service before this one. A second time goes back further."""
    request = PromotionRequest(trust=trust, accept_changes=reason, by=by)
    carry_out(lambda: _report(put_back(Store(store), name, request), server), _show_outcome, as_json)


def _report(outcome: Outcome, server: str | None) -> dict[str, Any]:
    reloaded = reload(server) if server is not None and outcome.generation is not None else None
    return {
        "model": outcome.name,
        "version": outcome.version,
        "before": outcome.before,
        "refused": not outcome.passed,
        "generation": outcome.generation.number if outcome.generation else None,
        "checks": [check.document() for check in outcome.checks],
        "cases": [{**vars(pair), "loosened": pair.loosened} for pair in outcome.comparison.pairs]
        if outcome.comparison
        else None,
        "largest_shift": dict(largest_shift(outcome.comparison.pairs)) if outcome.comparison else None,
        "reload": reloaded,
    }


def _show_outcome(done: dict[str, Any]) -> None:
    console = Console(width=None if Console().is_terminal else 160)
    if done["cases"] is not None:
        table = Table(
            title=f"{done['model']}: version {done['before']} against {done['version']}", title_justify="left"
        )
        for heading in ("case", "route", "score", "volume, mL", ""):
            table.add_column(heading, overflow="fold")
        for pair in done["cases"]:
            table.add_row(
                escape(pair["case"]),
                pair["after"] if pair["before"] == pair["after"] else f"{pair['before']} → {pair['after']}",
                _both(pair["score_before"], pair["score_after"]),
                _both(pair["volume_before"], pair["volume_after"]),
                "[bold red]no expert would see it any more[/]" if pair["loosened"] else "",
            )
        console.print(table)
    for check in done["checks"]:
        mark = (
            "[green]passed[/]" if check["passed"] else "[yellow]waived[/]" if check["waived"] else "[bold red]failed[/]"
        )
        console.print(f"{mark} {check['name']}: {escape(check['found'])}", highlight=False)
        if not check["passed"]:
            console.print(f"       {escape(check['waived'] or check['remedy'])}", highlight=False)
    if done["refused"]:
        console.print(f"[bold red]refused[/]: {done['model']} {done['before'] or ''} stays as it was", highlight=False)
    elif done["generation"] is None:
        console.print(f"{done['model']} {done['version']} is in service already", highlight=False)
    else:
        console.print(
            f"{done['model']} {done['version']} is current (generation {done['generation']})", highlight=False
        )
        console.print(done["reload"] or "reload a running server (SIGHUP) to serve it", highlight=False)


def _both(before: float | None, after: float | None) -> str:
    return " → ".join("–" if value is None else f"{value:.4g}" for value in (before, after))
