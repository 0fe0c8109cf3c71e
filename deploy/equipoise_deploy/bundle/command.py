"""The verb `equipoise bundle`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..cli import exits_on
from .installing import install_bundle
from .making import EXTRAS, make_bundle
from .manifest import unpack

EPILOG = """[bold]Examples[/]

equipoise bundle make equipoise.tar --repository /srv/equipoise --sign release.key   [dim]# in a clone, on the net[/]

equipoise bundle make equipoise.tar --image equipoise/server --image equipoise/gateway   [dim]# with images[/]

equipoise bundle verify equipoise.tar --trust release.pub

equipoise bundle install equipoise.tar --into /opt/equipoise --trust release.pub   [dim]# without any network[/]

/opt/equipoise/venv/bin/equipoise demo /opt/equipoise/models --out /tmp/demo

The first machine without a network has no `equipoise` yet. Compare the archive's SHA-256 (`make` prints it) by another
channel, then: tar -xf equipoise.tar wheels; python3 -m venv boot;
boot/bin/pip install --no-index --no-deps wheels/*.whl; boot/bin/equipoise bundle install …

Exit code: 0 done, 1 refused or failed, 2 wrong usage."""


class Action(str, Enum):
    """What to do with the archive."""

    MAKE = "make"
    VERIFY = "verify"
    INSTALL = "install"


def bundle(
    action: Annotated[Action, typer.Argument(show_default=False)],
    archive: Annotated[Path, typer.Argument(help="The archive, a tar.", dir_okay=False, show_default=False)],
    repository: Annotated[
        Path, typer.Option(help="make: a model repository, or a store: its releases in service.")
    ] = Path("model_repository"),
    sign: Annotated[Path | None, typer.Option(help="make: private key (PEM).")] = None,
    wheels: Annotated[
        Path | None, typer.Option(help="make: folder with all wheels. Default: fetched as deploy/locks pins them.")
    ] = None,
    extras: Annotated[str, typer.Option(help="make: extras of Equipoise to bundle.")] = ",".join(EXTRAS),
    image: Annotated[
        list[str] | None,
        typer.Option(help="make: container image of podman's to bundle as an OCI archive; may be repeated."),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="Public key (PEM) that the bundle, or a store, must be signed with.")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="install: a new folder.")] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="install: without --trust, on its digests alone.")
    ] = False,
    python: Annotated[Path | None, typer.Option(help="install: interpreter to use. Default: this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Put everything that a machine without a network needs into one archive; verify it; install from it."""
    if action is Action.INSTALL and into is None:
        raise typer.BadParameter("install needs --into")
    if action is Action.INSTALL and trust is None and not unsigned:
        raise typer.BadParameter("install needs --trust PUBLIC_KEY; or --unsigned, if you know where it comes from")
    with exits_on(OSError):  # a full disk, a folder of somebody else's
        if action is Action.MAKE:
            report = _made(archive, repository, wheels, sign, extras, trust, image or ())
        elif action is Action.VERIFY:
            report = _verified(archive, trust)
        else:
            assert into is not None
            report = _installed(archive, into, trust, python)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        for key, value in report.items():
            typer.echo(f"{key}: {value}")


def _made(
    archive: Path,
    repository: Path,
    wheels: Path | None,
    sign: Path | None,
    extras: str,
    trust: Path | None,
    images: Sequence[str],
) -> dict[str, Any]:
    made = make_bundle(archive, repository, wheels, sign, tuple(filter(None, extras.split(","))), trust, images)
    return {
        "bundle": str(made.path),
        "sha256": made.sha256,
        "bytes": made.path.stat().st_size,
        "entries": len(made.manifest.files),
        "packages": sum(name.startswith("wheels/") for name in made.manifest.files),
        "signed": made.signed,
    }


def _verified(archive: Path, trust: Path | None) -> dict[str, Any]:
    verified = unpack(archive, trust=trust)
    manifest = verified.manifest
    return {
        "bundle": str(archive),
        "whole": True,
        "entries": len(manifest.files),
        "equipoise": manifest.equipoise,
        "made for": f"Python {manifest.python} on {manifest.machine}",
        "signature": "holds" if verified.trusted else "not checked (--trust)" if verified.signed else "none",
    }


def _installed(archive: Path, into: Path, trust: Path | None, python: Path | None) -> dict[str, Any]:
    done = install_bundle(archive, into, trust, python)
    return {
        "installed": str(done.folder),
        "packages": done.packages,
        "as listed in": str(done.folder / "sbom.cdx.json"),
        "signature": "holds" if done.verified.trusted else "not checked",
        "start": f"{done.python.with_name('equipoise')} serve {done.serve}",
    }
