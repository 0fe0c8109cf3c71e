"""The verbs `equipoise publish` and `releases`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..cli import exits_on
from ..errors import ReleaseError
from ..gpu_memory import gpu_limits, parse_bytes
from .loading import verified_copy
from .publishing import find_pair, make_release
from .release import SIGNATURE, read_release
from .signing import NEW_KEY
from .store import Store

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of releases; made if it does not exist.")]
TrustOption = Annotated[Path | None, typer.Option(help="Public key (PEM) that a release must be signed with.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ByOption = Annotated[str | None, typer.Option(help="Who decides, for the log. Default: user and host.")]


publish_verb = typer.Typer()


@publish_verb.command(
    epilog=f"""[bold]Examples[/]

equipoise publish model_repository/hippocampus --store /srv/equipoise --sign release.key --report hippocampus.html

equipoise publish model_repository:pneumonia --store /srv/equipoise --gpu-memory 8G   [dim]# of a GPU that it shares[/]

A pair of keys: {NEW_KEY}"""
)
def publish(
    pair: Annotated[str, typer.Argument(help="Folder of a published model, or REPOSITORY:NAME.", show_default=False)],
    store: StoreOption,
    sign: Annotated[Path | None, typer.Option(help="Private key (PEM) to sign the release with.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Calibration report; its pictures of cases are left out."),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            help="What the model may take of a GPU's memory, such as 24G: all of it, or its part where several models "
            "are served. Sets how many images share a run. Default: as exported, for 24G."
        ),
    ] = None,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a release of a model: a read-only copy of it and its samplers, with the digest of every file.

    It is not in service yet: see `equipoise promote`.
    """

    def run() -> dict[str, Any]:
        repository, name = find_pair(pair)
        release = make_release(repository, name, Store(store), sign, report, by, memory)
        folder = Store(store).folder(name, release.version)
        limits = None if memory is None else gpu_limits(folder, name, memory)
        if limits is not None and not as_json:
            typer.echo(str(limits))
        done = {**release.document(), "digest": release.digest, "folder": str(folder), "signed": _signed(folder)}
        return {**done, "gpu": limits.document()} if limits is not None else done

    try:
        memory = None if gpu_memory is None else parse_bytes(gpu_memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gpu-memory") from error

    def show(done: dict[str, Any]) -> None:
        signed = "signed" if done["signed"] else "not signed"
        typer.echo(f"{done['name']} {done['version']}: {len(done['files'])} files, {signed}, {done['folder']}")

    carry_out(run, show, as_json)


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
    """List the releases of a store and those in service; verify them, or make a verified copy for another server."""

    def run() -> dict[str, Any]:
        place = Store(store)
        if not store.is_dir():
            raise ReleaseError(f"{store} does not exist; `equipoise publish` makes a store")
        generation = place.generation()
        listed = []
        for name in place.names():
            served = generation.models.get(name)
            for version in place.versions(name):
                release = read_release(place.folder(name, version))
                listed.append(
                    {
                        "name": name,
                        "version": version,
                        "in_service": served is not None and served.version == version,
                        "signed": _signed(place.folder(name, version)),
                        "model_digest": release.model_digest,
                        "policy_digest": release.policy_digest,
                        "published_at": release.published_at,
                        "published_by": release.published_by,
                    }
                )
        if stage is not None:
            if stage.exists():
                raise ReleaseError(f"{stage} already exists and is not overwritten; give a new folder")
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

    carry_out(run, _show_releases, as_json)


def carry_out(run: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None], as_json: bool) -> None:
    with exits_on(OSError):  # a full disk, a folder of somebody else's
        done = run()
    if as_json:
        typer.echo(json.dumps(done, indent=1, allow_nan=False))
    else:
        show(done)
    if done.get("refused"):
        raise typer.Exit(1)


def _show_releases(done: dict[str, Any]) -> None:
    headings = ("model", "version", "in service", "signed", "policy", "published")
    table = Table(*headings, title=f"Generation {done['generation']}", title_justify="left")
    for each in done["releases"]:
        table.add_row(
            each["name"], str(each["version"]), "yes" if each["in_service"] else "", "yes" if each["signed"] else "",
            (each["policy_digest"] or "none")[:12], f"{each['published_at']} by {each['published_by']}",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 160).print(table)
    if done["verified"]:
        typer.echo(f"every file in service is as published{'; copied to ' + done['staged'] if done['staged'] else ''}")


def _signed(folder: Path) -> bool:
    return (folder / SIGNATURE).is_file()
