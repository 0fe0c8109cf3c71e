"""The verbs `equipoise publish`, `promote`, `rollback` and `releases`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import DeployError, ReleaseError
from .loading import verified_copy
from .promotion import Outcome, Wish, reload
from .promotion import promote as put_into_service
from .promotion import rollback as put_back
from .publishing import find_pair
from .publishing import publish as make_release
from .release import SIGNATURE, read_release
from .shadow import largest_shift
from .signing import NEW_KEY
from .store import Store

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of releases; made where it is not there.")]
TrustOption = Annotated[Path | None, typer.Option(help="Public key (PEM) that a release must be signed with.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ByOption = Annotated[str | None, typer.Option(help="Who decides, for the log. Default: user and host.")]
ReloadOption = Annotated[
    str | None,
    typer.Option("--reload", help="Process id or systemd unit of an `equipoise serve` that is to take it up."),
]


publish_verb = typer.Typer()


@publish_verb.command(
    epilog=f"""[bold]Examples[/]

equipoise publish model_repository/hippocampus --store /srv/equipoise --sign release.key --report hippocampus.html

equipoise publish model_repository:pneumonia --store /srv/equipoise

A pair of keys: {NEW_KEY}"""
)
def publish(
    pair: Annotated[str, typer.Argument(help="Folder of a published model, or REPOSITORY:NAME.", show_default=False)],
    store: StoreOption,
    sign: Annotated[Path | None, typer.Option(help="Private key (PEM) to sign the release with.")] = None,
    report: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Calibration report, to be kept with it.")
    ] = None,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a release of a model: an unchangeable copy of it and its samplers, with the digest of every file.

    It is not in service yet: see `equipoise promote`.
    """

    def run() -> dict[str, Any]:
        repository, name = find_pair(pair)
        release = make_release(repository, name, Store(store), sign, report, by)
        folder = Store(store).folder(name, release.version)
        return {**release.document(), "digest": release.digest, "folder": str(folder), "signed": _signed(folder)}

    def show(done: dict[str, Any]) -> None:
        signed = "signed" if done["signed"] else "not signed"
        typer.echo(f"{done['name']} {done['version']}: {len(done['files'])} files, {signed}, {done['folder']}")

    _carry_out(run, show, as_json)


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
    cases: Annotated[
        Path | None, typer.Option(help="Folder of recent cases: both versions are served and compared on them.")
    ] = None,
    spacing: Annotated[str | None, typer.Option(help="mm of cases that do not state their own, as in 1,1,1.")] = None,
    at_most: Annotated[int, typer.Option(min=0, help="Cases that may go from review to accept.")] = 0,
    accept_changes: Annotated[
        str | None, typer.Option(metavar="REASON", help="Why more may, or why nothing is compared; it is logged.")
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
    wish = Wish(trust, cases, spacing, at_most, accept_changes, without_policy, by)
    _carry_out(lambda: _told(put_into_service(Store(store), model, wish), server), _show_outcome, as_json)


rollback_verb = typer.Typer()


@rollback_verb.command(
    epilog="""[bold]Example[/]

equipoise rollback hippocampus --store /srv/equipoise --reason "flipped labels in study 7" --reload equipoise.service"""
)
def rollback(
    name: Annotated[str, typer.Argument(help="The public model.", show_default=False)],
    store: StoreOption,
    reason: Annotated[str | None, typer.Option(help="Why; it is logged.")] = None,
    trust: TrustOption = None,
    by: ByOption = None,
    server: ReloadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the version back that was in service before this one. A second time goes back further."""
    wish = Wish(trust=trust, accept_changes=reason, by=by)
    _carry_out(lambda: _told(put_back(Store(store), name, wish), server), _show_outcome, as_json)


releases_verb = typer.Typer()


@releases_verb.command(
    epilog="""[bold]Examples[/]

equipoise releases --store /srv/equipoise

equipoise releases --store /srv/equipoise --trust release.pub   [dim]# every file of what is in service[/]

equipoise releases --store /srv/equipoise --trust release.pub --stage /run/models   [dim]# then mount it read-only[/]"""
)
def releases(
    store: StoreOption,
    verify: Annotated[bool, typer.Option("--verify", help="Verify every file of what is in service.")] = False,
    trust: TrustOption = None,
    stage: Annotated[
        Path | None,
        typer.Option(help="Leave the verified copy in this new folder, for a Triton that is started elsewhere."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the releases of a store and what is in service; verify it, or hand a verified copy to another server."""

    def run() -> dict[str, Any]:
        place = Store(store)
        if not store.is_dir():
            raise ReleaseError(f"{store} is not there; `equipoise publish` makes a store")
        generation = place.generation()
        listed = []
        for name in place.names():
            chosen = generation.models.get(name)
            for version in place.versions(name):
                release = read_release(place.folder(name, version))
                listed.append(
                    {
                        "name": name,
                        "version": version,
                        "in_service": chosen is not None and chosen.version == version,
                        "signed": _signed(place.folder(name, version)),
                        "model_digest": release.model_digest,
                        "policy_digest": release.policy_digest,
                        "published_at": release.published_at,
                        "published_by": release.published_by,
                    }
                )
        if stage is not None:
            if stage.exists():
                raise ReleaseError(f"{stage} is there already; name a folder that is not, nothing is overwritten")
            verified_copy(place.current, stage, trust)
        elif verify or trust is not None:
            with tempfile.TemporaryDirectory() as scratch:
                verified_copy(place.current, Path(scratch) / "copy", trust)
        return {
            "generation": generation.number,
            "releases": listed,
            "verified": verify or trust is not None or stage is not None,
            "staged": str(stage) if stage else None,
        }

    _carry_out(run, _show_releases, as_json)


def _carry_out(run: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None], as_json: bool) -> None:
    try:
        done = run()
    except (DeployError, OSError) as error:  # a full disk, a folder of somebody else's
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(done, indent=1, allow_nan=False))
    else:
        show(done)
    if done.get("refused"):
        raise typer.Exit(1)


def _told(outcome: Outcome, server: str | None) -> dict[str, Any]:
    told = reload(server) if server is not None and outcome.generation is not None else None
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
        "reload": told,
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
                "[bold red]nobody would look at it any more[/]" if pair["loosened"] else "",
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
        console.print(done["reload"] or "a running server takes it up when it is reloaded (SIGHUP)", highlight=False)


def _both(before: float | None, after: float | None) -> str:
    return " → ".join("–" if value is None else f"{value:.4g}" for value in (before, after))


def _show_releases(done: dict[str, Any]) -> None:
    table = Table(title=f"Generation {done['generation']}", title_justify="left")
    for heading in ("model", "version", "in service", "signed", "policy", "published"):
        table.add_column(heading)
    for each in done["releases"]:
        table.add_row(
            each["name"], str(each["version"]), "yes" if each["in_service"] else "", "yes" if each["signed"] else "",
            (each["policy_digest"] or "none")[:12], f"{each['published_at']} by {each['published_by']}",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 160).print(table)
    if done["verified"]:
        typer.echo(
            f"every file in service is what was published{'; copied to ' + done['staged'] if done['staged'] else ''}"
        )


def _signed(folder: Path) -> bool:
    return (folder / SIGNATURE).is_file()
