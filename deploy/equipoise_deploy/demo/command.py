"""The verb `equipoise demo`: what `make demo` runs, where there is no `make`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import DeployError
from .__main__ import main

EPILOG = """[bold]Example[/]

equipoise demo /opt/equipoise/models --out /tmp/demo

Exit code: 0 all is as it should be, 1 not."""


def demo(
    repository: Annotated[Path, typer.Argument(help="Model repository with the reference models.")] = Path(
        "model_repository"
    ),
    out: Annotated[Path, typer.Option(help="Folder for inputs, pictures and index.html.")] = Path("build/demo"),
) -> None:
    """Serve the three reference models and decide on real images that come with the installed packages."""
    try:
        code = main(repository, out)
    except DeployError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    raise typer.Exit(code)
