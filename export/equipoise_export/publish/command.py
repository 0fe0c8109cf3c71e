"""`equipoise migrate`: what a user types, as values; the work is `migrate`'s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from equipoise_core.contract import ContractError
from rich.console import Console
from rich.markup import escape

from ..errors import ExportError
from .migrate import migrate as run

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EXAMPLES = """
Example:

    equipoise migrate chest liver --repository models --into models_2

Exit code: 0 all are migrated, 1 one is not, 2 wrong usage.
"""


@app.command(epilog=_EXAMPLES)
def migrate(
    names: Annotated[list[str], typer.Argument(help="Public models.")],
    repository: Annotated[Path, typer.Option(help="The model repository of the earlier version; it stays as it is.")],
    into: Annotated[Path, typer.Option(help="The model repository to write into.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Writes model pairs of an earlier format in the format of this version, and says what could not be kept."""
    console, done, failed = Console(stderr=as_json), [], False
    for name in names:
        try:
            folder, lost = run(name, repository, into)
        except (ContractError, ExportError, OSError) as error:
            failed = True
            Console(stderr=True).print(f"[red]{name} not migrated[/red]: {escape(str(error))}", soft_wrap=True)
            continue
        done.append({"name": name, "folder": str(folder), "not_kept": lost})
        console.print(f"{name}: written to {folder}", highlight=False, soft_wrap=True)
        for each in lost:
            console.print(f"[yellow]not kept[/yellow]: {each}", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(done, indent=1))
    if failed:
        raise typer.Exit(1)
