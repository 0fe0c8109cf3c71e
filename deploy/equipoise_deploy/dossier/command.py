"""The verb `equipoise dossier`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_client import __version__
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..cli import exits_on
from ..errors import DeployError
from .cases import cases, write_cases
from .papers import Paper, papers
from .sources import Sources, read_sources

FORMAT = "equipoise-dossier/1"
SHORTEST_KEY = 16

DISCLAIMER = (
    "Statements of fact, each with its source. Nothing here claims conformity with a regulation or a standard; "
    "Equipoise is not a medical device, and nothing in it has been validated clinically."
)

dossier_verb = typer.Typer()


@dossier_verb.command(
    epilog="""[bold]Examples[/]

equipoise dossier hippocampus --repository model_repository --into dossier

equipoise dossier hippocampus --repository store/current --store store --gateway gateway.toml --sbom sbom.cdx.json

equipoise dossier hippocampus --repository store/current --audit decisions.jsonl --cases-key cases.key --into dossier"""
)
def dossier(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The public model.", show_default=False)],
    repository: Annotated[Path, typer.Option(help="Folder of published models.")] = Path("model_repository"),
    into: Annotated[Path, typer.Option(help="Folder for the papers; made if it does not exist.")] = Path("dossier"),
    store: Annotated[Path | None, typer.Option(help="Folder of releases, whose log says what was changed.")] = None,
    audit: Annotated[Path | None, typer.Option(help="Log of decisions and verdicts; default: the gateway's.")] = None,
    gateway: Annotated[
        Path | None, typer.Option(help="gateway.toml: retention, oversight, what an alarm does.")
    ] = None,
    hazards: Annotated[Path | None, typer.Option(help="HAZARDS.md; default: that of this checkout.")] = None,
    sbom: Annotated[Path | None, typer.Option(help="CycloneDX bill of materials, as a bundle holds it.")] = None,
    cases_key: Annotated[
        Path | None,
        typer.Option(
            help="Also write the log's cases as a table (CSV), under pseudonyms made with the key in this file."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON document as well.")] = False,
) -> None:
    """Write the papers for the file: model card, change control plan, record keeping, monitoring plan, hazards.

    Every statement names its source. What no source says is listed as not known, with what would state it.
    """
    with exits_on():
        sources = read_sources(name, repository, store=store, audit=audit, gateway=gateway, hazards=hazards, sbom=sbom)
        written = papers(sources)
        document = _document(sources, written)
        into.mkdir(parents=True, exist_ok=True)
        page, data = into / f"{name}.dossier.html", into / f"{name}.dossier.json"
        page.write_text(_page(document), encoding="utf-8")
        data.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        files = [page, data]
        if cases_key is not None:
            files.append(_cases(sources, cases_key, into / f"{name}.cases.csv"))
    if as_json:
        typer.echo(json.dumps(document))
        return
    missing = [each.what for paper in written for each in paper.statements if not each.source]
    for file in files:
        typer.echo(file)
    if missing:
        typer.echo(f"not known, and listed so: {', '.join(missing)}")


def _cases(sources: Sources, key_file: Path, path: Path) -> Path:
    if sources.decisions is None:
        raise DeployError("--cases-key needs the log of decisions: give --audit")
    if sources.decisions.faults:
        raise DeployError(f"the log is damaged, so no cases are written: {sources.decisions.faults[0]}")
    try:
        key = key_file.read_bytes().strip()
    except OSError as error:
        raise DeployError(f"{key_file} cannot be read: {error.strerror}") from error
    if len(key) < SHORTEST_KEY:
        raise DeployError(f"{key_file} holds {len(key)} bytes; expected at least {SHORTEST_KEY}: openssl rand -hex 32")
    write_cases(path, cases(sources.decisions.entries, sources.name, key))
    return path


def _document(sources: Sources, written: tuple[Paper, ...]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": sources.name,
        "equipoise": __version__,
        "disclaimer": DISCLAIMER,
        "papers": {
            paper.key: {
                "title": paper.title,
                "about": paper.about,
                "statements": [each.document() for each in paper.statements],
            }
            for paper in written
        },
        "sources": sources.digests,
    }


def _page(document: dict[str, Any]) -> str:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return pages.get_template("page.html.jinja").render(document)
