"""Options that several verbs share: one spelling, one meaning, one help text."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from ..transport import Tls

T = TypeVar("T")

Url = Annotated[str, typer.Option("--url", help="host:port of the server's gRPC service.")]
Spacing = Annotated[
    str | None,
    typer.Option("--spacing", help="Voxel spacing in mm for files that do not state their own, as in 1,1,1.2."),
]
FileTimeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds per file.")]
PacsTimeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds without an answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Encrypt = Annotated[bool, typer.Option("--tls", help="Encrypt; trusts the system's authorities.")]
TlsRoot = Annotated[Path | None, typer.Option("--tls-root", help="PEM file of the authority to trust; encrypts.")]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="PEM file of this client's certificate.")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM file of its key.")]


def shown(items: Iterable[T], total: int, what: str, quiet: bool) -> Iterable[T]:
    """The items, with a progress bar on stderr, on a terminal."""
    if quiet or not sys.stderr.isatty():
        return items
    return track(items, what, total, console=Console(stderr=True), transient=True)


def encryption(encrypt: bool, root: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """What the four options ask for; None: no encryption. Raises InvalidInput."""
    wanted = encrypt or any(path is not None for path in (root, certificate, key))
    return Tls(root, certificate, key) if wanted else None


def parse_spacing(text: str | None) -> tuple[float, ...] | None:
    """`"1,1,1.2"` → mm. Raises typer.BadParameter."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}; expected millimetres with commas, as in 1,1,1.2") from error
    if not all(0.0 < mm < float("inf") for mm in numbers):
        raise typer.BadParameter(f"{text!r}; expected millimetres above 0")
    return numbers
