"""`equipoise adapt`: what a user types, as values; the work is `adapt`'s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from equipoise_core.contract import ContractError
from equipoise_core.errors import InvalidRequest, SamplerFailure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..calibration.errors import CalibrationError
from ..calibration.options import LabelValues, Spacing
from ..calibration.reading import numbers
from .adapt import AdaptedSite
from .adapt import adapt as run
from .errors import AdaptationError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EXAMPLES = """
Examples:

    equipoise adapt chest --repository models --out sites/st-anna --data images/ --install

    equipoise adapt chest --repository models --out sites/st-anna --labelled first-month/ --install

    equipoise adapt chest --repository models --out sites/st-anna --labelled second-month/ --data lately/ --install

The model was calibrated elsewhere. At this site everything goes to review at first. The first call takes images without
labels; later ones take labelled cases as they arrive, consecutive ones or drawn at random, and open `accept` once they
show that few enough accepted cases are wrong. Further images can close it again, and never open it. --out keeps what
is known between calls: numbers and digests, no images and no names. Without --install the repository is left as it is.
"""


@app.command(epilog=_EXAMPLES)
def adapt(
    name: Annotated[str, typer.Argument(help="The public model.")],
    repository: Annotated[Path, typer.Option(help="The model repository, with NAME.calibration.json.")],
    out: Annotated[Path, typer.Option(help="The site's folder: state, policy and report; the same for every call.")],
    data: Annotated[Path | None, typer.Option(help="Images of the site, without labels.")] = None,
    labelled: Annotated[Path | None, typer.Option(help="Labelled cases of the site, as for calibrate.")] = None,
    site: Annotated[str | None, typer.Option(help="The site's name; the folder's by default.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Error among accepted cases, at most; as elsewhere.")] = None,
    delta: Annotated[float | None, typer.Option(help="Chance that this is ever not so, at most; as elsewhere.")] = None,
    spacing: Spacing = None,
    label_values: LabelValues = None,
    install: Annotated[bool, typer.Option("--install", help="Put the policy into the repository.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Moves a calibrated model to a new site: `accept` stays closed until labelled cases of that site open it."""
    try:
        found = run(
            name, repository=repository, folder=out, site=site, data=data, labelled=labelled, alpha=alpha, delta=delta,
            spacing=numbers(spacing) if spacing else None, label_values=label_values, install=install,
            progress=not as_json,
        )  # fmt: skip
    except (AdaptationError, CalibrationError, ContractError, InvalidRequest, SamplerFailure, OSError) as error:
        Console(stderr=True).print(f"[red]not adapted[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(found.document(), indent=1, allow_nan=False))
    else:
        _show(Console(), name, found, repository)


def _show(console: Console, name: str, found: AdaptedSite, repository: Path) -> None:
    document = found.document()
    console.print(f"[bold]accept[/bold]: {escape(document['accept'])}", highlight=False)
    if found.site.source.volume:
        console.print(f"[bold]volume intervals[/bold]: {escape(document['volume'])}", highlight=False)
    if found.site.source.outline:
        console.print(f"[bold]margins of outlines[/bold]: {escape(document['outline'])}", highlight=False)
    shown = Table("threshold", "accepts of images", "accepted", "wrong", "error at most", "open", title=found.site.name)
    growth = found.verdict.growth
    opened = range((growth.open or 0) + 1) if found.verdict.policy.guarantee and growth.open is not None else ()
    for number, each in enumerate(document["candidates"], 1):
        shown.add_row(
            f"{number}",
            f"{each['accepts_images']:.0%}",
            f"{each['accepted']}",
            f"{each['errors']}",
            f"{each['error_bounds'][1]:.1%}",
            "yes" if number - 1 in opened else "no",
        )
    console.print(shown)
    for why, count in found.skipped.items():
        console.print(f"{count} labelled cases do not count: {why}", highlight=False)
    where = f"in force in {repository}" if found.installed else "not in force: add --install"
    console.print(
        f"{name} at {found.site.name}: policy {found.verdict.policy.digest[:12]}, {where}; report: "
        f"{document['report']}",
        highlight=False,
        soft_wrap=True,
    )
