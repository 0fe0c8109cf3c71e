"""The verb `equipoise send`: DICOM files to a PACS."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_client.cli.options import PacsTimeout, TlsCert, TlsKey, TlsRoot, shown
from equipoise_client.errors import EquipoiseError, UnreadableImage

AUTHORIZATION = "EQUIPOISE_DICOMWEB_AUTHORIZATION"
"""Environment variable that holds the Authorization header. Every user of the machine can read a command line."""

EPILOG = f"""[bold]Examples[/]

equipoise send results/*.dcm --to https://pacs.hospital/dicom-web

equipoise send results/ --to dicom://PACS@10.1.2.3:104 --calling-aet EQUIPOISE

{AUTHORIZATION}="Bearer …" equipoise send results/ --to https://pacs.hospital/dicom-web

Exit code: 0 all are stored, 1 at least one is not, 2 wrong usage."""


def send(
    files: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them.", show_default=False)],
    to: Annotated[str, typer.Option(help="https://host/dicom-web (STOW-RS) or dicom://AET@host:port (C-STORE).")],
    calling_aet: Annotated[str, typer.Option(help="This machine's AE title, for C-STORE.")] = "EQUIPOISE",
    timeout: PacsTimeout = 60.0,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list with an object per instance.")] = False,
) -> None:
    """Store DICOM files in a PACS, one by one. A refused file does not stop the others."""
    from .archive import Access
    from .archive import send as store
    from .series import skipped

    given = [path for file in files for path in (sorted(file.rglob("*")) if file.is_dir() else [file])]
    paths = [path for path in given if path in files or not (path.is_dir() or skipped(path))]
    found: list[dict[str, Any]] = []
    access = Access(os.environ.get(AUTHORIZATION), tls_root, tls_cert, tls_key, timeout)
    stopped: EquipoiseError | None = None
    datasets = shown(_datasets(paths, found), len(paths), "storing", as_json)
    try:
        for stored in store(datasets, to, access=access, calling_aet=calling_aet):
            found[-1] |= {"sop_instance_uid": stored.sop_instance, "stored": stored.done, "reason": stored.reason}
    except EquipoiseError as error:  # what was stored before it is reported all the same
        stopped = error
        found.extend(_outcome(path, "it was not sent") for path in paths[len(found) :])
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for each in found:
            if not each["stored"]:
                typer.echo(f"not stored: {each['file']}: {each['reason']}", err=True)
        typer.echo(f"{sum(each['stored'] for each in found)} of {len(found)} instances stored")
    if stopped is not None:
        raise stopped
    if not found or not all(each["stored"] for each in found):
        raise typer.Exit(1)


def _outcome(path: Path, reason: str) -> dict[str, Any]:
    return {"file": str(path), "sop_instance_uid": None, "stored": False, "reason": reason}


_NAMED = ("SOPClassUID", "SOPInstanceUID")


def _datasets(paths: list[Path], found: list[dict[str, Any]]) -> Iterator[Any]:
    """Every file read; one that is not DICOM is noted in `found` and left out."""
    from equipoise_client.images.dicom import load, quiet

    for path in paths:
        found.append(_outcome(path, "there was no answer"))
        try:
            with quiet(path.name):
                dataset = load(path)
        except (UnreadableImage, OSError):
            found[-1]["reason"] = "it is not a readable DICOM file"
            continue
        if "TransferSyntaxUID" not in dataset.file_meta or not all(dataset.get(name) for name in _NAMED):
            found[-1]["reason"] = "it is not an instance: a DICOMDIR, or an object without identifiers"
            continue
        yield dataset
